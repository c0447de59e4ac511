"""Prototypes: the closed form against one row after the other."""

from __future__ import annotations

import oracle
import pytest
import torch

from coreg_ray.pure.prototypes import update_prototypes

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999, 1.0])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 3), (64, 5), (40, 100)])
def test_agrees_with_row_after_row(device, momentum, rows, classes):
    prototypes, features = unit(classes, 6), unit(rows, 6, seed=1)
    prototypes[::3] = 0
    labels = torch.randint(-1, classes, (rows,), generator=torch.Generator().manual_seed(2))
    expected = oracle.update_prototypes(prototypes.numpy(), features.numpy(), labels.numpy(), momentum)
    got = update_prototypes(prototypes.to(device), features.to(device), labels.to(device), momentum)
    torch.testing.assert_close(got.cpu().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_narrow_types_agree_within_their_rounding(device, dtype):
    prototypes, features = (
        unit(4, 8, dtype=torch.float32).to(dtype),
        unit(300, 8, seed=1, dtype=torch.float32).to(dtype),
    )
    labels = torch.arange(300) % 4
    expected = oracle.update_prototypes(prototypes.double().numpy(), features.double().numpy(), labels.numpy())
    got = update_prototypes(prototypes.to(device), features.to(device), labels.to(device))
    assert got.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double().cpu().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_classes_without_rows_keep_every_bit():
    prototypes = torch.randn(5, 8) * 3  # not even normalised
    prototypes[4] = 0
    before = prototypes.clone()
    updated = update_prototypes(prototypes, unit(3, 8, dtype=torch.float32), torch.tensor([1, -1, 1]))
    assert torch.equal(updated[[0, 2, 3, 4]], before[[0, 2, 3, 4]])
    assert not torch.equal(updated[1], before[1])
    assert torch.equal(prototypes, before)  # the input is not written to


def test_first_row_of_an_unseen_class_becomes_its_prototype():
    features = unit(1, 8, dtype=torch.float32)
    updated = update_prototypes(torch.zeros(3, 8), features, torch.tensor([2]))
    torch.testing.assert_close(updated[2], features[0])
    assert not updated[:2].any()


def test_padding_is_invisible():
    prototypes, features, labels = unit(3, 4), unit(6, 4, seed=1), torch.tensor([0, 1, 0, 2, 2, 0])
    padded = torch.cat([features[:2], torch.full((2, 4), 1e6, dtype=torch.float64), features[2:]])
    padded_labels = torch.cat([labels[:2], torch.tensor([-1, -7]), labels[2:]])
    torch.testing.assert_close(
        update_prototypes(prototypes, padded, padded_labels, 0.9), update_prototypes(prototypes, features, labels, 0.9)
    )


def test_later_rows_weigh_more_and_two_batches_are_not_one():
    prototypes, features = torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    updated = update_prototypes(prototypes, features, torch.tensor([0, 0]), 0.5)
    torch.testing.assert_close(updated[0], torch.tensor([1.0, 2.0]) / 5**0.5)


@pytest.mark.parametrize("labels", [torch.zeros(0, dtype=torch.int64), torch.tensor([-1, -1])])
def test_nothing_to_learn_changes_nothing(labels):
    prototypes = unit(3, 4)
    assert torch.equal(update_prototypes(prototypes, unit(len(labels), 4), labels), prototypes)


def test_a_zero_sum_keeps_the_old_prototype():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    features = torch.tensor([[-1.0, 0.0], [0.0, 0.0]])
    assert torch.equal(update_prototypes(prototypes, features, torch.tensor([0, 1]), 0.5), prototypes)


def test_carries_no_gradient_and_takes_int32_classes():
    features = unit(4, 8).requires_grad_()
    updated = update_prototypes(unit(3, 8, seed=1), features, torch.tensor([0, 1, 2, 0], dtype=torch.int32))
    assert not updated.requires_grad


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_refuses_a_momentum_that_is_no_weight(momentum):
    with pytest.raises(ValueError, match="momentum"):
        update_prototypes(unit(2, 2), unit(1, 2), torch.tensor([0]), momentum)
