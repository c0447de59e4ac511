"""Labels of images by row number: true ones, which only score, and manual ones, which are trusted."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import read_table
from coreg_ray.ids import contains
from coreg_ray.run.storage import Folder

if TYPE_CHECKING:
    from torch import Tensor  # loaded where it is needed: tasks that only read and decode start without it


NO_CLASS = -2  # a manual label: a person has found that the image is none of the classes


@dataclass(frozen=True)
class Labels:
    """Labels of some images by row number.

    Attributes:
        rows: (M,) int64 row numbers, ascending.
        labels: (M,) int64 class numbers; manual ones may be NO_CLASS.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def digest(self) -> str:
        """16 hex digits over all of them."""
        return blake2b(self.rows.tobytes() + self.labels.tobytes(), digest_size=8).hexdigest()

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """The label of each row (N,) int64, -1 where unknown."""
        import torch

        if not len(self.rows):
            return torch.full((len(rows),), -1)
        known = contains(self.rows, rows)
        labels = self.labels[np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)]
        return torch.from_numpy(np.where(known, labels, -1))


def read_labels(folder: Folder) -> Labels:
    """All labels in a folder of Parquet files with columns row and label; none where it does not exist."""
    tables = [read_table(folder, name, ["row", "label"]) for name in folder.entries() if name.endswith(".parquet")]
    rows = np.concatenate([np.zeros(0, np.int64), *(table["row"].to_numpy() for table in tables)])
    labels = np.concatenate([np.zeros(0, np.int64), *(table["label"].to_numpy() for table in tables)])
    order = np.argsort(rows, kind="stable")
    return Labels(rows[order].astype(np.int64), labels[order].astype(np.int64))
