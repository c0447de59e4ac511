"""Which label is given to which class: a matrix of K x K, and what it says of a row's class (ILL, arXiv 2305.12715)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def scale_for(num_classes: int) -> float:
    """log(K - 1) + 4: with it the identity gives 0.98 on the diagonal, whatever K is; a fixed scale loses with K."""
    return math.log(max(num_classes - 1, 1)) + 4


def matrices(weights: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The two readings of one matrix (K, K), classes by labels.

    Args:
        weights: (K, K), any numbers; columns, then rows are brought to length 1.
        scale: of the logarithms.

    Returns:
        R (K, K), every column a distribution over classes; and log C (K, K), every row of C one over labels.
    """
    scores = scale * F.normalize(F.normalize(weights, dim=0), dim=1)
    return scores.softmax(dim=0), scores.log_softmax(dim=1)


def posterior(probs: Tensor, candidates: Tensor, log_confusion: Tensor) -> Tensor:
    """e_k proportional to p_k prod_{j in S} C[k, j]: the class, given the image and the labels that it got.

    Args:
        probs: (B, K) predictions p. candidates: (B, K) bool, S; a set of all classes or none says nothing: e = p.
        log_confusion: (K, K) log C of `matrices`.

    Returns:
        (B, K) distributions, float32.
    """
    says = candidates & (candidates.any(dim=1) & ~candidates.all(dim=1))[:, None]
    with torch.autocast(probs.device.type, enabled=False):
        evidence = says.to(log_confusion.dtype) @ log_confusion.T
    return (probs.float().log() + evidence).softmax(dim=1)
