"""Which class is taken for which, by the pairs that occur: all K x K pairs of 20,000 classes would be gigabytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
