"""Weights of candidates: equal ones change no bit, others do what an oracle of their own says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from coreg_ray.pure import losses, purify
from coreg_ray.pure.weights import LEAST, relative_weights


def drawn(rows=40, classes=6, seed=0, dtype=torch.float32):
    """Logits, sets of which the first is empty and the second full, and weights of which the third row has none."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=random)
    sets = torch.rand(rows, classes, generator=random) < 0.5
    sets[0], sets[1], sets[2] = False, True, True
    weights = torch.rand(rows, classes, generator=random).half()
    weights[2] = 0
    return logits.to(dtype), sets, weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_equal_weights_change_no_bit(dtype):
    logits, sets, _ = drawn(dtype=dtype)
    ones = sets.half()  # as they are stored: 1 on the set, 0 elsewhere
    probs = logits.softmax(dim=1)
    gradients = []
    for weights in (None, ones):
        leaf = logits.clone().requires_grad_()
        value = losses.partial_cross_entropy(leaf, sets, weights=weights)
        value.backward()
        gradients.append((value.detach(), leaf.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert torch.equal(purify.candidate_loss(probs, sets), purify.candidate_loss(probs, sets, weights=ones))
    assert torch.equal(purify.restrict(probs, sets), purify.restrict(probs, sets, weights=ones))
    assert torch.equal(losses.informative(sets), losses.informative(sets, ones))


def test_weights_multiply_probabilities():
    logits, sets, weights = drawn(dtype=torch.float64)
    probs, w = logits.softmax(dim=1), weights.double()
    expected_loss, expected, taken = [], [], []
    for p, s, v in zip(probs.tolist(), sets.tolist(), w.tolist(), strict=True):
        inside = [x * y if k else 0.0 for x, y, k in zip(p, v, s, strict=True)]
        if not sum(inside):  # no candidate, or none that weighs anything: as without weights
            inside = [x if k or not any(s) else 0.0 for x, k in zip(p, s, strict=True)]
        expected_loss.append(-math.log(max(max(inside) if any(s) else 0.0, 1e-8)))
        expected.append([x / sum(inside) for x in inside])
        weighed = [y for y, k in zip(v, s, strict=True) if k]
        if any(s) and (not all(s) or max(weighed) > min(weighed)):
            taken.append(-math.log(sum(inside)))
    np.testing.assert_allclose(purify.candidate_loss(probs, sets, weights=w), expected_loss, rtol=1e-12)
    np.testing.assert_allclose(purify.restrict(probs, sets, weights=w), expected, rtol=1e-12)
    assert len(taken) == len(sets) - 2  # the empty set, and the full one whose weights are equal
    assert losses.partial_cross_entropy(logits, sets, weights=w).item() == pytest.approx(np.mean(taken), rel=1e-12)


def test_a_row_without_mass_gets_its_weights():
    probs = torch.tensor([[1.0, 0.0, 0.0]])
    sets, weights = torch.tensor([[False, True, True]]), torch.tensor([[0.0, 1.0, 0.25]])
    torch.testing.assert_close(purify.restrict(probs, sets, weights=weights), torch.tensor([[0.0, 0.8, 0.2]]))


def test_two_voters_of_three_say_something_though_they_name_both_classes():
    sets, weights = torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0, 0.5], [1.0, 1.0]])
    assert losses.informative(sets, weights).tolist() == [True, False]
    logits = torch.zeros(2, 2, requires_grad=True)
    losses.partial_cross_entropy(logits, sets, weights=weights).backward()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]
    assert not logits.grad[1].any()


@pytest.mark.parametrize("function", [losses.partial_cross_entropy, purify.candidate_loss, purify.restrict])
def test_nothing_is_nan_whatever_the_weights(function):
    logits, sets, weights = drawn(seed=3)
    weights[5:10] = torch.tensor([0.0, 6e-8, 6e-5, 1.0, 0.0, 65504.0]).half()
    given = (1e4 * logits).requires_grad_()
    first = given if function is losses.partial_cross_entropy else given.softmax(dim=1)
    out = function(first, sets, weights=weights)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(given.grad).all()


def test_weights_are_relative_to_the_rows_largest():
    values = torch.tensor([[3.0, 1.0, 9.0], [0.2, 0.2, 0.2], [0.0, 0.0, 5.0], [1.0, 1e-9, 0.0]], dtype=torch.float64)
    sets = torch.tensor([[True, True, False], [True, True, True], [True, True, False], [True, True, False]])
    weights = relative_weights(values, sets)
    assert weights.dtype == torch.float16
    assert weights[0].tolist() == [1.0, pytest.approx(1 / 3, rel=1e-3), 0.0]
    assert weights[1].tolist() == [1.0, 1.0, 1.0]
    assert weights[2].tolist() == [1.0, 1.0, 0.0]  # nobody said anything of them
    assert weights[3].tolist() == [1.0, LEAST, 0.0]  # hardly believed, and a candidate all the same
