"""Stored views: which one is picked, and what is left out of it."""

from __future__ import annotations

import pytest
import torch

from coreg_ray.pure.rng import uniform
from coreg_ray.pure.views.stored import pick, thin, thin_draws

NUMBERS = torch.arange(4000)
STORED = torch.arange(9).half()[None, :, None].expand(len(NUMBERS), -1, 3)  # 0 the image, 1 to 4 weak, 5 to 8 strong


def test_each_view_of_a_kind_is_picked_as_often_and_no_other() -> None:
    draws = uniform(7, NUMBERS, 1)
    for strong, first in ((False, 1), (True, 5)):
        picked = pick(STORED, draws, strong=strong)
        assert (picked.shape, picked.dtype) == ((4000, 3), torch.float32)
        places, counts = picked[:, 0].unique(return_counts=True)
        assert places.tolist() == [first, first + 1, first + 2, first + 3]
        assert ((counts / 4000 - 0.25).abs() < 0.03).all()


def test_the_ends_of_the_draws_pick_the_ends_of_the_views() -> None:
    draws = torch.tensor([[0.0], [1 - 2**-24]])
    assert pick(STORED[:2], draws, strong=False)[:, 0].tolist() == [1, 4]
    assert pick(STORED[:2], draws, strong=True)[:, 0].tolist() == [5, 8]


def test_without_stored_views_the_image_is_its_own_view() -> None:
    for strong in (False, True):
        assert torch.equal(pick(STORED[:5, 3:4], uniform(1, NUMBERS[:5], 1), strong=strong), torch.full((5, 3), 3.0))


def test_thinning_leaves_out_the_share_and_keeps_the_mean() -> None:
    for features in (8, 7):
        draws = uniform(3, NUMBERS, thin_draws(features))
        thinned = thin(torch.ones(4000, features), draws, 0.25)
        assert thinned.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert ((thinned.mean(0) - 1).abs() < 0.05).all()  # of each feature
        together = (thinned[:, :1] == 0) & (thinned[:, 1:] == 0)
        assert ((together.float().mean(0) - 1 / 16).abs() < 0.02).all()  # and independently, within a draw too


def test_a_rows_features_depend_on_its_own_draws_alone() -> None:
    values = torch.rand(6, 10)
    draws = uniform(3, NUMBERS[:6], thin_draws(10))
    whole = thin(values, draws, 0.5)
    assert torch.equal(thin(values[2:3], draws[2:3], 0.5)[0], whole[2])
    assert torch.equal(thin(values, draws, 0.0), values)
