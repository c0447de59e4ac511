"""Candidate sets from rows and columns against the same in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coreg_ray.pure.cpl import cpl_bounds, cpl_sets


def probabilities(rows, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 2).softmax(1)


@pytest.mark.parametrize("shape", [(200, 10), (50, 3), (40, 1), (30, 60)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sets_are_those_of_the_method(shape, dtype):
    probs = probabilities(*shape).to(dtype)
    mass, floors = cpl_bounds(probs)
    table = probs.double().numpy()
    assert mass == pytest.approx(np.quantile(table.max(1), 0.6))
    assert np.allclose(floors, np.quantile(table, 0.9, axis=0))
    expected = []
    for row in table:
        reached, chosen = 0.0, set()
        for j in sorted(range(len(row)), key=lambda j: (-row[j], j)):
            if reached >= min(mass, 1 - 1e-6) - 1e-6:
                break
            chosen.add(j)
            reached += row[j]
        chosen = {j for j in chosen if row[j] >= floors[j]}
        expected.append([j in chosen or not chosen for j in range(len(row))])
    assert np.array_equal(cpl_sets(probs, mass, floors).numpy(), expected)


def test_a_permutation_of_the_classes_permutes_the_sets():
    probs, order = probabilities(100, 6), torch.tensor([4, 2, 0, 5, 1, 3])
    there = cpl_sets(probs[:, order], *cpl_bounds(probs[:, order]))
    assert torch.equal(there, cpl_sets(probs, *cpl_bounds(probs))[:, order])


def test_sure_rows_keep_one_class():
    probs = torch.eye(4, dtype=torch.float64).repeat(5, 1)
    assert torch.equal(cpl_sets(probs, *cpl_bounds(probs)), probs.bool())


def test_a_row_left_with_nothing_excludes_nothing():
    probs = probabilities(100, 5)
    assert cpl_sets(probs, 0.5, torch.ones(5)).all()


def test_what_does_not_fit_is_named():
    probs = probabilities(10, 3)
    with pytest.raises(ValueError, match="confident=2"):
        cpl_bounds(probs, confident=2)
    with pytest.raises(ValueError, match="prominent=-1"):
        cpl_bounds(probs, prominent=-1)
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        cpl_bounds(probs[:0])
    with pytest.raises(ValueError, match="mass=0"):
        cpl_sets(probs, 0.0, torch.zeros(3))
    with pytest.raises(ValueError, match="one for each of 3 classes"):
        cpl_sets(probs, 0.5, torch.zeros(2))
