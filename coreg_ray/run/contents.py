"""What lies in a run folder, how much it takes, and what a person may delete there."""

from __future__ import annotations

from dataclasses import dataclass

from pyarrow import fs

from coreg_ray.run.folder import RunFolder

_KEEP = ""
_CONTENTS = {  # name in the run folder -> what it is, and when it may go
    "model": ("the classifier and its card", _KEEP),
    "report.html": ("the report", _KEEP),
    "metrics.json": ("all figures", _KEEP),
    "history.csv": ("figures of every epoch", _KEEP),
    "config.yaml": ("the settings", _KEEP),
    "versions.json": ("versions of what made the run", _KEEP),
    "baselines.json": ("what the method was compared with", _KEEP),
    "borrowed.json": ("which folders lie in another run", _KEEP),
    "review.csv": ("images to look at, with a person's labels", _KEEP),
    "review-new.csv": ("images to look at, beside a file that could not be read", _KEEP),
    "review.jsonl": ("labels as they were given on the review page", "once review.csv is all that counts"),
    "review-train.log": ("what the training said that the review page started", "at any time"),
    "annotations": ("what the annotators answered", "only if the pool may be annotated again"),
    "rejects": ("images that could not be decoded, and why", _KEEP),
    "labels": ("true labels, which only score", _KEEP),
    "purified": ("the pool's labels as the networks settled them", _KEEP),
    "probabilities": ("how probable the networks find the classes of every image", _KEEP),
    "voters.csv": ("how far each voter can be trusted", _KEEP),
    "candidates": ("candidate sets", "(the same command makes them again from annotations/)"),
    "rows": ("images at the student's resolution", "(the same command makes them again from the source)"),
    "features": ("features of a frozen backbone", "(the same command makes them again from the source)"),
    "checkpoints": ("the state of both networks", "once nothing shall go on or start from this run"),
    "tensorboard": ("curves for TensorBoard", "(history.csv has the figures)"),
    "ray": ("Ray Train's own records", "(nothing continues from them)"),
    "predictions": ("what a model said of images", _KEEP),
    "comparison.csv": ("methods compared on this run's rows", _KEEP),
    "comparison.html": ("the same as a page", _KEEP),
    "methods": ("the runs of a comparison", "all but those that comparison.csv shall lead to"),
    "trials": ("the runs of a search", "all but those that best.yaml and trials.csv shall lead to"),
    "data": ("candidate sets and images that trials share", "once the search is over"),
    "tune": ("Ray Tune's own record", "once the search shall not be resumed"),
    "search.json": ("which search this is", _KEEP),
    "trials.csv": ("all trials of a search", _KEEP),
    "trials.svg": ("a picture of the search", _KEEP),
    "best.yaml": ("the best settings of a search", _KEEP),
    "failure.txt": ("why a trial ended without a result", _KEEP),
}
_LINKED = ("annotations", "labels", "rows", "candidates")


@dataclass(frozen=True)
class Place:
    """Something that lies in a run folder.

    Attributes:
        name: as it is called there, folders with a slash at the end. size: bytes; None where it lies in another run.
        what: what it is. may_go: when or why it may be deleted; "" where it should stay.
    """

    name: str
    size: int | None
    what: str
    may_go: str


def places(run: RunFolder) -> list[Place]:
    """All that lies directly in a run folder, largest first, and the folders of other runs that it uses, last."""
    sizes: dict[str, int] = {}
    folders: set[str] = set()
    start = len(run.path.rstrip("/")) + 1
    for info in run.filesystem.get_file_info(fs.FileSelector(run.path, recursive=True, allow_not_found=True)):
        top, below, _ = info.path[start:].partition("/")
        if below or info.type == fs.FileType.Directory:
            folders.add(top)
        sizes[top] = sizes.get(top, 0) + (info.size or 0 if info.type == fs.FileType.File else 0)
    own = [_place(name, size, name in folders) for name, size in sizes.items() if not name.startswith(".")]
    return sorted(own, key=lambda place: (-(place.size or 0), place.name)) + [
        Place(f"{name}/", None, f"lies in {run.resolve(name).path}", "")
        for name in _LINKED
        if name not in sizes and run.resolve(name).path != (run / name).path
    ]


def _place(name: str, size: int, is_folder: bool) -> Place:
    what, may_go = _CONTENTS.get(name, ("none of coreg-ray's", _KEEP))
    return Place(f"{name}/" if is_folder else name, size, what, may_go)


def as_size(size: int) -> str:
    """Bytes as people read them."""
    amount, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    unit = units[0]
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
