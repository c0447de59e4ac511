"""Votes and the importance of classes outside a set, one row and one class at a time, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coreg_ray.pure.confidence import importance, margin, quantile, vote

RANDOM = torch.Generator().manual_seed(3)
SCORES = torch.randn(40, 6, generator=RANDOM).softmax(1)
SETS = torch.rand(40, 6, generator=RANDOM) < 0.4
SETS[:, 0] |= ~SETS.any(1)
CONFIDENCE = torch.where(SETS, 1 / SETS.sum(1, keepdim=True), 0.0)


def test_against_loops() -> None:
    weights = torch.rand(40, generator=RANDOM)
    counted = importance(SCORES, SETS, weights)
    moved, soft = vote(CONFIDENCE, counted, 0.9), vote(CONFIDENCE, counted, 0.9, soft=True)
    margins = margin(SCORES, SETS)
    for i in range(40):
        s, inside, w = SCORES[i].tolist(), SETS[i].tolist(), float(weights[i])
        row = [s[j] if inside[j] else w * s[j] for j in range(6)]
        assert counted[i].tolist() == pytest.approx(row)
        best = max(range(6), key=lambda j: row[j])
        was = CONFIDENCE[i].tolist()
        assert moved[i].tolist() == pytest.approx([0.9 * was[j] + 0.1 * (j == best) for j in range(6)])
        assert soft[i].tolist() == pytest.approx([0.9 * was[j] + 0.1 * row[j] / sum(row) for j in range(6)])
        out = max((s[j] for j in range(6) if not inside[j]), default=0.0)
        assert float(margins[i]) == pytest.approx(min(max(s[j] for j in range(6) if inside[j]) / (1e-9 + out), 6e4))


def test_a_weight_of_one_ignores_sets_and_of_zero_never_leaves_them() -> None:
    assert torch.equal(importance(SCORES, SETS, 1.0), SCORES)
    hard = torch.nn.functional.one_hot((~SETS).float().argmax(1), 6).float()  # all mass outside, where there is any
    chosen = importance(hard, SETS, 0.0).argmax(1)
    assert bool(SETS.gather(1, chosen[:, None]).all())
    assert importance(SCORES, torch.zeros(40, 6, dtype=torch.bool), 0.0).equal(SCORES)  # no candidate: all are


def test_a_margin_is_the_weight_at_which_a_class_outside_wins() -> None:
    mixed = ~SETS.all(1)
    scores, sets = SCORES[mixed], SETS[mixed]
    turning = margin(scores, sets)
    below, above = (importance(scores, sets, turning * factor).argmax(1) for factor in (0.99, 1.01))
    assert bool(sets.gather(1, below[:, None]).all())
    assert not bool(sets.gather(1, above[:, None]).any())


def test_a_soft_vote_of_one_class_is_the_hard_one() -> None:
    scores = torch.nn.functional.one_hot(SCORES.argmax(1), 6).float()
    assert torch.equal(vote(CONFIDENCE, scores, 0.8, soft=True), vote(CONFIDENCE, scores, 0.8))
    assert torch.equal(vote(CONFIDENCE, SCORES, 1.0), CONFIDENCE)


def test_quantiles_are_numpys() -> None:
    values = torch.rand(101, generator=RANDOM).half()
    for share in (0.0, 0.13, 1.0):
        assert quantile(values, share) == pytest.approx(float(np.quantile(values.double().numpy(), share)))
    assert quantile(values[:0], 0.5) == 0
