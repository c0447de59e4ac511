"""The four losses on logits against the oracle, their gradients, and the laws they obey."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from coreg_ray.pure import losses

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(20, 10), (6, 2), (4, 1), (0, 5)]
NAMES = ["soft_cross_entropy", "consistency", "partial_cross_entropy", "negative_entropy"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_logits(rows, classes, dtype=torch.float64, seed=0, scale=3.0):
    return (torch.randn(rows, classes, generator=seeded(seed), dtype=torch.float64) * scale).to(dtype)


def second_argument(name, rows, classes, dtype=torch.float64, seed=1):
    """What the loss takes beside its logits: targets, candidate sets (some full, some empty) or nothing."""
    if name == "negative_entropy":
        return ()
    if name == "partial_cross_entropy":
        sets = torch.rand(rows, classes, generator=seeded(seed)) < 0.4
        sets[: rows // 4] = True
        return (sets,)
    targets = random_logits(rows, classes, seed=seed).softmax(1)
    targets[targets < 0.01] = 0
    return (targets.to(dtype),)


def tolerance(dtype):
    return 1e-10 if dtype == torch.float64 else 1e-5  # narrow types are computed in float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [3.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_oracle(name, scale, shape, dtype, device):
    logits, other = random_logits(*shape, dtype, scale=scale).clamp(-3e4, 3e4), second_argument(name, *shape, dtype)
    got = getattr(losses, name)(logits.to(device), *(o.to(device) for o in other))
    assert got.shape == ()
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    expected = getattr(oracle, name)(logits.double().tolist(), *(o.double().tolist() for o in other))
    assert got.item() == pytest.approx(expected, rel=tolerance(dtype), abs=tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_have_finite_gradients(name, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4], [-1e4, 1e4, 1e4]]).to(dtype)
    logits.requires_grad_()
    targets = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]).to(dtype)
    other = {"negative_entropy": (), "partial_cross_entropy": (targets > 0,)}.get(name, (targets,))
    loss = getattr(losses, name)(logits, *other)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_right(name):
    logits = random_logits(8, 5).requires_grad_()
    other = second_argument(name, 8, 5)
    assert torch.autograd.gradcheck(lambda x: getattr(losses, name)(x, *other), (logits,))


@pytest.mark.parametrize("name", NAMES)
def test_permuting_rows_or_classes_changes_nothing(name):
    logits, other = random_logits(12, 6), second_argument(name, 12, 6)
    rows, classes = torch.randperm(12, generator=seeded(3)), torch.randperm(6, generator=seeded(4))
    whole = getattr(losses, name)(logits, *other)
    torch.testing.assert_close(
        getattr(losses, name)(logits[rows][:, classes], *(o[rows][:, classes] for o in other)), whole
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_added_to_the_logits_changes_nothing(name):
    logits, other = random_logits(12, 6), second_argument(name, 12, 6)
    torch.testing.assert_close(getattr(losses, name)(logits + 100, *other), getattr(losses, name)(logits, *other))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_add_up(name, as_tensor):
    logits, other = random_logits(12, 6), second_argument(name, 12, 6)
    rows = int(losses.informative(other[0]).sum()) if name == "partial_cross_entropy" else 12
    denominator = torch.tensor(rows) if as_tensor else rows
    parts = [
        getattr(losses, name)(logits[part], *(o[part] for o in other), denominator=denominator)
        for part in (slice(0, 5), slice(5, 5), slice(5, 12))
    ]
    torch.testing.assert_close(sum(parts), getattr(losses, name)(logits, *other))


@pytest.mark.parametrize("denominator", [None, 7, 0, torch.tensor(0)])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_costs_nothing_and_has_a_gradient(name, denominator):
    weights = torch.ones(4, requires_grad=True)
    loss = getattr(losses, name)(torch.zeros(0, 4) * weights, *second_argument(name, 0, 4), denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(weights.grad, torch.zeros(4))


def test_cross_entropy_of_one_hot_targets_is_the_usual_one():
    logits, labels = random_logits(9, 5), torch.arange(9) % 5
    one_hot = torch.nn.functional.one_hot(labels, 5).double()
    torch.testing.assert_close(
        losses.soft_cross_entropy(logits, one_hot), torch.nn.functional.cross_entropy(logits, labels)
    )


def test_partial_cross_entropy_ignores_rows_that_say_nothing():
    logits = random_logits(5, 4).requires_grad_()
    sets = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4, [False, True, True, False], [True] * 4])
    losses.partial_cross_entropy(logits, sets).backward()
    assert losses.informative(sets).tolist() == [False, True, False, True, False]
    assert not logits.grad[[0, 2, 4]].any()
    assert logits.grad[[1, 3]].any(1).all()
    nothing = losses.partial_cross_entropy(logits, torch.ones(5, 4, dtype=torch.bool))
    assert nothing.item() == 0
    nothing.backward()


def test_partial_cross_entropy_limits():
    logits, labels = random_logits(9, 5), torch.arange(9) % 5
    single = torch.nn.functional.one_hot(labels, 5).bool()
    usual = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(losses.partial_cross_entropy(logits, single), usual)
    wider = single | (torch.arange(5) == 0)
    assert losses.partial_cross_entropy(logits, wider) <= usual  # a larger set is easier to hit
    assert losses.partial_cross_entropy(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])) < 1e-6


def test_negative_entropy_lies_between_its_limits():
    assert losses.negative_entropy(torch.zeros(3, 8)).item() == pytest.approx(-math.log(8))
    assert losses.negative_entropy(torch.eye(3) * 1e4).item() == 0
    assert -math.log(10) <= losses.negative_entropy(random_logits(50, 10)).item() <= 0


def test_consistency_limits():
    logits = random_logits(6, 4)
    assert losses.consistency(logits, logits.softmax(1)).item() == pytest.approx(0, abs=1e-30)
    wrong = losses.consistency(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert wrong.item() == 1


def test_no_loss_waits_for_the_device():
    with FakeTensorMode():  # tensors without values: looking at one raises
        logits, targets, sets = torch.rand(8, 5), torch.rand(8, 5), torch.rand(8, 5) < 0.5
        losses.soft_cross_entropy(logits, targets)
        losses.consistency(logits, targets, denominator=torch.ones(()))
        losses.partial_cross_entropy(logits, sets)
        losses.negative_entropy(logits)
