"""Candidate sets from what a probability means in its row and in its column (CPL). PURE: torch only.

Zhang, Wei, Liu and Feng ("Candidate Pseudolabel Learning", ICML 2024). A class is a candidate of an image when the
image needs it to reach a mass (the first thought), and when the image is among those that speak for it most (the
second). Both bounds are read off the probabilities themselves. What differs: a row that is left with nothing gets all
classes instead of being dropped, as a row without a vote does; it excludes nothing and the warm-up leaves it out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coreg_ray.pure.candidates import candidate_sets

CONFIDENT, PROMINENT = 0.6, 0.9  # quantiles: of the rows' largest probabilities, and of each class's probabilities
_MOST = 1.0 - 1e-6  # a mass of 1 would let rounding decide over the last class


def cpl_bounds(probs: Tensor, confident: float = CONFIDENT, prominent: float = PROMINENT) -> tuple[float, Tensor]:
    """The mass and the floors (K,) of a sample's mean probabilities (N, K); the sample stands for the pool.

    `prominent` 0.9 suits ten balanced classes: of every class its best tenth of the rows may be candidates.

    Raises:
        ValueError: an empty sample, or a quantile outside 0 .. 1.
    """
    for name, quantile in (("confident", confident), ("prominent", prominent)):
        if not 0 <= quantile <= 1:
            raise ValueError(f"{name}={quantile} is no quantile; use a number from 0 to 1")
    if probs.ndim != 2 or 0 in probs.shape:
        raise ValueError(f"probs has shape {tuple(probs.shape)}; give (rows >= 1, classes >= 1)")
    wide = probs.to(torch.float64).sort(dim=0).values
    largest = probs.to(torch.float64).amax(dim=1).sort().values
    return float(_quantile(largest, confident)), _quantile(wide, prominent)


def cpl_sets(probs: Tensor, mass: float, floors: Tensor) -> Tensor:
    """Candidate sets of mean probabilities (N, K) under `cpl_bounds`: (N, K) bool, no row empty.

    Raises:
        ValueError: a mass outside 0 .. 1, or not one floor a class.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass={mass} is no share of the whole; use a number above 0, at most 1")
    if floors.shape != probs.shape[1:]:
        raise ValueError(f"floors has shape {tuple(floors.shape)}; give one for each of {probs.shape[1]} classes")
    needed = candidate_sets(probs[:, None, :], "cumulative", mass=min(mass, _MOST))
    sets = needed & (probs.to(torch.float64) >= floors.to(probs.device))
    return sets | ~sets.any(dim=1, keepdim=True)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """The value below which `share` of rising rows lie: between two of them on a line; (N, ...) -> (...)."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
