"""Alignment, clean probability and targets against the oracle, and the laws they obey."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from coreg_ray.pure import purify

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(30, 10), (12, 2), (5, 1), (0, 4), (8, 200)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def probabilities(rows, classes, dtype=torch.float64, seed=0, scale=3.0):
    return (torch.randn(rows, classes, generator=seeded(seed), dtype=torch.float64) * scale).softmax(-1).to(dtype)


def random_sets(rows, classes, seed=0):
    return torch.rand(rows, classes, generator=seeded(seed)) < 0.4  # some are empty


def assert_matches(got, expected, dtype):
    """Within two roundings of `dtype`, and never looser than float32's business."""
    tolerance = max(2 * torch.finfo(dtype).eps, 1e-12)
    if dtype == torch.float32:
        tolerance = 3e-6
    expected = np.asarray(expected).reshape(got.shape)
    torch.testing.assert_close(got.double().cpu().numpy(), expected, rtol=tolerance, atol=tolerance)


def assert_distributions(rows):
    assert torch.isfinite(rows).all()
    assert (rows >= 0).all()
    tolerance = rows.shape[-1] * torch.finfo(rows.dtype).eps + 1e-6
    torch.testing.assert_close(
        rows.double().sum(-1), torch.ones(len(rows), dtype=torch.float64), atol=tolerance, rtol=0
    )


every_input = pytest.mark.parametrize(
    ("device", "dtype", "shape"), [(d, t, s) for d in DEVICES for t in DTYPES for s in SHAPES]
)


# --- align ---------------------------------------------------------------------------------------------------------


@every_input
def test_align_agrees_with_the_oracle(device, dtype, shape):
    probs = probabilities(*shape, dtype)
    mean, prior = probabilities(2, shape[1], seed=1, scale=1.0).float()
    if shape[1] > 2:
        mean[1] = prior[2] = 0
    got = purify.align(probs.to(device), mean.to(device), prior.to(device))
    assert got.dtype == dtype
    assert_matches(got, oracle.align(probs.double(), mean.double().numpy(), prior.double().numpy()), dtype)
    assert_distributions(got)


def test_align_with_mean_equal_to_prior_changes_nothing():
    probs, prior = probabilities(20, 7), probabilities(1, 7, seed=1)[0]
    torch.testing.assert_close(purify.align(probs, prior, prior), probs)
    torch.testing.assert_close(purify.align(probs, 3 * prior, prior), probs)  # scale is of no account


def test_align_fills_rows_that_nothing_is_left_of():
    probs = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]])
    mean, prior = torch.tensor([0.0, 0.4, 0.4, 0.2]), torch.tensor([0.4, 0.3, 0.1, 0.0])
    aligned = purify.align(probs, mean, prior)
    torch.testing.assert_close(aligned[:2], torch.tensor([[0.0, 0.75, 0.25, 0.0]] * 2))
    torch.testing.assert_close(aligned[2], torch.tensor([0.0, 0.75, 0.25, 0.0]))
    for zero_mean, some_prior in [(torch.zeros(4), prior), (mean, torch.zeros(4))]:
        torch.testing.assert_close(purify.align(probs, zero_mean, some_prior), torch.full((3, 4), 0.25))


def test_align_survives_the_smallest_numbers():
    tiny = 1e-44  # not even a normal float32
    probs = torch.tensor([[1.0, 0.0, 0.0], [tiny, tiny, tiny], [0.0, 1.0, tiny]])
    for mean in ([tiny, 0.5, 0.5], [tiny, tiny, 1.0], [1.0, 1.0, tiny]):
        assert_distributions(purify.align(probs, torch.tensor(mean), torch.tensor([1.0, tiny, 0.5])))


def test_align_moves_the_mean_towards_the_prior():
    probs, prior = probabilities(500, 5, scale=1.0) ** 2, torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    probs /= probs.sum(1, keepdim=True)
    before, after = probs.mean(0), purify.align(probs, probs.mean(0), prior).mean(0)
    assert (after - prior).abs().sum() < 0.5 * (before - prior).abs().sum()


