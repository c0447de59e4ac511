"""Sparse moving rows: of N x K numbers that decay and grow, the largest few of each row.

A row's r slots are `classes` (r, N) int32, -1 where a slot is empty, and `values` (r, N) of the same place, float16 or
float32. What falls out of the largest r is lost and not made up for: equal to the dense recursion while K <= r, else
off by at most the mass that was dropped. Steps of 0.05 and more survive half precision; use float32 for smaller ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF_UP_TO = 0.95  # momenta above it move values in steps that float16 would round away


def empty(room: int, rows: int, num_classes: int, momentum: float = 0.0) -> tuple[Tensor, Tensor]:
    """Classes and values (r, N) of rows without mass, r = min(room, K); half precision where the momentum allows it."""
    room = min(room, num_classes)
    dtype = torch.float16 if momentum <= HALF_UP_TO else torch.float32
    return torch.full((room, rows), -1, dtype=torch.int32), torch.zeros(room, rows, dtype=dtype)


def dense(classes: Tensor, values: Tensor, num_classes: int) -> Tensor:
    """(r, B) slots -> (B, K) float32, zero where there is none."""
    whole = torch.zeros(classes.shape[1], num_classes, device=values.device)
    return whole.scatter_add_(1, classes.clamp(min=0).long().T, values.float().T)


def largest(whole: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """(B, K), not negative -> classes (r, B) int32 and values (r, B) of the r largest that are not zero."""
    values, classes = whole.topk(min(room, whole.shape[1]), dim=1)
    return classes.int().masked_fill(values <= 0, -1).T, values.T


def blend(classes: Tensor, values: Tensor, index: Tensor, momentum: float, added: Tensor) -> Tensor:
    """Rows `index` (B,) <- momentum * row + added (B, K), kept in place in their slots (r, N).

    Returns:
        (B, K) float32 on the device of `added`: the rows as they are kept now.
    """
    before = dense(classes[:, index].to(added.device), values[:, index].to(added.device), added.shape[1])
    kept, amounts = largest(momentum * before + added, len(classes))
    amounts = amounts.to(values.dtype)
    classes[:, index] = kept.to(classes.device)
    values[:, index] = amounts.to(values.device)
    return dense(kept, amounts, added.shape[1])
