"""What lies in a run folder, how much it takes, and what a person may delete there."""

from __future__ import annotations

from dataclasses import dataclass

from pyarrow import fs

from coreg_ray.run.folder import RunFolder
from coreg_ray.run.inventory import KEEP, of_top

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
    for info in run.listed():
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
    entry = of_top(name)
    what, may_go = (entry.what, entry.may_go) if entry else ("none of coreg-ray's", KEEP)
    return Place(f"{name}/" if is_folder else name, size, what, may_go)


def as_size(size: int) -> str:
    """Bytes as people read them."""
    amount, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    unit = units[0]
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