# --- candidate_loss and normalise_losses ---------------------------------------------------------------------------


@every_input
def test_candidate_loss_agrees_with_the_oracle(device, dtype, shape):
    probs, sets = probabilities(*shape, dtype), random_sets(*shape)
    got = purify.candidate_loss(probs.to(device), sets.to(device))
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert_matches(got, oracle.candidate_loss(probs.double().numpy(), sets.numpy()), got.dtype)


def test_candidate_loss_has_a_floor():
    probs = torch.tensor([[0.0, 1.0], [1e-12, 1.0], [1.0, 0.0]])
    sets = torch.tensor([[True, False], [True, False], [False, False]])
    torch.testing.assert_close(purify.candidate_loss(probs, sets), torch.full((3,), -math.log(1e-8)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalised_losses_run_from_zero_to_one(dtype):
    losses = (torch.rand(50, generator=seeded(), dtype=torch.float64) * 7 + 2).to(dtype)
    for low, high in [(losses.min(), losses.max()), (losses.min().item(), losses.max().item())]:
        scaled = purify.normalise_losses(losses, low, high)
        assert scaled.dtype == dtype
        assert scaled.min() == 0
        assert scaled.max() == 1
        assert_matches(scaled, ((losses - losses.min()).double() / (losses.max() - losses.min()).double()), dtype)


def test_equal_losses_are_normalised_to_zero():
    assert not purify.normalise_losses(torch.full((4,), 0.3), 0.3, 0.3).any()
    assert not purify.normalise_losses(torch.full((4,), 0.3), torch.tensor(0.3), torch.tensor(0.3)).any()
    assert purify.normalise_losses(torch.zeros(0), 0.0, 1.0).shape == (0,)


# --- restrict, refine, guess, sharpen ------------------------------------------------------------------------------


@every_input
def test_restrict_agrees_with_the_oracle(device, dtype, shape):
    probs, sets = probabilities(*shape, dtype), random_sets(*shape)
    got = purify.restrict(probs.to(device), sets.to(device)).cpu()
    assert got.dtype == dtype
    assert_matches(got, oracle.restrict(probs.double().numpy(), sets.numpy()), dtype)
    assert_distributions(got)
    assert not got[sets.any(1)][~sets[sets.any(1)]].any()  # nothing outside S


def test_restrict_without_mass_is_uniform_on_the_set():
    probs = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.2, 0.3, 0.4, 0.1]])
    sets = torch.tensor([[False, True, False, True], [False] * 4, [True] * 4])
    expected = torch.tensor([[0.0, 0.5, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0], [0.2, 0.3, 0.4, 0.1]])
    torch.testing.assert_close(purify.restrict(probs, sets), expected)


