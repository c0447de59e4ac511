"""Views that were made before: one of an image's stored ones, and features left out of it. PURE: torch only.

A frozen backbone sees an image and V views of it once. What is stored of each is (1 + V, F): the image itself, V / 2
weak views, V / 2 strong ones. All randomness is passed in as draws, as in `augment`.
"""

from __future__ import annotations

import torch
from torch import Tensor

PICK_DRAWS = 1  # which of the stored views
_BITS = 12  # of a number that decides on one feature; a draw has two such numbers
_VALUES = 2**_BITS


def pick(stored: Tensor, draws: Tensor, *, strong: bool) -> Tensor:
    """One weak or strong view of each row; the image itself where no view is stored.

    stored (B, 1 + V, F) of any type; draws (B, PICK_DRAWS) in [0, 1), on any device -> (B, F) float32.
    """
    half = (stored.shape[1] - 1) // 2
    if not half:
        return stored[:, 0].float()
    place = 1 + strong * half + (draws[:, 0] * half).long().to(stored.device)
    return stored[torch.arange(len(stored), device=stored.device), place].float()


def thin_draws(features: int) -> int:
    """How many draws a row `thin` takes for F features."""
    return -(-features // 2)


def thin(features: Tensor, draws: Tensor, share: float) -> Tensor:
    """Leave out a share of each row's features, and make up for it in the others (inverted dropout).

    features (B, F) float; draws (B, `thin_draws(F)`) in [0, 1); share in [0, 1), rounded to 1/4096 -> (B, F).
    A draw of 24 bits decides on two features.
    """
    bits = (draws * _VALUES**2).to(torch.int32)
    numbers = torch.cat([bits >> _BITS, bits & (_VALUES - 1)], dim=1)[:, : features.shape[1]]
    left = round(share * _VALUES)
    return features * (numbers >= left).to(features.device) * (_VALUES / (_VALUES - left))
