"""ILL: one step against the formulae, what it refuses, and that its matrix travels with checkpoints and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import frozen_toy
import pytest
import torch
import toy
from torch.nn import functional as F

from coreg_ray.errors import UserError
from coreg_ray.methods import KINDS, ill, refuse_classes
from coreg_ray.pure.transition import scale_for
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import build_student, frozen_copy
from coreg_ray.training.rows import Rows, make_rows
from coreg_ray.training.state import State
from coreg_ray.training.steps import Batch, strong, weak

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> toy.Toy:
    return frozen_toy.frozen(toy.toy(count=80))


def scene(data: toy.Toy, **settings: Any) -> tuple[State, Rows]:
    state, rows = toy.start(data, Mesh(), student=frozen_toy.STUDENT, kind="ill", epochs=10, ill=settings)
    random = torch.Generator().manual_seed(8)
    for learner in state.learners:
        learner.memory.weights = torch.eye(4) + 0.2 * torch.randn(4, 4, generator=random)
    return state, rows


def first_batch(state: State, rows: Rows) -> Batch:
    return Batch(rows, ill.turns(state, rows, Mesh(), 3).of[0].plan, 0, 3)


def test_a_step_is_what_the_formulae_say(data: toy.Toy) -> None:
    state, rows = scene(data, balance=0.4)
    learner, batch = state.learners[0], first_batch(state, rows)
    index, sets = batch.labelled, rows.candidates(batch.labelled, CPU)
    weights = learner.memory.weights.detach().clone().requires_grad_()
    network = frozen_copy(learner.student)
    images = rows.take(index, CPU)
    shown = (weak(state, learner, batch, index, "weak", images), strong(state, learner, batch, index, "strong", images))
    (w, _), (s, _) = (network(views) for views in shown)

    scaled = scale_for(4) * F.normalize(F.normalize(weights, dim=0), dim=1)
    p, confusion = w.softmax(1), scaled.softmax(1).detach()
    evidence = torch.where(sets[:, None, :], confusion, 1.0).prod(2)  # (B, K)
    evidence[sets.all(1)] = 1.0
    posterior = p * evidence / (p * evidence).sum(1, keepdim=True)
    taken = p @ scaled.softmax(0)
    transfer = -((1 - taken / taken.sum(1, keepdim=True)).log() * ~sets).sum(1).mean()
    (gradient,) = torch.autograd.grad(transfer, weights)
    expected = [
        float(transfer.detach()),
        float(-(posterior * s.log_softmax(1)).sum(1).mean()),
        float(0.4 * (0.25 * (0.25 / p.mean(0)).log()).sum()),
    ]
    terms = ill.step(state, learner, batch, Mesh())
    assert terms.tolist() == pytest.approx(expected, abs=1e-5)
    rate = learner.optimizer.learning_rate
    torch.testing.assert_close(learner.memory.weights.detach(), weights.detach() - rate * gradient)
    assert learner.memory.weights.grad is None


def test_more_classes_than_its_matrix_takes_are_refused_before_training() -> None:
    rows = make_rows(torch.arange(2), torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.eye(2, 2001).bool())
    own = build_student(frozen_toy.STUDENT, 4, 3)
    with pytest.raises(UserError, match=r"2001 classes exceed its limit of 2000; choose another method.kind"):
        ill.remember(toy.method(kind="ill"), own, rows, Mesh())
    with pytest.raises(UserError, match=r"2001 classes exceed its limit of 2000"):
        refuse_classes("ill", 2001)
    refuse_classes("pico", 20_000)
    allowed = make_rows(torch.arange(2), torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.eye(2, 2000).bool())
    assert ill.remember(toy.method(kind="ill"), own, allowed, Mesh()).weights.shape == (2000, 2000)


def test_the_matrix_goes_on_learning_after_a_checkpoint(data: toy.Toy, tmp_path: Path) -> None:
    state, rows = scene(data)
    state.epoch = 1
    checkpoint.save(state, Folder.at(str(tmp_path)), "toy", Mesh())
    resumed, _ = toy.start(data, Mesh(), student=frozen_toy.STUDENT, kind="ill", epochs=10)
    newest = checkpoint.newest(Folder.at(str(tmp_path)))
    assert newest is not None
    checkpoint.resume(resumed, newest, Mesh())
    for one in (state, resumed):
        ill.step(one, one.learners[0], first_batch(one, rows), Mesh())
    before, after = (one.learners[0].memory.weights for one in (state, resumed))
    assert torch.equal(before, after)
    assert not torch.equal(after, state.learners[1].memory.weights)


def test_manual_labels_are_their_own_targets_and_teach_the_matrix_nothing(data: toy.Toy) -> None:
    labels = torch.arange(80) % 4
    rows = make_rows(
        data.rows.numbers, data.rows.pixels, F.one_hot(labels, 4).bool(), torch.ones(80, dtype=torch.bool),
        data.rows.features,
    )  # fmt: skip
    state, rows = scene(replace(data, rows=rows))
    learner, batch = state.learners[0], first_batch(state, rows)
    before = learner.memory.weights.detach().clone()
    views = weak(state, learner, batch, batch.labelled, "weak", rows.take(batch.labelled, CPU))
    _, log_confusion = ill.readings(state, learner)
    targets = ill.targets_of(state, learner, batch, views, log_confusion.detach())
    assert torch.equal(targets, F.one_hot(labels[batch.labelled], 4).float())
    terms = ill.step(state, learner, batch, Mesh())
    assert terms[0] == 0
    assert torch.equal(learner.memory.weights.detach(), before)


def test_a_scale_of_ones_own_decides_how_sure_it_can_get(data: toy.Toy) -> None:
    diagonals = []
    for settings in ({}, {"scale": 2.0}):
        state, rows = toy.start(data, Mesh(), student=frozen_toy.STUDENT, kind="ill", epochs=10, ill=settings)
        diagonals.append(KINDS["ill"].turns(state, rows, Mesh(), 0).figures["diagonal/a"])
    assert diagonals == pytest.approx([0.982, 0.711], abs=1e-3)
