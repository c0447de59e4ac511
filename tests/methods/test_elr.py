"""ELR: its term against the formula and autograd, one step, and its laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import frozen_toy
import pytest
import torch
import toy
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.methods import elr
from coreg_ray.pure import losses, slots
from coreg_ray.training.fit import train_epoch
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import pack, unpack
from coreg_ray.training.plan import whole_plan
from coreg_ray.training.rows import Rows, make_rows
from coreg_ray.training.state import State
from coreg_ray.training.steps import Batch, mixing_order, mixing_share, weak

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> toy.Toy:
    return frozen_toy.frozen(toy.toy(count=80))


def single(data: toy.Toy, trusted: Tensor | None = None) -> toy.Toy:
    """The same rows with the first of their candidates alone."""
    sets = data.rows.candidates(torch.arange(80), CPU)
    only = F.one_hot(sets.float().argmax(1), 4).bool()
    return replace(data, rows=make_rows(data.rows.numbers, data.rows.pixels, only, trusted, data.rows.features))


def scene(data: toy.Toy, **settings: Any) -> tuple[State, Rows]:
    own = {name: settings.pop(name) for name in ("mixup_alpha", "exchanges") if name in settings}
    return toy.start(data, Mesh(), student=frozen_toy.STUDENT, kind="elr", epochs=10, elr=settings, **own)


def batches(state: State, rows: Rows, epoch: int) -> list[Batch]:
    plan = whole_plan(rows, state.seed, 0, epoch, state.method.batch_size, Mesh(), "elr")
    return [Batch(rows, plan, number, epoch) for number in range(plan.steps)]


def take(state: State, batch: Batch) -> Tensor:
    return elr.step(state, state.learners[0], batch, Mesh())


@torch.no_grad()
def logits_of(state: State, batch: Batch) -> Tensor:
    learner, index = state.learners[0], batch.labelled
    views = weak(state, learner, batch, index, "weak", batch.rows.take(index, CPU))
    return learner.student(views)[0]


def targets_of(state: State, index: Tensor) -> Tensor:
    memory = state.learners[0].memory
    return slots.dense(memory.classes[:, index], memory.values[:, index], 4)


def test_the_term_and_its_gradient_are_the_formulae() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 5, generator=random, dtype=torch.float64).requires_grad_()
    targets = 0.9 * torch.rand(9, 5, generator=random, dtype=torch.float64).softmax(1)
    value = losses.early_learning(logits, targets)
    p = logits.softmax(1).detach()
    near = (targets * p).sum(1, keepdim=True)
    assert float(value.detach()) == pytest.approx(float((1 - near).log().mean()))
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, p * (near - targets) / (1 - near) / 9)
    parts = [
        losses.early_learning(*part, denominator=9) for part in zip(logits.split(4), targets.split(4), strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), value)
    assert losses.early_learning(logits[:0], targets[:0]) == 0


def test_a_prediction_beyond_its_limits_pulls_no_more() -> None:
    logits = torch.tensor([[30.0, 0.0, 0.0], [0.0, 12.0, 3.0]]).requires_grad_()
    value = losses.early_learning(logits, torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.0, 0.1]]))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0, 0, 0]
    assert logits.grad[1, 2] < 0  # the class below 1e-4 gives no gradient, this one does


def test_a_step_is_the_sum_of_both_terms_with_a_target_moved_before_its_use(data: toy.Toy) -> None:
    state, rows = scene(data, momentum=0.6, weight=2.0)
    whole = torch.zeros(80, 4)
    for epoch in (0, 1):
        for batch in batches(state, rows, epoch):
            index, logits = batch.labelled, logits_of(state, batch)
            clamped = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
            whole[index] = 0.6 * whole[index] + 0.4 * clamped / clamped.sum(1, keepdim=True)
            sets = rows.candidates(index, CPU)
            informative = ~sets.all(1)
            inside = (logits.softmax(1) * sets).sum(1)
            terms = take(state, batch)
            assert float(terms[0]) == pytest.approx(float(-inside[informative].log().mean()), abs=1e-5)
            pull = (1 - (whole[index] * clamped).sum(1)).log().mean()
            assert float(terms[1]) == pytest.approx(2 * float(pull), abs=5e-3)
    torch.testing.assert_close(targets_of(state, torch.arange(80)), whole, atol=2e-3, rtol=0)


def test_targets_sum_to_one_minus_momentum_to_the_visits(data: toy.Toy) -> None:
    state, rows = scene(data, momentum=0.7)
    for epoch in range(3):
        for batch in batches(state, rows, epoch):
            take(state, batch)
        sums = targets_of(state, torch.arange(80)).sum(1)
        torch.testing.assert_close(sums, torch.full((80,), 1 - 0.7 ** (epoch + 1)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"momentum": 1.0}])
def test_without_weight_or_targets_it_is_cross_entropy(data: toy.Toy, settings: dict[str, Any]) -> None:
    data = single(data)
    state, rows = scene(data, **settings)
    other, _ = scene(data)
    for batch in batches(state, rows, 0):
        learner, index = other.learners[0], batch.labelled
        labels = rows.candidates(index, CPU).float().argmax(1)
        views = weak(other, learner, batch, index, "weak", rows.take(index, CPU))
        loss = F.cross_entropy(learner.student(views)[0], labels)
        loss.backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        terms = take(state, batch)
        assert float(terms[0]) == pytest.approx(float(loss.detach()), abs=1e-6)
        assert terms[1] == 0
    torch.testing.assert_close(pack(state.learners[0].student), pack(other.learners[0].student))
    if "momentum" in settings:
        assert targets_of(state, torch.arange(80)).sum() == 0


def test_without_momentum_the_target_is_the_prediction(data: toy.Toy) -> None:
    state, rows = scene(data, momentum=0.0, weight=1.0)
    batch = batches(state, rows, 0)[0]
    probs = logits_of(state, batch).softmax(1)
    terms = take(state, batch)
    torch.testing.assert_close(targets_of(state, batch.labelled), probs, atol=1e-3, rtol=0)
    assert float(terms[1]) == pytest.approx(float((1 - probs.square().sum(1)).log().mean()), abs=2e-3)
    assert terms[1] <= 0


def test_the_order_of_rows_in_a_batch_does_not_matter(data: toy.Toy) -> None:
    terms, weights = [], []
    for turned in (False, True):
        state, rows = scene(data)
        batch = batches(state, rows, 0)[0]
        plan = batch.plan
        if turned:
            plan = replace(plan, labelled=[index.flip(0) for index in plan.labelled])
        terms.append(take(state, replace(batch, plan=plan)))
        weights.append(pack(state.learners[0].student))
    torch.testing.assert_close(*terms)
    torch.testing.assert_close(*weights)


def test_manual_labels_are_learnt_by_cross_entropy_alone(data: toy.Toy) -> None:
    trusted = torch.arange(80) % 3 == 0
    state, rows = scene(single(data, trusted))
    for epoch in range(2):
        for batch in batches(state, rows, epoch):
            take(state, batch)
    assert targets_of(state, torch.arange(80)[trusted]).sum() == 0
    assert bool((targets_of(state, torch.arange(80)[~trusted]).sum(1) > 0.4).all())
    only = single(data, torch.ones(80, dtype=torch.bool))
    state, rows = scene(only)
    assert all(take(state, batch)[1] == 0 for batch in batches(state, rows, 0))


def test_rows_whose_target_is_no_candidate_count_as_wrong(data: toy.Toy) -> None:
    trusted = torch.arange(80) >= 70
    state, rows = scene(single(data, trusted))
    labels = rows.candidates(torch.arange(80), CPU).float().argmax(1)
    memory = state.learners[0].memory
    shifted = torch.where(torch.arange(80) % 4 == 0, (labels + 1) % 4, labels)
    slots.blend(memory.classes, memory.values, torch.arange(80), 0.5, F.one_hot(shifted, 4).float())
    wrong = (torch.arange(80) % 4 == 0) & ~trusted
    assert elr.clean_share(state.learners[0], rows, Mesh()) == 1 - int(wrong.sum()) / 80
    turns = elr.turns(state, rows, Mesh(), 1)
    assert turns.figures["clean/a"] == 1 - int(wrong.sum()) / 80
    assert elr.turns(state, rows, Mesh(), 0).figures == {}


def test_elr_plus_is_elr_with_the_others_target_where_nothing_is_mixed_nor_averaged(data: toy.Toy) -> None:
    """With as many exchanges as steps, against both networks in a plain loop."""
    settings = {"momentum": 0.6, "weight": 2.0}
    unmixed = {"plus": True, "average": 0.0, "mixup_alpha": 1e-3, "exchanges": 3}
    state, rows = scene(data, **settings, **unmixed)
    plain, _ = scene(data, **settings)
    turns = elr.turns(state, rows, Mesh(), 0)
    plans = [turns.of[network].plan for network in (0, 1)]
    assert plans[0].steps == 3
    assert not turns.alone
    train_epoch(state, rows, Mesh(), 0, turns, elr)
    for number in range(3):
        before = [pack(learner.student) for learner in plain.learners]
        for network, learner in enumerate(plain.learners):
            batch = Batch(rows, plans[network], number, 0)
            unpack(before[1 - network], learner.peer)
            views = weak(plain, learner, batch, batch.labelled, "weak", rows.take(batch.labelled, CPU))
            with torch.no_grad():
                probs = learner.peer(views)[0].softmax(1)
            targets = elr.move_targets(plain, learner, batch, probs)
            logits, _ = learner.student(views)
            sets = rows.candidates(batch.labelled, CPU)
            loss = losses.partial_cross_entropy(logits, sets) + 2 * losses.early_learning(logits, targets)
            loss.backward()
            learner.optimizer.step()
            learner.optimizer.zero_grad()
    for ours, theirs in zip(state.learners, plain.learners, strict=True):
        torch.testing.assert_close(pack(ours.student), pack(theirs.student), atol=1e-5, rtol=1e-4)
        assert torch.equal(pack(ours.memory.average), pack(ours.student))
        assert torch.equal(pack(ours.memory.teacher), pack(ours.peer))


def test_a_step_of_elr_plus_is_what_the_formulae_say(data: toy.Toy) -> None:
    state, rows = scene(single(data), momentum=0.6, weight=2.0, plus=True, average=0.9, average_ramp=0.0, ramp=0.5)
    turns = elr.turns(state, rows, Mesh(), 2)
    learner, batch = state.learners[0], Batch(rows, turns.of[0].plan, 0, 2)
    index, before = batch.labelled, pack(learner.student)
    views = weak(state, learner, batch, index, "weak", rows.take(index, CPU)).float()
    share, other = mixing_share(state, learner, batch), mixing_order(state, learner, batch, Mesh(), len(index))
    with torch.no_grad():
        logits, _ = learner.student(share * views + (1 - share) * views[other])
        taught = learner.memory.teacher(views)[0].softmax(1).clamp(1e-4, 1 - 1e-4)
    targets = 0.4 * taught / taught.sum(1, keepdim=True)
    labels = rows.candidates(index, CPU).float()
    mixed_labels, mixed = (share * each + (1 - share) * each[other] for each in (labels, targets))
    p = logits.softmax(1)
    terms = elr.mixed_step(state, learner, batch, Mesh())
    assert float(terms[0]) == pytest.approx(float(-(mixed_labels * p.log()).sum(1).mean()), abs=1e-5)
    early = (1 - (mixed * p.clamp(1e-4, 1 - 1e-4)).sum(1)).log().mean()
    ramped = float(torch.tensor(-5 * (1 - 2 / 5) ** 2).exp())
    assert float(terms[1]) == pytest.approx(2 * ramped * float(early), abs=1e-3)
    torch.testing.assert_close(pack(learner.memory.average), 0.9 * before + 0.1 * pack(learner.student))


def test_manual_labels_have_no_target_in_elr_plus(data: toy.Toy) -> None:
    trusted = torch.arange(80) % 3 == 0
    state, rows = scene(single(data, trusted), plus=True)
    for epoch in range(2):
        train_epoch(state, rows, Mesh(), epoch, elr.turns(state, rows, Mesh(), epoch), elr)
    assert targets_of(state, torch.arange(80)[trusted]).sum() == 0
    assert bool((targets_of(state, torch.arange(80)[~trusted]).sum(1) > 0.4).all())


def test_ramps() -> None:
    assert elr.ramp(3, 0) == elr.ramp(4, 4) == elr.ramp(9, 4) == 1
    assert elr.ramp(0, 4) == pytest.approx(0.0067, abs=1e-4)
    assert elr.ramp(2, 4) == pytest.approx(0.2865, abs=1e-4)
