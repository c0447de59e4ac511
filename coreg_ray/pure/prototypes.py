"""Class prototypes: one direction per class in the projected space, moved a little by every labelled row."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def update_prototypes(prototypes: Tensor, features: Tensor, classes: Tensor, momentum: float = 0.999) -> Tensor:
    """For each row in order o_c <- m o_c + (1 - m) z, then normalise (METHOD section 3, step 5).

    In closed form: with n rows of class c, o_c <- m^n o_c + (1 - m) sum_i m^(rows of c after i) z_i.

    Args:
        prototypes: (K, D) unit vectors, or zero for a class not yet seen.
        features: (B, D) z.
        classes: (B,) int; rows with a negative class (padding) take no part.
        momentum: m.

    Returns:
        (K, D), dtype of `prototypes`. A class without rows keeps its prototype bit for bit, and so does one whose new
        vector is zero.

    Raises:
        ValueError: m outside 0 .. 1.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} is no weight of the old prototype; use a number from 0 to 1")
    dtype = torch.promote_types(prototypes.dtype, torch.float32)
    classes = classes.to(torch.int64)
    same_class = classes[:, None] == classes  # (B, B)
    later = same_class.triu(diagonal=1).sum(dim=1)  # rows of the same class that follow
    share = (1 - momentum) * momentum ** later.to(dtype)
    with torch.autocast(features.device.type, enabled=False):
        arrived = (same_class * share) @ features.to(dtype)  # (B, D), equal for all rows of a class
    kept = momentum ** same_class.sum(dim=1, keepdim=True).to(dtype)
    moved = kept * prototypes[classes.clamp(min=0)].to(dtype) + arrived
    length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)

    # The last row of each class writes; the others, padding and vectors without direction write to a spare slot. A
    # matrix product and one writer a class, rather than an atomic sum, make the result repeatable on a GPU.
    writes = (later == 0) & (classes >= 0) & (length[:, 0] > 0)
    slot = torch.where(writes, classes, prototypes.shape[0])
    updated = torch.cat([prototypes, prototypes.new_zeros(1, prototypes.shape[1])])
    updated[slot] = (moved / length.clamp_min(torch.finfo(dtype).tiny)).to(prototypes.dtype)
    return updated[:-1]
