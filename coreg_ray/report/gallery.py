"""The pictures of the report: which images are worth looking at, and their thumbnails as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from coreg_ray.deploy.predictions import Judgement
from coreg_ray.training.sample import Sample

THUMBNAIL = 96  # pixels; smaller images are kept as they are and enlarged by the browser
TYPICAL = 4  # pictures of each class
MOST_CLASSES = 60
MOST_CHANGES = 10
ENSEMBLE, A, B = 0, 1, 2


@dataclass(frozen=True)
class Picture:
    """One image and what is said about it.

    Attributes:
        source: data URI. name: image id. head: what matters most. lines: short texts below it.
    """

    source: str
    name: str
    head: str
    lines: list[str]


@dataclass(frozen=True)
class Change:
    """How many images of one class before have another after."""

    before: str
    after: str
    images: int


@dataclass(frozen=True)
class Gallery:
    """Some images of one kind; `total` is how many there are among those looked at.

    Attributes:
        warning: the note is one that a reader must not miss.
        changes: the most frequent kinds among all that were found.
    """

    title: str
    note: str
    total: int
    pictures: list[Picture]
    warning: bool = False
    changes: list[Change] = field(default_factory=list)


def pool_galleries(sample: Sample, judged: Judgement, class_names: Sequence[str], most: int) -> list[Gallery]:
    """Labels the method changed, images that stay doubtful, images that divide the networks, typical images."""
    same = judged.best[A] == judged.best[B]
    weakest = judged.confidence[1:].min(axis=0)  # (M,) the less sure of both networks
    changed = np.flatnonzero((judged.given >= 0) & (judged.best[ENSEMBLE] != judged.given) & same)
    split = np.flatnonzero(~same)
    doubtful = np.flatnonzero(same & (judged.confidence[ENSEMBLE] < 0.5))
    turns, changes = _turns(changed, weakest, judged, class_names)

    def show(rows: NDArray[np.int64]) -> list[Picture]:
        return [_picture(sample, judged, class_names, int(row)) for row in rows[:most]]

    return [
        Gallery(
            "Labels that the method changed",
            "Before: the annotator's first choice. After: what both networks say. One image of each kind of change in "
            "turn, the most frequent kind first, and the surest image of it.",
            len(changed),
            show(turns),
            changes=changes,
        ),
        Gallery(
            "Images that divide the networks",
            "Each says another class; where both are sure first.",
            len(split),
            show(_by(-weakest, split)),
        ),
        Gallery(
            "Images that remain doubtful",
            "The networks agree, but do not give their class half of the probability; the least sure first.",
            len(doubtful),
            show(_by(judged.confidence[ENSEMBLE], doubtful)),
        ),
    ]


def _by(score: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows with the lowest score first."""
    return rows[np.argsort(score[rows], kind="stable")]


def _turns(
    rows: NDArray[np.int64], sure: NDArray[np.float32], judged: Judgement, class_names: Sequence[str]
) -> tuple[NDArray[np.int64], list[Change]]:
    """The rows so that every kind of change (before, after) has its turn, and the most frequent kinds."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for row in _by(-sure, rows).tolist():
        kinds.setdefault((int(judged.given[row]), int(judged.best[ENSEMBLE, row])), []).append(row)
    frequent = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    turns = [row for turn in zip_longest(*(of_kind for _, of_kind in frequent)) for row in turn if row is not None]
    changes = [Change(class_names[before], class_names[after], len(of_kind)) for (before, after), of_kind in frequent]
    return np.array(turns, dtype=np.int64), changes[:MOST_CHANGES]


def typical_gallery(sample: Sample, judged: Judgement, class_names: Sequence[str], most: int) -> Gallery:
    """The images that networks and annotator agree about most, a few of each class."""
    agreed = (judged.best == judged.best[ENSEMBLE]).all(axis=0) & (judged.best[ENSEMBLE] == judged.given)
    pictures = []
    for number in range(min(len(class_names), MOST_CLASSES)):
        rows = np.flatnonzero(agreed & (judged.best[ENSEMBLE] == number))
        best = rows[np.argsort(-judged.margin[rows], kind="stable")][: min(TYPICAL, most)]
        pictures += [
            Picture(thumbnail(sample.pixels[row]), sample.ids[row], class_names[number], []) for row in best.tolist()
        ]
    note = "Images that both networks and the annotator are surest about, class by class."
    return Gallery("Typical images", note, int(agreed.sum()), pictures)


def label_gallery(sample: Sample, judged: Judgement, class_names: Sequence[str], most: int) -> Gallery:
    """Test images whose label both networks contradict: `given` is the label."""
    against = (judged.best[A] == judged.best[B]) & (judged.best[A] != judged.given)
    belief = judged.confidence[1:].min(axis=0) - judged.belief[1:].max(axis=0)
    rows = np.flatnonzero(against)
    pictures = [_picture(sample, judged, class_names, int(row)) for row in _by(-belief, rows)[:most]]
    note = (
        "Look before you believe an accuracy. Label \u2192 what both networks say instead. Some of these are "
        "the model's mistakes, some the label's: in popular test sets 3 % and more of the labels are wrong (Northcutt "
        "et al., arXiv 2103.14749), and a model may be better than its score. The surest first."
    )
    return Gallery("Test labels that may be wrong", note, len(rows), pictures, warning=True)


def thumbnail(pixels: Tensor) -> str:
    """An image (3, S, S) uint8 as a data URI: PNG when small, JPEG when large."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    if max(image.size) > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(buffer, "JPEG", quality=80)
        kind = "jpeg"
    else:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _picture(sample: Sample, judged: Judgement, class_names: Sequence[str], row: int) -> Picture:
    """Before and after, or what each network says where they differ."""

    def predicted(network: int) -> str:
        return class_names[judged.best[network, row]]

    def sure(network: int) -> str:
        return f"{judged.confidence[network, row]:.2f}"

    before = class_names[judged.given[row]] if judged.given[row] >= 0 else ""
    if predicted(A) != predicted(B):
        lines = [f"annotator: {before}"] if before else []
        return Picture(
            thumbnail(sample.pixels[row]), sample.ids[row], f"{predicted(A)} or {predicted(B)}",
            [f"a: {predicted(A)} {sure(A)}", f"b: {predicted(B)} {sure(B)}", *lines],
        )  # fmt: skip
    head = f"{before} \u2192 {predicted(A)}" if before and before != predicted(A) else predicted(A)
    return Picture(thumbnail(sample.pixels[row]), sample.ids[row], head, [f"a {sure(A)}, b {sure(B)}"])


def without_empty(galleries: Iterable[Gallery]) -> list[Gallery]:
    """Those that have a picture to show."""
    return [gallery for gallery in galleries if gallery.pictures]
