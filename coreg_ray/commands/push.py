"""Put a run's model on the Hugging Face Hub, and its labels if asked for (extra `hub`; private unless told otherwise).

coreg-ray push runs/digits ORG/NAME                     the files of RUN/model, in one commit
coreg-ray push runs/digits ORG/NAME --labels true       the labels too, as the data set ORG/NAME-labels

`coreg_ray.load("hf://ORG/NAME")` reads the model. Log in with `hf auth login`, or set HF_TOKEN. Folders of this machine
are left out of what is sent; names of images are in the labels.
"""

from __future__ import annotations

import re
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

from coreg_ray.commands.base import show
from coreg_ray.commands.configured import configured
from coreg_ray.commands.labels import STATUSES, LabelsCommand, config_of, read_labels, written_labels
from coreg_ray.commands.words import read_words, truth
from coreg_ray.errors import UserError

if TYPE_CHECKING:
    from coreg_ray.deploy.labels.base import PoolLabels
    from coreg_ray.run.folder import RunFolder

STOPPED = "stopped; a repository holds what it held before, or all of the new; the same command begins anew"


def licence(text: str) -> str:
    """The Hub's identifier of a licence: lower case, as in `apache-2.0`."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text):
        raise ArgumentTypeError(f"{text!r} is no identifier of a licence; write it as the Hub does, such as apache-2.0")
    return text


_FLAGS = {
    "private": (truth, True, "whether only you and your organisation see it (default: true)"),
    "labels": (truth, False, "also push the labels of the pool, as the data set ORG/NAME-labels (default: false)"),
    "pictures": (truth, False, "put the pool's pictures into that data set (default: false)"),
    "licence": (licence, None, "identifier of the licence that the cards name, such as apache-2.0 (default: none)"),
}


def main(arguments: list[str]) -> None:
    """Run the command."""
    words = read_words(arguments, __doc__ or "", names=("RUN", "ORG/NAME"), flags=_FLAGS)
    place, name = words.runs
    if words.pictures and not words.labels:
        raise UserError("--pictures true puts pictures beside labels; add --labels true")
    from coreg_ray.deploy.hub import Repository, repository  # late: --help needs none of it
    from coreg_ray.run.folder import RunFolder

    run = RunFolder.at(place)
    config_of(place)
    data = f"{name}-labels" if words.labels else None
    files = model_files(run, name, words.licence, data)
    model, labels = repository(name, "model", words.private), None
    if data:
        labels = repository(data, "dataset", words.private)
    with tempfile.TemporaryDirectory(prefix="coreg-ray-") as scratch:
        made = {}
        if labels is not None:
            made = label_files(run, place, Path(scratch) / "labels", words.pictures, words.licence)
        from coreg_ray.deploy.export import FORMS

        done: list[tuple[Repository, str]] = [(model, model.push(files, "Model of coreg-ray", FORMS))]
        if labels is not None:
            done.append((labels, labels.push(made, "Labels of coreg-ray", tuple(labels.there or ()))))
    for there, commit in done:
        show(f"{there.address} has it ({'private' if there.private else 'public'}, commit {commit[:12]}).")
    show(f'coreg_ray.load("hf://{name}") reads the model.')
    if words.licence is None:
        show("The cards name no licence; --licence apache-2.0, or another, adds one.")


def model_files(run: RunFolder, name: str, licence: str | None, labels: str | None) -> dict[str, bytes | Path]:
    """The files of a run's model as a repository holds them; own notes beside them are left out.

    Raises:
        UserError: the run has no model.
    """
    from coreg_ray.deploy.hub import for_others
    from coreg_ray.deploy.model import Model, read_card
    from coreg_ray.deploy.model_card import for_the_hub, model_card
    from coreg_ray.deploy.own_files import CARD, README, README_BESIDE, described, listed

    if not run.model.exists(CARD):
        raise UserError(f"{run.path} has no model yet; train first (coreg-ray pipeline, or coreg-ray train)")
    card = read_card(run.model)
    names = [entry for entry in listed(run.model) if entry not in (CARD, README, README_BESIDE) and "/" not in entry]
    files: dict[str, bytes | Path] = {entry: run.model.read(entry) for entry in names if run.model.exists(entry)}
    if run.model.exists(README):
        text = run.model.read(README).decode("utf-8", "replace")
    else:
        text = model_card(Model.load(run.model), sorted(set(names) & {"model.onnx", "model.pt2"}))
    files[README] = for_the_hub(text, name, licence, labels).encode()
    files[CARD] = described(for_others(card), files)  # type: ignore[arg-type]
    return files


def label_files(
    run: RunFolder, place: str, folder: Path, pictures: bool, licence: str | None
) -> dict[str, bytes | Path]:
    """The labels of a run's pool as a data set, written into `folder`, which is not there yet.

    Raises:
        UserError: nothing was annotated there.
    """
    from coreg_ray.deploy.labels.huggingface import card

    form, files = ("huggingface", "data/train-*") if pictures else ("parquet", "labels.parquet")
    output = folder if pictures else folder / files
    given = {"config": config_of(place), "format": form, "output": str(output)}
    config = configured(given, LabelsCommand)
    labels = read_labels(run, place, config)
    written_labels(labels, config)
    head = {"license": licence} if licence else {}
    text = card(files, **head, task_categories=["image-classification"], tags=["coreg-ray"]) + _told(labels)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    made: dict[str, bytes | Path] = {path.relative_to(folder).as_posix(): path for path in paths}
    return {**made, "README.md": text.encode()}


def _told(labels: PoolLabels) -> str:
    """Whose labels they are, how many of which kind, and of which classes."""
    counts, whose = labels.counts(), "votes and networks together" if labels.purified else "the annotator alone"
    kinds = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES if counts[status])
    names = ", ".join(f"`{' '.join(name.replace('`', chr(39)).split())}`" for name in labels.class_names[:200])
    more = f" and {len(labels.class_names) - 200} more" if len(labels.class_names) > 200 else ""
    return f"\nLabels of {whose}: {kinds}.\n\n{len(labels.class_names)} classes: {names}{more}.\n"
