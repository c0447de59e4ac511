"""Candidate sets against the oracle, and the laws they obey."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch

from coreg_ray.pure.candidates import (
    MODES,
    candidate_sets,
    combine_votes,
    from_ragged,
    synthetic_candidates,
    to_ragged,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def probabilities(rows, prompts, classes, seed=0, scale=3.0):
    return (torch.randn(rows, prompts, classes, generator=seeded(seed), dtype=torch.float64) * scale).softmax(-1)


# --- candidate_sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(50, 5, 10), (20, 1, 3), (10, 4, 1), (30, 27, 100), (0, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sets_agree_with_the_oracle(device, mode, shape, dtype):
    probs = probabilities(*shape).to(dtype)
    settings = {"k": 3, "threshold": 0.15, "ratio": 0.3, "mass": 0.8}
    got = candidate_sets(probs.to(device), mode, **settings).cpu()
    assert got.dtype == torch.bool
    assert got.shape == (shape[0], shape[2])
    assert np.array_equal(got.numpy(), oracle.candidate_sets(probs, mode, **settings).reshape(got.shape))


@pytest.mark.parametrize("mode", MODES)
def test_the_usual_settings_are_those_of_the_method(mode):
    probs = probabilities(100, 3, 30, scale=2.0)
    assert np.array_equal(candidate_sets(probs, mode).numpy(), oracle.candidate_sets(probs, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_average_in_float32(mode, dtype):
    probs = probabilities(40, 4, 8).to(dtype)
    assert torch.equal(candidate_sets(probs, mode), candidate_sets(probs.float(), mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_permutation_of_the_classes_permutes_the_sets(mode):
    probs, order = probabilities(40, 4, 9), torch.randperm(9, generator=seeded())
    assert torch.equal(candidate_sets(probs[:, :, order], mode), candidate_sets(probs, mode)[:, order])


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_the_prompts_does_not_matter_and_no_set_is_empty(mode):
    probs = probabilities(40, 6, 9)
    sets = candidate_sets(probs, mode)
    assert torch.equal(candidate_sets(probs.flip(1), mode), sets)
    assert sets.any(dim=1).all()
    assert candidate_sets(torch.zeros(3, 2, 4), mode).any(dim=1).all()


def test_the_default_is_the_set_of_best_classes():
    probs = probabilities(60, 5, 7)
    for row, chosen in zip(probs, candidate_sets(probs), strict=True):
        assert set(chosen.nonzero().flatten().tolist()) == set(row.argmax(-1).tolist())
    assert torch.equal(candidate_sets(probs), combine_votes(probs.argmax(-1), 7))


def test_cumulative_sets_are_the_smallest_that_reach_the_mass():
    mean = probabilities(200, 1, 12, scale=1.0)[:, 0]
    sets = candidate_sets(mean[:, None], "cumulative", mass=0.7)
    held = mean.masked_fill(~sets, 0)
    assert (held.sum(1) >= 0.7).all()
    assert (held.sum(1) - mean.masked_fill(~sets, 2).amin(1) < 0.7).all()  # without its least member it fails
    assert (mean.masked_fill(~sets, 2).amin(1) >= mean.masked_fill(sets, 0).amax(1)).all()


@pytest.mark.parametrize(
    ("mode", "settings", "expected"),
    [
        ("cumulative", {"mass": 1.0}, [True, True, True, False]),  # rounding must not call in the class without mass
        ("cumulative", {"mass": 0.9}, [True, True, False, False]),
        ("cumulative", {"mass": 0.6}, [True, False, False, False]),
        ("top_k", {"k": 9}, [True, True, True, True]),
        ("threshold", {"threshold": 0.3}, [True, True, False, False]),
        ("threshold", {"threshold": 0.99}, [True, False, False, False]),
        ("ratio", {"ratio": 0.5, "k": 5}, [True, True, False, False]),
        ("ratio", {"ratio": 0.0, "k": 3}, [True, True, True, False]),
        ("ratio", {"ratio": 0.1, "k": 1}, [True, False, False, False]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_are_inclusive(mode, settings, expected, dtype):
    probs = torch.tensor([[[0.6, 0.3, 0.1, 0.0]]], dtype=dtype)
    assert candidate_sets(probs, mode, **settings).tolist() == [expected]


def test_of_equals_the_lower_class_wins():
    probs = torch.full((1, 2, 6), 1 / 6)
    assert candidate_sets(probs).nonzero()[:, 1].tolist() == [0]
    assert candidate_sets(probs, "top_k", k=3).nonzero()[:, 1].tolist() == [0, 1, 2]
    assert candidate_sets(torch.full((1, 1, 4000), 0.1), "top_k", k=3).nonzero()[:, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"mode": "best"}, "union, single"),
        ({"mode": "top_k", "k": 0}, "k=0"),
        ({"mode": "threshold", "threshold": 1.2}, "threshold=1.2"),
        ({"mode": "threshold", "threshold": float("nan")}, "threshold=nan"),
        ({"mode": "ratio", "ratio": -0.1}, "ratio=-0.1"),
        ({"mode": "cumulative", "mass": 0.0}, "mass=0.0"),
    ],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        candidate_sets(probabilities(2, 2, 3), **settings)


@pytest.mark.parametrize("shape", [(4, 3), (4, 0, 3), (4, 3, 0)])
def test_bad_shapes_are_named(shape):
    with pytest.raises(ValueError, match="shape"):
        candidate_sets(torch.zeros(shape))


# --- synthetic_candidates ------------------------------------------------------------------------------------------


def test_synthetic_rates_are_kept():
    rows, classes, q, eta = 40_000, 6, 0.3, 0.25
    labels = torch.randint(0, classes, (rows,), generator=seeded(1))
    sets = synthetic_candidates(labels, classes, q, eta, seeded(2))
    covered = sets.gather(1, labels[:, None]).float().mean().item()
    assert covered == pytest.approx(1 - eta * (1 - q ** (classes - 1)), abs=0.01)  # full sets are left alone
    assert sets.sum(1).float().mean().item() == pytest.approx(1 + q * (classes - 1), abs=0.02)
    kept = sets[sets.gather(1, labels[:, None])[:, 0]]
    assert kept.any(1).all()


def test_a_wrong_class_enters_alike_for_all_classes():
    sets = synthetic_candidates(torch.zeros(20_000, dtype=torch.int64), 5, 0.4, 0.0, seeded())
    assert sets[:, 0].all()
    torch.testing.assert_close(sets[:, 1:].float().mean(0), torch.full((4,), 0.4), atol=0.015, rtol=0)


def test_the_newcomer_is_drawn_evenly_from_outside():
    labels = torch.full((30_000,), 2)
    sets = synthetic_candidates(labels, 6, 0.0, 1.0, seeded())
    assert (sets.sum(1) == 1).all()
    assert not sets[:, 2].any()
    shares = sets.float().mean(0)[[0, 1, 3, 4, 5]]
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.015, rtol=0)


def test_swapping_keeps_the_size_and_only_touches_the_truth_and_one_outsider():
    labels = torch.randint(0, 8, (500,), generator=seeded(3))
    before = synthetic_candidates(labels, 8, 0.4, 0.0, seeded(4))
    after = synthetic_candidates(labels, 8, 0.4, 1.0, seeded(4))
    full = before.all(1)
    assert torch.equal(before.sum(1), after.sum(1))
    assert torch.equal(before[full], after[full])
    assert not after[~full].gather(1, labels[~full, None]).any()
    assert ((before != after).sum(1) == torch.where(full, 0, 2)).all()


@pytest.mark.parametrize(("classes", "q", "eta"), [(1, 0.0, 1.0), (1, 1.0, 0.5), (4, 1.0, 1.0)])
def test_full_sets_are_left_alone(classes, q, eta):
    assert synthetic_candidates(torch.zeros(50, dtype=torch.int64), classes, q, eta, seeded()).all()


def test_synthetic_sets_follow_the_generator():
    labels = torch.arange(100, dtype=torch.int32) % 7
    first, again, other = (synthetic_candidates(labels, 7, 0.2, 0.2, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert synthetic_candidates(labels[:0], 7, 0.2, 0.2, seeded()).shape == (0, 7)


@pytest.mark.parametrize(
    ("classes", "q", "eta", "word"),
    [(3, 1.1, 0.0, "partial_rate"), (3, 0.0, -1.0, "noise_rate"), (0, 0.0, 0.0, "classes"), (2, 0.0, 0.0, "labels")],
)
def test_bad_synthetic_settings_are_named(classes, q, eta, word):
    with pytest.raises(ValueError, match=word):
        synthetic_candidates(torch.tensor([0, 1, 2]), classes, q, eta, seeded())


# --- ragged form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(20, 7), (5, 1), (0, 4)])
def test_ragged_and_back(device, shape):
    sets = (torch.rand(*shape, generator=seeded()) < 0.4).to(device)  # some rows are empty
    classes, counts = to_ragged(sets)
    assert classes.dtype == torch.int32
    assert counts.dtype == torch.int64
    rows = [row.nonzero().flatten().tolist() for row in sets]
    assert counts.tolist() == [len(row) for row in rows]
    assert classes.tolist() == [c for row in rows for c in row]
    assert torch.equal(from_ragged(classes, counts, shape[1]), sets)


def test_bad_ragged_input_is_named():
    with pytest.raises(ValueError, match="counts sum to 3"):
        from_ragged(torch.tensor([0, 1]), torch.tensor([1, 2]), 4)
    with pytest.raises(ValueError, match="classes run over -1"):
        from_ragged(torch.tensor([0, -1]), torch.tensor([1, 1]), 4)
    with pytest.raises(ValueError, match=r"0 \.\. 3"):
        from_ragged(torch.tensor([0, 4]), torch.tensor([1, 1]), 4)
