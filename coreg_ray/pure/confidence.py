"""How sure a row is of each class, moved by votes of class prototypes (PiCO, arXiv 2201.08984; ALIM, arXiv 2301.12077).

Distributions come back in at least float32; all but `quantile` run inside a training step and never wait for the
device.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-30  # so that the best class inside a set beats a class of weight zero even where its score is no number


def importance(scores: Tensor, candidates: Tensor, weight: Tensor | float) -> Tensor:
    """scores * (Y + weight (1 - Y)): classes outside the candidate set count `weight` times (ALIM).

    Args:
        scores: (B, K), not negative.
        candidates: (B, K) bool, Y; an empty set counts as all classes.
        weight: in 0 .. 1, one number or one for each row (B,); 0 restricts to the set.

    Returns:
        (B, K), not normalised; inside the set never zero.
    """
    weight = torch.as_tensor(weight, dtype=torch.float32, device=scores.device).expand(len(scores))
    inside = candidates | ~candidates.any(dim=1, keepdim=True)
    return _wide(scores).clamp_min(_FLOOR) * torch.where(inside, 1.0, weight[:, None])


def vote(confidence: Tensor, scores: Tensor, momentum: float, *, soft: bool = False) -> Tensor:
    """momentum * confidence + (1 - momentum) * u, u the one-hot of the best score (PiCO) or the scores' shares.

    Args:
        confidence: (B, K).
        scores: (B, K) as of `importance`, with mass in every row.
        momentum: phi.
        soft: u is the scores, normalised.
    """
    wide = _wide(scores)
    if soft:
        ballot = wide / wide.sum(dim=1, keepdim=True)
    else:
        ballot = F.one_hot(wide.argmax(dim=1), scores.shape[1]).to(wide.dtype)
    return momentum * _wide(confidence) + (1 - momentum) * ballot


def margin(scores: Tensor, candidates: Tensor) -> Tensor:
    """max_S s / (1e-9 + max_{not S} s): from which weight on a class outside the set would win (ALIM).

    Args:
        scores: (B, K), not negative. candidates: (B, K) bool.

    Returns:
        (B,), at most 60,000, which float16 can hold.
    """
    wide = _wide(scores)
    best = wide.masked_fill(~candidates, 0.0).amax(dim=1)
    other = wide.masked_fill(candidates, 0.0).amax(dim=1)
    return (best / (1e-9 + other)).clamp(max=6e4)


def quantile(values: Tensor, share: float) -> float:
    """The `share`-quantile of (N,) values, with linear interpolation; 0 of none. N may be any number."""
    return float(np.quantile(values.double().numpy(), share)) if len(values) else 0.0


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
