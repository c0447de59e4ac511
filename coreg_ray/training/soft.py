"""Soft labels of the rows that a worker holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray.pure.soft_labels import dense_shares

_CELLS = 2**20  # rows times classes made dense at once


@dataclass(frozen=True)
class Soft:
    """What share each class has in the label of each row.

    Attributes:
        classes, shares: (N, r) int32 and float16, as `pure.soft_labels.largest_shares` gives them.
    """

    classes: Tensor
    shares: Tensor

    def select(self, index: Tensor) -> Soft:
        """Those of rows `index` (M,), in that order."""
        return Soft(self.classes[index], self.shares[index])

    def dense(self, index: Tensor, num_classes: int, device: torch.device | str) -> Tensor:
        """Distributions (B, K) float32 of rows `index` (B,)."""
        classes, shares = (kept[index].to(device, non_blocking=True) for kept in (self.classes, self.shares))
        return dense_shares(classes, shares, num_classes)

    def total(self, num_classes: int) -> Tensor:
        """(K,) float64, the sum over all rows; block by block, so that nothing has the size N x K."""
        total = torch.zeros(num_classes, dtype=torch.float64)
        for index in torch.arange(len(self.classes)).split(max(1, _CELLS // num_classes)):
            total += self.dense(index, num_classes, "cpu").double().sum(0)
        return total
