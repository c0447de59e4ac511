"""How far stated probabilities can be believed: one temperature, and the error that is left."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

COLDEST, HOTTEST = 0.1, 10.0
_STEPS = 60


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature t that minimises the cross-entropy of logits / t (Guo et al., arXiv 1706.04599, section 4.2).

    Ternary search over log t between COLDEST and HOTTEST; the loss has a single minimum in 1/t, where it is convex.

    Args:
        logits: (M, K). labels: (M,) int64.

    Returns:
        t; 1 where there is no row.
    """
    if not len(logits):
        return 1.0
    wide = logits.double()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(wide / math.exp(log_temperature), labels))

    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(_STEPS):
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return math.exp((low + high) / 2)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean |confidence - accuracy| over bins of equal width, weighted by their rows.

    Args:
        confidence: (M,) in 0..1. correct: (M,) bool.

    Returns:
        0..1; 0 where there is no row.
    """
    rows, mean_confidence, accuracy = reliability(confidence, correct, bins)
    return float((rows * (mean_confidence - accuracy).abs()).sum() / rows.sum().clamp(min=1))


def reliability(confidence: Tensor, correct: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Per bin of confidence: rows, mean confidence and accuracy, each (bins,) float64; zero in empty bins."""
    place = (confidence.double() * bins).long().clamp(0, bins - 1)
    rows = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
    stated = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, confidence.double())
    right = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, correct.double())
    divisor = rows.clamp(min=1)
    return rows, stated / divisor, right / divisor