@every_input
def test_refine_agrees_with_the_oracle(device, dtype, shape):
    opinion, own = probabilities(*shape, dtype), probabilities(*shape, dtype, seed=1)
    clean = torch.rand(shape[0], generator=seeded(2))
    got = purify.refine(opinion.to(device), own.to(device), clean.to(device))
    assert got.dtype == dtype
    assert_matches(got, oracle.refine(opinion.double().numpy(), own.double().numpy(), clean.double().numpy()), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_refine_trusts_the_opinion_as_far_as_it_is_clean(dtype):
    opinion, own = probabilities(9, 5, dtype), probabilities(9, 5, dtype, seed=1)
    assert torch.equal(purify.refine(opinion, own, torch.ones(9)), opinion)
    assert torch.equal(purify.refine(opinion, own, torch.zeros(9)), own)
    assert purify.refine(opinion, own.float(), torch.zeros(9)).dtype == torch.promote_types(dtype, torch.float32)


@every_input
def test_guess_agrees_with_the_oracle(device, dtype, shape):
    views = [probabilities(*shape, dtype, seed=s) for s in range(4)]
    got = purify.guess(*(v.to(device) for v in views))
    assert got.dtype == dtype
    assert_matches(got, oracle.guess(*(v.double().numpy() for v in views)), dtype)


def test_guess_laws():
    views = [probabilities(6, 4, seed=s) for s in range(4)]
    torch.testing.assert_close(purify.guess(*views[::-1]), purify.guess(*views))
    assert torch.equal(purify.guess(views[0]), views[0])
    with pytest.raises(ValueError, match="at least one"):
        purify.guess()


def test_the_usual_temperature_is_one_half():
    probs = probabilities(6, 4)
    assert torch.equal(purify.sharpen(probs), purify.sharpen(probs, 0.5))


@every_input
@pytest.mark.parametrize("temperature", [0.5, 0.1, 1.0, 3.0])
def test_sharpen_agrees_with_the_oracle(device, dtype, shape, temperature):
    probs = probabilities(*shape, dtype)
    got = purify.sharpen(probs.to(device), temperature)
    assert got.dtype == dtype
    assert_matches(got, oracle.sharpen(probs.double().numpy(), temperature), dtype)
    assert_distributions(got)


def test_sharpen_keeps_the_best_class_and_orders_the_rest():
    probs = probabilities(500, 20, torch.float32, scale=0.01)  # close to uniform
    for temperature in (0.1, 0.5, 1.0):
        sharp = purify.sharpen(probs, temperature)
        assert torch.equal(sharp.argmax(1), probs.argmax(1))
        assert (sharp.max(1).values >= probs.max(1).values - 1e-6).all()


def test_sharpen_limits():
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(purify.sharpen(probs[:3], 1.0), probs[:3])
    for temperature in (1e-4, 1e-30):
        cold = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
        torch.testing.assert_close(purify.sharpen(probs, temperature), cold)
    torch.testing.assert_close(purify.sharpen(probs[:2], 1e9), torch.full((2, 3), 1 / 3))
    assert_distributions(purify.sharpen(torch.tensor([[1e-44, 1e-44, 0.0], [1e-30, 1.0, 1e-44]])))
    torch.testing.assert_close(purify.sharpen(1e-3 * probs), purify.sharpen(probs))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_sharpen_refuses_a_temperature_that_cannot_sharpen(temperature):
    with pytest.raises(ValueError, match="temperature"):
        purify.sharpen(probabilities(2, 3), temperature)


# --- all of them ---------------------------------------------------------------------------------------------------


def test_a_permutation_of_the_classes_permutes_the_answers():
    probs, other, sets = probabilities(30, 8), probabilities(30, 8, seed=1), random_sets(30, 8)
    mean, prior = probabilities(2, 8, seed=2)
    clean, order = torch.rand(30, dtype=torch.float64), torch.randperm(8, generator=seeded())
    for function, arguments in [
        (purify.align, (probs, mean, prior)),
        (purify.restrict, (probs, sets)),
        (purify.guess, (probs, other)),
        (purify.sharpen, (probs,)),
    ]:
        permuted = function(*(a[..., order] for a in arguments))
        torch.testing.assert_close(permuted, function(*arguments)[:, order])
    permuted = purify.refine(probs[:, order], other[:, order], clean)
    torch.testing.assert_close(permuted, purify.refine(probs, other, clean)[:, order])
    assert torch.equal(purify.candidate_loss(probs[:, order], sets[:, order]), purify.candidate_loss(probs, sets))


def test_nothing_inside_a_step_waits_for_the_device():
    with FakeTensorMode():  # tensors without values: looking at one raises
        probs, sets, vector = torch.rand(8, 5), torch.rand(8, 5) < 0.5, torch.rand(5)
        purify.align(probs, vector, vector)
        purify.candidate_loss(probs, sets)
        purify.normalise_losses(probs[:, 0], vector.min(), vector.max())
        purify.sharpen(purify.refine(purify.restrict(probs, sets), purify.guess(probs, probs), torch.rand(8)))
