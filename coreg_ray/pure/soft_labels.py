"""Soft labels without a number for every class: the largest shares of each row, the rest spread evenly."""

from __future__ import annotations

from torch import Tensor

MOST_SHARES = 16  # kept of each row: all of them up to as many classes


def largest_shares(probs: Tensor) -> tuple[Tensor, Tensor]:
    """The largest shares of distributions (N, K): classes (N, r) int32 and shares (N, r) float16, r = min(K, 16)."""
    shares, classes = probs.topk(min(MOST_SHARES, probs.shape[1]), dim=1)
    return classes.int(), shares.half()


def dense_shares(classes: Tensor, shares: Tensor, num_classes: int) -> Tensor:
    """Distributions (N, K) float32 of which the largest shares are known; what lacks to one is even over the others.

    For K <= r they are those that `largest_shares` was given, but for its rounding; else they differ by no more than
    the mass that it left out.
    """
    known = shares.float()
    rest = (1 - known.sum(dim=1, keepdim=True)).clamp(min=0.0) / max(num_classes - known.shape[1], 1)
    whole = rest.expand(-1, num_classes).clone().scatter_(1, classes.long(), known)
    return whole / whole.sum(dim=1, keepdim=True)


def mean_shares(classes: Tensor, shares: Tensor, num_classes: int) -> Tensor:
    """The mean (B, K) float32 of k distributions for each of B rows, of which the largest shares (B, k, r) are known.

    It is that of `dense_shares`, without a number for every distribution and class. k is at least 1.
    """
    known, count = shares.float(), shares.shape[1]
    rest = (1 - known.sum(dim=2, keepdim=True)).clamp(min=0.0) / max(num_classes - known.shape[2], 1)  # (B, k, 1)
    mean = rest.mean(dim=1).expand(-1, num_classes).clone()
    for one in range(count):  # one by one: no class occurs twice in a distribution, so that sums have one order
        mean.scatter_add_(1, classes[:, one].long(), (known[:, one] - rest[:, one]) / count)
    mean = mean.clamp(min=0.0)
    return mean / mean.sum(dim=1, keepdim=True)
