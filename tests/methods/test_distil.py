"""Distilling: its losses and their fixed points, and what a student may decide of its own target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import frozen_toy
import pytest
import torch
import toy
from pydantic import ValidationError

from coreg_ray.config import MethodConfig
from coreg_ray.methods import distil
from coreg_ray.pure import losses
from coreg_ray.pure.soft_labels import dense_shares, largest_shares
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Rows
from coreg_ray.training.soft import Soft
from coreg_ray.training.state import State
from coreg_ray.training.steps import Batch

MESH = Mesh()


def labels(count: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


def scene(**settings: Any) -> tuple[State, Rows]:
    data = frozen_toy.frozen(toy.toy(count=60))
    data.rows = replace(data.rows, soft=Soft(*largest_shares(labels())))
    return toy.start(data, MESH, student=frozen_toy.STUDENT, kind="distil", epochs=10, **settings)


def one_batch(state: State, rows: Rows, epoch: int = 9) -> Batch:
    return Batch(rows, distil.turns(state, rows, MESH, epoch).of[0].plan, 0, epoch)


def test_the_gradient_at_the_logits_is_prediction_less_label() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    m, p = labels(5).double(), logits.softmax(1)
    (gradient,) = torch.autograd.grad(losses.soft_cross_entropy(logits, m), logits)
    torch.testing.assert_close(gradient, (p - m) / 5)
    (gradient,) = torch.autograd.grad(losses.shared_mass(logits, m), logits)
    torch.testing.assert_close(gradient, (p - m * p / (m * p).sum(1, keepdim=True)) / 5)


def test_fixed_points() -> None:
    """Of one row: the label itself; with its entropy counted, p proportional to exp(m / <m, p>)."""
    m = labels(1, seed=5).double()
    logits = m.log().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.soft_cross_entropy(logits, m), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    z = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([z], lr=0.2)
    for _ in range(3000):
        optimiser.zero_grad()
        (losses.shared_mass(z, m) + losses.negative_entropy(z)).backward()
        optimiser.step()
    p = z.detach().softmax(1)
    torch.testing.assert_close(p, (m / (m * p).sum()).softmax(1), atol=1e-6, rtol=0)


def test_one_hot_labels_make_cross_entropy_and_the_other_loss_that_and_entropy() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    hot = torch.nn.functional.one_hot(torch.arange(6) % 4, 4).float()
    torch.testing.assert_close(losses.shared_mass(logits, hot), losses.soft_cross_entropy(logits, hot))
    assert losses.shared_mass(logits, hot).isfinite()


def test_a_step_learns_the_soft_labels_of_its_rows() -> None:
    state, rows = scene()
    batch, learner = one_batch(state, rows), state.learners[0]
    seen: list[torch.Tensor] = []
    hook = learner.student.classifier.register_forward_hook(lambda *call: seen.append(call[2].detach().clone()))
    terms = distil.step(state, learner, batch, MESH)
    hook.remove()
    assert rows.soft is not None
    expected = losses.soft_cross_entropy(seen[0], rows.soft.dense(batch.labelled, 4, "cpu"))
    assert terms.tolist() == pytest.approx([float(expected), 0])


def test_confidence_moves_targets_to_what_the_student_finds_likeliest_and_never_those_that_are_trusted() -> None:
    state, rows = scene(distil={"confidence": 0.4})
    rows.trusted[one_batch(state, rows).labelled[:3]] = True
    batch = one_batch(state, rows)
    m = distil.labels_of(batch, MESH)
    logits = labels(len(m), seed=8).log()
    moved = distil.with_confidence(state, state.learners[0], batch, logits, m, MESH)
    assert torch.equal(moved[:3], m[:3])
    change = (moved - 0.6 * m)[3:]
    assert change.amax(1).tolist() == pytest.approx([0.4] * len(change))
    early = distil.with_confidence(state, state.learners[0], one_batch(state, rows, 0), logits, m, MESH)
    assert torch.equal(early, m)  # no step has been taken yet
    shares = moved[3:].sub(0.6 * m[3:]).argmax(1).bincount(minlength=4) / len(change)
    wanted = state.learners[0].memory.mean
    plain = logits[3:].softmax(1).argmax(1).bincount(minlength=4) / len(change)
    assert (shares - wanted).abs().sum() <= (plain - wanted).abs().sum() + 0.3


def test_no_confidence_is_plain_distilling() -> None:
    state, rows = scene()
    batch = one_batch(state, rows)
    m = distil.labels_of(batch, MESH)
    assert distil.with_confidence(state, state.learners[0], batch, m.log(), m, MESH) is m


def test_largest_shares_are_exact_for_few_classes_and_lose_no_more_than_the_tail() -> None:
    few, many = labels(20), torch.randn(20, 40, generator=torch.Generator().manual_seed(2)).mul(3).softmax(1)
    torch.testing.assert_close(dense_shares(*largest_shares(few), 4), few, atol=2e-3, rtol=0)
    whole = dense_shares(*largest_shares(many), 40)
    torch.testing.assert_close(whole.sum(1), torch.ones(20))
    tail = 1 - many.topk(16, dim=1).values.sum(1)
    assert ((whole - many).abs().sum(1) / 2 <= tail + 2e-3).all()


def test_only_distilling_learns_from_soft_labels() -> None:
    assert MethodConfig(kind="distil").learns_from == "soft"
    assert MethodConfig(kind="distil", labels="single").learns_from == "single"
    assert MethodConfig().learns_from == "candidates"
    with pytest.raises(ValidationError, match=r"labels=soft with method.kind=coreg"):
        MethodConfig(labels="soft")
