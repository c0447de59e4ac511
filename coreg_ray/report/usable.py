"""How many of a pool's labels can be used at which probability, and how many of those are right where that is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.labels import read_labels
from coreg_ray.config import Config
from coreg_ray.deploy.purified import FACTS, Making, annotated_labels, part_names
from coreg_ray.ids import row_numbers
from coreg_ray.report import figures
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

MOST_READ = 200_000  # images; parts are named by hashes, so the first ones are a sample
BINS = 1000  # of probability
SHOWN = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Usable:
    """Labels counted by their probability, in BINS equal bins from 0 to 1.

    Attributes:
        images: (BINS,) labels. stated: (BINS,) sum of their probabilities. known: (BINS,) whose truth is known. right:
            (BINS,) of those. purified: whether networks took part. total: images of the pool, which may be more.
    """

    images: NDArray[np.int64]
    stated: NDArray[np.float64]
    known: NDArray[np.int64]
    right: NDArray[np.int64]
    purified: bool
    total: int

    def at_least(self, probability: float) -> tuple[int, float | None, float | None]:
        """Labels of at least that probability (to a bin): how many, mean stated probability, precision if known."""
        first = int(np.ceil(probability * BINS - 1e-9))
        images, known = int(self.images[first:].sum()), int(self.known[first:].sum())
        stated = float(self.stated[first:].sum()) / images if images else None
        return images, stated, float(self.right[first:].sum()) / known if known else None


def count_usable(run: RunFolder, config: Config | None) -> Usable | None:
    """Of `purified/`, or of the annotators' own labels before any training; None where there is neither."""
    manifest = run.read_candidate_manifest()
    if config is None or manifest is None:
        return None
    number = {name: place for place, name in enumerate(manifest.class_names)}
    truth = read_labels(run.labels("pool"))
    purified = bool(part_names(run.purified))
    images, known, right = (np.zeros(BINS, np.int64) for _ in range(3))
    stated, read, total = np.zeros(BINS), 0, manifest.quality.rows
    for table in _purified(run.purified) if purified else _annotated(run, config):
        probability = table["probability"].to_numpy().astype(np.float64)
        place = (probability * BINS + 1e-3).astype(np.int64).clip(0, BINS - 1)  # float32's 0.7 is less than 0.7
        label = np.array([number.get(name, -1) for name in table["label"].to_pylist()], np.int64)
        true = truth.of(row_numbers(table["image_id"].to_pylist())).numpy()
        images += np.bincount(place, minlength=BINS)
        stated += np.bincount(place, probability, minlength=BINS)
        known += np.bincount(place[true >= 0], minlength=BINS)
        right += np.bincount(place[(true >= 0) & (true == label)], minlength=BINS)
        read += len(table)
        if read >= MOST_READ:
            break
    return Usable(images, stated, known, right, purified, total) if read else None


def _purified(folder: Folder) -> Iterator[pa.Table]:
    for name in part_names(folder):
        yield read_table(folder, name, ["image_id", "label", "probability"])


def _annotated(run: RunFolder, config: Config) -> Iterator[pa.Table]:
    manifest = run.read_candidate_manifest()
    assert manifest is not None
    making = Making(list(manifest.class_names), by_scores=Making.goes_by_scores(config))
    for name in part_names(run.candidates):
        yield annotated_labels(read_table(run.candidates, name, FACTS), making)


def usable_section(usable: Usable | None) -> dict[str, Any] | None:
    """A curve and a table for the page."""
    if usable is None:
        return None
    counted = int(usable.images.sum())
    steps = [step / 100 for step in range(100)]
    points = [usable.at_least(step) for step in steps]
    series: dict[str, tuple[figures.Points, str]] = {
        "labels, share": ([images / counted for images, _, _ in points], figures.BLUE)
    }
    if usable.known.sum():
        series["right, of those known"] = ([right for _, _, right in points], figures.ORANGE)
    series["stated on average"] = ([stated for _, stated, _ in points], figures.GREY)
    rows = [{"probability": step, "images": images, "share": images / counted, "stated": stated, "right": right}
            for step in SHOWN for images, stated, right in [usable.at_least(step)]]  # fmt: skip
    return {
        "figure": Markup(figures.over_probability(steps, series)),
        "rows": rows,
        "known": int(usable.known.sum()),
        "counted": counted,
        "of": usable.total,
        "purified": usable.purified,
    }
