"""How much each candidate of a row counts, relative to the row's likeliest. PURE: torch only.

A weight is p(what the annotators say | class) up to a factor of the row's own: with it a set is no longer a yes or no.
Weights are stored divided by the row's largest, so that equal ones are exactly 1 and change no bit of anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = torch.finfo(torch.float16).tiny  # 6e-5: no candidate is impossible, or it would not be one


def relative_weights(values: Tensor, candidates: Tensor) -> Tensor:
    """Weights (N, K) float16 of candidates (N, K) bool by values (N, K) not negative: shares of votes, a posterior.

    The row's largest is exactly 1, no candidate's is below `LEAST`, all other classes have 0. A row whose candidates
    have no value counts them alike.
    """
    inside = values.to(torch.promote_types(values.dtype, torch.float32)).masked_fill(~candidates, 0.0)
    largest = inside.amax(dim=1, keepdim=True)
    relative = torch.where(largest > 0, inside / torch.where(largest > 0, largest, 1.0), 1.0)
    return relative.clamp_min(LEAST).to(torch.float16).masked_fill(~candidates, 0.0)


def usable_weights(candidates: Tensor, weights: Tensor, counted: Tensor | None = None) -> Tensor:
    """Weights (B, K) as they are, but 1 in rows that have none on their candidates (B, K) bool.

    Args:
        counted: (B,) bool, rows outside it have weight 1 too; None: all are inside.
    """
    some = weights.masked_fill(~candidates, 0.0).amax(dim=-1, keepdim=True) > 0
    return torch.where(some if counted is None else some & counted[:, None], weights, 1.0)
