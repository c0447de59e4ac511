"""Which entries attract an anchor, and which stand in its sum: masks of `losses.masked_contrast`.

Entries are [the A anchors' queries, their A keys, Q older keys]; all masks are (A, 2 A + Q) bool.
"""

from __future__ import annotations

import torch
from torch import Tensor


def own_keys(anchors: int, valid: Tensor) -> Tensor:
    """Each anchor's own key. valid: (Q,) bool, which slots of the queue are filled."""
    return _eye(anchors, valid).roll(anchors, dims=1)


def all_but_itself(anchors: int, valid: Tensor) -> Tensor:
    """All entries but the anchor's own query and empty slots."""
    return torch.cat([valid.new_ones(2 * anchors), valid]) & ~_eye(anchors, valid)


def older(anchors: int, valid: Tensor) -> Tensor:
    """The filled slots of the queue."""
    return torch.cat([valid.new_zeros(2 * anchors), valid]).expand(anchors, -1)


def nearest(queries: Tensor, entries: Tensor, counted: Tensor, count: int) -> Tensor:
    """The `count` counted entries most like each anchor, fewer where there are fewer.

    Args:
        queries: (A, D). entries: (2 A + Q, D). Both normalised. counted: (A, 2 A + Q) bool.
    """
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        similarity = (queries.float() @ entries.float().T).masked_fill(~counted, -torch.inf)
    chosen = similarity.topk(min(count, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(counted).scatter_(1, chosen, True) & counted


def _eye(anchors: int, valid: Tensor) -> Tensor:
    return torch.eye(anchors, 2 * anchors + len(valid), dtype=torch.bool, device=valid.device)
