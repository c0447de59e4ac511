"""Which class is taken for which, by the pairs that occur: all K x K pairs of 20,000 classes would be gigabytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreg_ray import metrics


@dataclass(frozen=True)
class Confusions:
    """The cells of a confusion matrix that hold an image; their number C is at most that of the images.

    Attributes:
        true, predicted: (C,) int64 classes, row by row of the matrix. images: (C,) int64, at least 1.
        num_classes: K.
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    images: NDArray[np.int64]
    num_classes: int

    @classmethod
    def of(cls, true: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> Confusions:
        """From the true and the predicted class of M images, (M,) int64 each."""
        cells, images = np.unique(true.astype(np.int64) * num_classes + predicted, return_counts=True)
        return cls(cells // num_classes, cells % num_classes, images.astype(np.int64), num_classes)

    @property
    def accuracy(self) -> float:
        """Share of the images in their own class; 0 where there is no image."""
        return float(self.images[self.true == self.predicted].sum() / max(self.images.sum(), 1))

    def by_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each class: images that are of it and are said to be, that are of it, that are said to be; (K,) int64."""
        hits = self.true == self.predicted
        cells = ((self.true[hits], self.images[hits]), (self.true, self.images), (self.predicted, self.images))
        true_hits, true, predicted = (self._sums(classes, images) for classes, images in cells)
        return true_hits, true, predicted

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1, over the classes that an image is of or is said to be of; 0 without an image."""
        hits, true, predicted = self.by_class()
        there = true + predicted
        return float((2 * hits[there > 0] / there[there > 0]).mean()) if there.any() else 0.0

    @property
    def recall(self) -> list[float | None]:
        """Of each of the K classes the share of its images that are said to be of it, None where it has no image."""
        hits, true, _ = self.by_class()
        return [hit / images if images else None for hit, images in zip(hits.tolist(), true.tolist(), strict=True)]

    def metrics(self, accuracy: str) -> dict[str, Any]:
        """Accuracy under its name in `metrics.json`, and macro-F1 and recall beside it."""
        beside = {metrics.macro_f1_of(accuracy): self.macro_f1, metrics.recall_of(accuracy): self.recall}
        return {accuracy: self.accuracy, **beside}

    def __add__(self, other: Confusions) -> Confusions:
        """The cells of both. Raises ValueError where classes differ in number."""
        if self.num_classes != other.num_classes:
            raise ValueError(f"{self.num_classes} and {other.num_classes} classes cannot be added; count them apart")
        cells = np.concatenate([part.true * part.num_classes + part.predicted for part in (self, other)])
        kept, place = np.unique(cells, return_inverse=True)
        images = np.zeros(len(kept), np.int64)
        np.add.at(images, place, np.concatenate([self.images, other.images]))
        return Confusions(kept // self.num_classes, kept % self.num_classes, images, self.num_classes)

    def worst(self, count: int) -> list[tuple[int, int, int]]:
        """(true, predicted, images) of the most frequent mistakes, the first in the matrix of equal ones."""
        wrong = np.flatnonzero(self.true != self.predicted)
        most = wrong[np.argsort(-self.images[wrong], kind="stable")[:count]]
        columns = (self.true[most].tolist(), self.predicted[most].tolist(), self.images[most].tolist())
        return list(zip(*columns, strict=True))

    def matrix(self) -> NDArray[np.int64]:
        """(K, K) int64, true class by row; for few classes."""
        counts = np.zeros((self.num_classes, self.num_classes), np.int64)
        counts[self.true, self.predicted] = self.images
        return counts

    def _sums(self, classes: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
        sums = np.zeros(self.num_classes, np.int64)
        np.add.at(sums, classes, images)
        return sums
