"""Sparse moving rows against the dense recursion that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coreg_ray.pure import slots


def visits(count: int, rows: int, num_classes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of some rows each, and what is added to them."""
    random = torch.Generator().manual_seed(2)
    taken = []
    for _ in range(count):
        index = torch.randperm(rows, generator=random)[: rows // 2]
        taken.append((index, 0.3 * (3 * torch.randn(len(index), num_classes, generator=random)).softmax(1)))
    return taken


def test_with_room_for_all_classes_they_are_the_dense_recursion() -> None:
    classes, values = slots.empty(8, 10, 6, momentum=0.99)
    assert classes.shape == values.shape == (6, 10)
    assert values.dtype == torch.float32
    whole = torch.zeros(10, 6)
    for index, added in visits(20, 10, 6):
        whole[index] = 0.7 * whole[index] + added
        torch.testing.assert_close(slots.blend(classes, values, index, 0.7, added), whole[index])
    torch.testing.assert_close(slots.dense(classes, values, 6), whole)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_with_less_room_the_error_is_at_most_what_was_dropped(momentum: float) -> None:
    classes, values = slots.empty(4, 12, 9, momentum)
    assert values.dtype == torch.float16
    whole, dropped = torch.zeros(12, 9), torch.zeros(12)
    for index, added in visits(30, 12, 9):
        before = momentum * slots.dense(classes, values, 9)[index] + added
        whole[index] = momentum * whole[index] + added
        now = slots.blend(classes, values, index, momentum, added)
        dropped[index] = momentum * dropped[index] + (before - now).sum(1)
    error = (whole - slots.dense(classes, values, 9)).abs().sum(1)
    assert float(dropped.max()) > 0.01
    assert bool((error <= dropped + 1e-3).all())
    assert bool((error >= dropped - 1e-3).all())


def test_what_is_kept_are_the_largest_and_empty_slots_are_marked() -> None:
    classes, values = slots.largest(torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.0, 0.0, 0.0, 0.5]]), 3)
    assert classes.T.tolist() == [[2, 3, 0], [3, -1, -1]]
    assert slots.dense(classes, values, 4).tolist() == torch.tensor([[0.1, 0, 0.6, 0.3], [0, 0, 0, 0.5]]).tolist()
    nothing, _ = slots.empty(3, 2, 4)
    assert slots.dense(nothing, torch.ones(3, 2) * 0, 4).sum() == 0


def test_relabelled_classes_give_relabelled_rows() -> None:
    order = torch.tensor([2, 0, 3, 1])
    one, other = slots.empty(3, 6, 4), slots.empty(3, 6, 4)
    for index, added in visits(5, 6, 4):
        here = slots.blend(*one, index, 0.6, added)
        there = slots.blend(*other, index, 0.6, added[:, order])
        assert torch.equal(here[:, order], there)
