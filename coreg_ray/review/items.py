"""What the page tells of each image of `review.csv`: what annotator and networks answered, as far as it is known."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coreg_ray.errors import UserError
from coreg_ray.images.labels import LabelReader
from coreg_ray.run.folder import REVIEW, RunFolder
from coreg_ray.run.review_table import IMAGE, NONE_OF_THESE, NOT_SURE, ReviewTable
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_ANSWERS = {  # key on the page -> column of the class, column of its confidence
    "suggestion": ("suggestion", "confidence"),
    "a": ("network_a", "confidence_a"),
    "b": ("network_b", "confidence_b"),
    "annotator": ("annotator", ""),
}
_CANDIDATES, _PURIFIED = ("image_id", "candidates", "scores"), ("image_id", "status", "changed", "agree")
_MOST_CANDIDATES = 8  # shown of one image


@dataclass
class Items:
    """The images of a review list, in its order.

    Attributes:
        ids: N image ids, each once. class_names: K. names: of every class all names that a label may use.
        words: class names, and behind them what else was answered; answers are places in it.
        columns: of N values each, by name; a column whose data the run does not hold is left out.
        labels: image id -> what stands in the column `label`, "" where nothing does.
    """

    ids: list[str]
    class_names: list[str]
    names: list[list[str]]
    words: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.words = list(self.class_names)
        self._reader = LabelReader({name.lower(): k for k, entry in enumerate(self.names) for name in entry})

    def class_of(self, label: str) -> int | None:
        """The class number of a label as a person typed it; None: it is no class."""
        with contextlib.suppress(UserError):
            return self._reader.written(label, "") if label else None
        return None

    def as_shown(self, label: str) -> str:
        """A label by its class's first name; what is no class stays as it was typed."""
        number = self.class_of(label)
        return label if number is None else self.class_names[number]


def read_table_of(folder: RunFolder, given: str) -> ReviewTable:
    """The review file of a run; `given`: the run as the user named it.

    Raises:
        UserError: there is none, it cannot be read, or it is no table with the columns image_id and label.
    """
    try:
        content = folder.read(REVIEW)
    except FileNotFoundError as error:
        if not folder.exists():
            raise UserError(f"{given} does not exist; give the folder of a finished run") from error
        raise UserError(
            f"{given} holds no {REVIEW}; it is written at the end of a run, unless report.review is 0: finish the run "
            "with `coreg-ray pipeline` or `coreg-ray train`, or give another folder"
        ) from error
    except OSError as error:
        raise UserError(f"{given} cannot be read ({error}); give the folder of a finished run") from error
    table = ReviewTable.parse(content)
    if table is None or not table.rows:
        problem = "is empty" if table is not None else "is no CSV in UTF-8 with the columns image_id and label"
        raise UserError(f"{given}/{REVIEW} {problem}; mend it, or move it away and make the report again")
    return table


def read_items(folder: RunFolder, table: ReviewTable) -> Items:
    """All that the run knows of the images in its review file."""
    labels = table.labels()
    class_names, names = _classes(folder, table)
    items = Items(list(labels), class_names, names, labels=labels)
    first: dict[str, dict[str, str]] = {}
    for row in table.rows:
        if IMAGE in row:
            first.setdefault(row[IMAGE], row)
    place = {word: number for number, word in enumerate(items.words)}
    for key, (answer, confidence) in _ANSWERS.items():
        if answer in table.columns:
            cells = [first[name].get(answer, "") for name in items.ids]
            items.columns[key] = [place.setdefault(cell, len(place)) if cell else -1 for cell in cells]
        if confidence in table.columns:
            items.columns[f"{key}_confidence"] = [_share(first[name].get(confidence, "")) for name in items.ids]
    items.words = list(place)
    number = {name: row for row, name in enumerate(items.ids)}
    _add_candidates(folder.candidates, items, number)
    _add_purified(folder / "purified", items, number)
    return items


def _classes(folder: RunFolder, table: ReviewTable) -> tuple[list[str], list[list[str]]]:
    """Class names and all names of each: of the candidate sets, of the model, or those that the list mentions.

    Raises:
        UserError: nothing names a class.
    """
    manifest = folder.read_candidate_manifest()
    if manifest is not None:
        return manifest.class_names, manifest.names or [[name] for name in manifest.class_names]
    if folder.model.exists("model.json"):
        names = [str(name) for name in folder.model.read_json("model.json").get("classes", [])]
        if names:
            return names, [[name] for name in names]
    answers = [answer for answer, _ in _ANSWERS.values()]
    mentioned = {row.get(answer, "") for row in table.rows for answer in answers}
    names = sorted(mentioned - {"", NOT_SURE, NONE_OF_THESE})
    if not names:
        raise UserError(
            f"{folder.path} has neither candidates/ nor model/, and its {REVIEW} names no class, so nobody knows the "
            "classes; give the whole folder of a run"
        )
    return names, [[name] for name in names]


def _share(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if _is_share(value) else None


def _is_share(value: Any) -> bool:
    """Whether it is a number that a page can show: JSON has no NaN."""
    return isinstance(value, float) and math.isfinite(value)


def _add_candidates(folder: Folder, items: Items, number: dict[str, int]) -> None:
    """The candidate sets with the annotator's probabilities, best first."""
    lists: list[list[tuple[int, float]]] = [[] for _ in number]
    for name, classes, scores in _rows(folder, _CANDIDATES, number):
        pairs = zip(classes or [], scores or [], strict=False)
        known = [(k, round(score, 4)) for k, score in pairs if 0 <= k < len(items.class_names) and _is_share(score)]
        lists[number[name]] = sorted(known, key=lambda pair: -pair[1])[:_MOST_CANDIDATES]
    if not any(lists):
        return
    items.columns["candidates"] = lists
    if "annotator" in items.columns:
        pairs = zip(items.columns["annotator"], lists, strict=True)
        items.columns["annotator_confidence"] = [dict(entry).get(answer) for answer, entry in pairs]


def _add_purified(folder: Folder, items: Items, number: dict[str, int]) -> None:
    """How the method settled each image: its status, and whether the label is another than the annotator's."""
    status: list[str | None] = [None] * len(number)
    changed: list[bool | None] = [None] * len(number)
    agree: list[bool | None] = [None] * len(number)
    for name, *values in _rows(folder, _PURIFIED, number):
        row = number[name]
        status[row], changed[row], agree[row] = values
    for key, column in (("status", status), ("changed", changed), ("agree", agree)):
        if any(value is not None for value in column):
            items.columns[key] = column


def _rows(folder: Folder, columns: tuple[str, ...], number: dict[str, int]) -> Iterator[tuple[Any, ...]]:
    """The cells of these columns in all rows of a folder's Parquet files that are about images of the list."""
    wished, left = pa.array(list(number), pa.string()), len(number)
    for name in folder.entries():
        if not name.endswith(".parquet") or left <= 0:
            continue
        try:
            with folder.filesystem.open_input_file(f"{folder.path}/{name}") as file:
                parquet = pq.ParquetFile(file)
                if not set(columns) <= set(parquet.schema_arrow.names):
                    continue
                for batch in parquet.iter_batches(65536, columns=list(columns)):
                    part = batch.filter(pc.is_in(batch["image_id"].cast(pa.string()), value_set=wished))
                    left -= len(part)
                    yield from zip(*(part[column].to_pylist() for column in columns), strict=True)
        except (OSError, pa.ArrowException) as error:  # a run under way, or one that was cut short
            log.warning("%s/%s cannot be read (%s); what it tells is not shown", folder.path, name, error)
