"""The pictures of the report: which images are worth looking at, and their thumbnails as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from coreg_ray.judgement import Judgement
from coreg_ray.sample import Sample

THUMBNAIL = 96  # pixels; smaller images are kept as they are and enlarged by the browser
TYPICAL = 4  # pictures of each class
MOST_CLASSES = 60
ENSEMBLE, A, B = 0, 1, 2


@dataclass(frozen=True)
class Picture:
    """One image and what is said about it.

    Attributes:
        source: data URI. name: image id. lines: short texts below it.
    """

    source: str
    name: str
    lines: list[str]


@dataclass(frozen=True)
class Gallery:
    """Some images of one kind; `found` is how many there are in all among those looked at."""

    title: str
    note: str
    found: int
    pictures: list[Picture]


def pool_galleries(sample: Sample, judged: Judgement, classes: Sequence[str], most: int) -> list[Gallery]:
    """Labels the method changed, images that stay doubtful, images that divide the networks, typical images."""
    same = judged.best[A] == judged.best[B]
    weakest = judged.confidence[1:].min(axis=0)  # (M,) the less sure of both networks
    changed = np.flatnonzero((judged.given >= 0) & (judged.best[ENSEMBLE] != judged.given) & same)
    split = np.flatnonzero(~same)
    doubtful = np.flatnonzero(same & (judged.confidence[ENSEMBLE] < 0.5))

    def show(rows: NDArray[np.int64], score: NDArray[np.float32]) -> list[Picture]:
        best = rows[np.argsort(-score[rows], kind="stable")][:most]
        return [_picture(sample, judged, classes, int(row)) for row in best]

    return [
        Gallery(
            "Labels that the method changed",
            "Both networks contradict the annotator's first choice; the surest first.",
            len(changed),
            show(changed, weakest),
        ),
        Gallery(
            "Images that divide the networks",
            "Each says another class; where both are sure first.",
            len(split),
            show(split, weakest),
        ),
        Gallery(
            "Images that remain doubtful",
            "Neither network gives any class half of the probability.",
            len(doubtful),
            show(doubtful, -judged.confidence[ENSEMBLE]),
        ),
    ]


def typical_gallery(sample: Sample, judged: Judgement, classes: Sequence[str], most: int) -> Gallery:
    """The images that networks and annotator agree about most, a few of each class."""
    agreed = (judged.best == judged.best[ENSEMBLE]).all(axis=0) & (judged.best[ENSEMBLE] == judged.given)
    pictures = []
    for number in range(min(len(classes), MOST_CLASSES)):
        rows = np.flatnonzero(agreed & (judged.best[ENSEMBLE] == number))
        best = rows[np.argsort(-judged.margin[rows], kind="stable")][: min(TYPICAL, most)]
        pictures += [
            Picture(thumbnail(sample.pixels[row]), sample.ids[row], [classes[number]]) for row in best.tolist()
        ]
    note = "Images that both networks and the annotator are surest about, class by class."
    return Gallery("Typical images", note, int(agreed.sum()), pictures)


def label_gallery(sample: Sample, judged: Judgement, classes: Sequence[str], most: int) -> Gallery:
    """Test images whose label both networks contradict: `given` is the label."""
    against = (judged.best[A] == judged.best[B]) & (judged.best[A] != judged.given)
    rows = np.flatnonzero(against)
    order = np.argsort(-(judged.confidence[1:].min(axis=0) - judged.belief[1:].max(axis=0))[rows], kind="stable")
    pictures = [_picture(sample, judged, classes, int(row), "label") for row in rows[order][:most]]
    note = (
        "Both networks agree on another class than the label; the surest first. Some are the model's mistakes, some "
        "the label's: in popular test sets 3 % and more of the labels are wrong (Northcutt et al., arXiv 2103.14749)."
    )
    return Gallery("Test labels that may be wrong", note, len(rows), pictures)


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


def _picture(sample: Sample, judged: Judgement, classes: Sequence[str], row: int, given: str = "annotator") -> Picture:
    def said(name: str, network: int) -> str:
        return f"{name}: {classes[judged.best[network, row]]} {judged.confidence[network, row]:.2f}"

    before = [f"{given}: {classes[judged.given[row]]}"] if judged.given[row] >= 0 else []
    return Picture(thumbnail(sample.pixels[row]), sample.ids[row], [*before, said("a", A), said("b", B)])


def without_empty(galleries: Iterable[Gallery]) -> list[Gallery]:
    """Those that have a picture to show."""
    return [gallery for gallery in galleries if gallery.pictures]
