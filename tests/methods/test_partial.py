"""The partial-label family: one step of each against its formula, and its laws."""

from __future__ import annotations

import math
from typing import Any

import frozen_toy
import pytest
import torch
import toy
from torch import Tensor

from coreg_ray.methods import partial
from coreg_ray.pure import losses, purify
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn
from coreg_ray.training.networks import pack
from coreg_ray.training.rows import Rows, make_rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch

CPU = torch.device("cpu")


def scene(loss: str, rows: Rows | None = None, **settings: Any) -> tuple[State, Rows]:
    data = frozen_toy.frozen(toy.toy(count=60))
    if rows is not None:
        data.rows = rows
    section = {"loss": loss, **settings.pop("partial", {})}
    return toy.start(data, Mesh(), student=frozen_toy.STUDENT, kind="partial", partial=section, epochs=4, **settings)


def with_sets(candidates: Tensor) -> Rows:
    rows = frozen_toy.frozen(toy.toy(count=60)).rows
    return make_rows(rows.numbers, rows.pixels, candidates, features=rows.features)


def turn_of(state: State, rows: Rows, epoch: int) -> tuple[Learner, Turn]:
    learner = state.learners[0]
    return learner, partial.turns(state, rows, Mesh(), epoch).of[0]


def dense(learner: Learner, rows: Rows) -> Tensor:
    """All confidences (N, K)."""
    return rows.scatter(torch.arange(len(rows)), learner.memory.confidence, CPU).float()


def test_cc_and_proden_start_from_even_confidences_and_follow_the_network_on_the_set() -> None:
    state, rows = scene("proden")
    learner, turn = turn_of(state, rows, 0)
    sets = rows.candidates(torch.arange(len(rows)), CPU)
    torch.testing.assert_close(dense(learner, rows), sets / sets.sum(1, keepdim=True), atol=1e-3, rtol=0)
    batch = Batch(rows, turn.plan, 0, 0)
    turn.step(state, learner, batch, Mesh())
    now = dense(learner, rows)
    untouched = torch.ones(len(rows), dtype=torch.bool)
    untouched[batch.labelled] = False
    torch.testing.assert_close(now.sum(1), torch.ones(len(rows)), atol=2e-3, rtol=0)
    assert not now[~sets].any()
    even = (sets / sets.sum(1, keepdim=True)).half().float()
    assert torch.equal(now[untouched], even[untouched])
    several = sets[batch.labelled].sum(1) > 1
    assert not torch.equal(now[batch.labelled][several], even[batch.labelled][several])


def test_crdpll_is_its_formula_on_its_own_views() -> None:
    """Both terms of a step, and the confidences after it, from the logits that the step saw."""
    state, rows = scene("crdpll")
    learner, turn = turn_of(state, rows, 1)
    batch = Batch(rows, turn.plan, 1, 1)
    seen: list[Tensor] = []
    hook = learner.student.classifier.register_forward_hook(lambda *call: seen.append(call[2].detach().clone()))
    before = dense(learner, rows)[batch.labelled].double()
    terms = turn.step(state, learner, batch, Mesh())
    hook.remove()
    (logits,) = seen
    probs = logits.double().softmax(1).view(3, len(batch.labelled), 4)
    outside = ~rows.candidates(batch.labelled, CPU)
    ramp = min((1 + 1 / turn.plan.steps) / 2, 1)
    kl = sum((torch.xlogy(before, before) - before * view.log()).sum(1).mean() for view in probs)
    negative = -((1 - probs[0]).log() * outside).sum(1).mean()
    assert terms.tolist() == pytest.approx([float(ramp * kl), float(negative)], rel=1e-4)
    product = probs.prod(0) ** (1 / 3) * ~outside
    torch.testing.assert_close(
        dense(learner, rows)[batch.labelled].double(), product / product.sum(1, keepdim=True), atol=1e-3, rtol=0
    )


def test_a_single_candidate_is_believed_for_ever() -> None:
    single = torch.nn.functional.one_hot(torch.arange(60) % 4).bool()
    for loss in ("proden", "crdpll"):
        state, rows = scene(loss, with_sets(single))
        learner, turn = turn_of(state, rows, 1)
        for number in range(turn.plan.steps):
            turn.step(state, learner, Batch(rows, turn.plan, number, 1), Mesh())
        assert torch.equal(dense(learner, rows).bool(), rows.candidates(torch.arange(60), CPU))


def test_a_set_of_all_classes_excludes_nothing() -> None:
    state, rows = scene("crdpll", with_sets(torch.ones(60, 4, dtype=torch.bool)))
    learner, turn = turn_of(state, rows, 1)
    terms = turn.step(state, learner, Batch(rows, turn.plan, 0, 1), Mesh())
    assert terms[0] > 0
    assert terms[1] == 0


def test_sound_sets_make_the_robust_variant_the_published_one() -> None:
    plain, rows = scene("crdpll")
    robust, _ = scene("crdpll", partial={"robust": True})
    learner, turn = turn_of(plain, rows, 1)
    for number in range(turn.plan.steps):
        batch = Batch(rows, turn.plan, number, 1)
        turn.step(plain, learner, batch, Mesh())
        partial.crdpll_step(robust, robust.learners[0], batch, Mesh(), torch.ones(len(rows)))
    assert torch.equal(pack(learner.student), pack(robust.learners[0].student))


def test_the_robust_variant_judges_the_sets_from_the_second_epoch_on() -> None:
    state, rows = scene("crdpll", partial={"robust": True})
    for epoch in (0, 1):
        learner, turn = turn_of(state, rows, epoch)
        assert bool(learner.memory.losses.isfinite().any()) == bool(epoch)
    clean = turn.step.keywords["clean"]  # type: ignore[attr-defined]
    assert 0 < float(clean.mean()) < 1


def test_doubt_weakens_what_the_robust_variant_pushes_away() -> None:
    state, rows = scene("crdpll", partial={"robust": True})
    learner, turn = turn_of(state, rows, 1)
    batch = Batch(rows, turn.plan, 0, 1)
    again, _ = scene("crdpll", partial={"robust": True})
    sure = partial.crdpll_step(state, learner, batch, Mesh(), torch.ones(len(rows)))
    doubtful = partial.crdpll_step(again, again.learners[0], batch, Mesh(), torch.full((len(rows),), 0.25))
    assert doubtful.tolist() == pytest.approx([float(sure[0]), 0.25 * float(sure[1])], rel=1e-5)


def test_negative_learning_is_exact_near_one() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0], [0.3, -0.2, 1.0]], dtype=torch.float64).requires_grad_()
    excluded = torch.tensor([[True, False, False], [False, True, True]])
    got = losses.negative(logits, excluded)
    p = logits[1].softmax(0)
    expected = (60 - math.log(2) - (1 - p[1]).log() - (1 - p[2]).log()) / 2
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    got.backward()
    assert logits.grad is not None
    torch.testing.assert_close(
        logits.grad[0, 0], torch.tensor(0.5, dtype=torch.float64)
    )  # not 0, as where it saturates
    assert torch.autograd.gradcheck(lambda z: losses.negative(z, excluded), (logits.detach().requires_grad_(),))
    assert losses.negative(logits, torch.ones(2, 3, dtype=torch.bool)) == 0
    weighted = losses.negative(logits, excluded, weights=torch.tensor([0.0, 1.0]), denominator=1)
    torch.testing.assert_close(weighted, -(1 - p[1]).log() - (1 - p[2]).log())


@pytest.mark.parametrize("loss", ["cc", "proden", "crdpll"])
def test_equal_weights_are_none_and_others_lead_elsewhere(loss: str) -> None:
    plain = frozen_toy.frozen(toy.toy(count=60)).rows
    ones = plain.select(torch.arange(len(plain)))
    ones.weights = torch.ones(len(ones.indices), dtype=torch.float16)
    others = plain.select(torch.arange(len(plain)))
    others.weights = torch.where(torch.arange(len(others.indices)) % 3 > 0, 1.0, 0.1).half()
    taken = []
    for rows in (plain, ones, others):
        state, held = scene(loss, rows)
        learner, turn = turn_of(state, held, 0)
        taken.append([turn.step(state, learner, Batch(held, turn.plan, step, 0), Mesh()) for step in (0, 1)])
        if loss != "cc":
            assert dense(learner, held).sum(1).tolist() == pytest.approx([1.0] * len(held), abs=2e-3)
    assert torch.equal(torch.stack(taken[0]), torch.stack(taken[1]))
    assert not torch.equal(torch.stack(taken[0]), torch.stack(taken[2]))


def test_the_geometric_mean_forgets_the_order_of_views_and_survives_zeros() -> None:
    random = torch.Generator().manual_seed(0)
    views = [torch.randn(5, 4, generator=random).softmax(1) for _ in range(3)]
    sets = torch.rand(5, 4, generator=random) < 0.6
    one = purify.geometric(*views, candidates=sets)
    torch.testing.assert_close(one, purify.geometric(*reversed(views), candidates=sets))
    torch.testing.assert_close(one.sum(1), torch.ones(5))
    nothing = purify.geometric(torch.tensor([[1.0, 0.0, 0.0]]), candidates=torch.tensor([[False, True, True]]))
    assert nothing.tolist() == [[0.0, 0.5, 0.5]]
    tiny = purify.geometric(torch.tensor([[1.0, 1e-30, 3e-30]]), candidates=torch.tensor([[False, True, True]]))
    assert tiny[0].tolist() == pytest.approx([0, 0.25, 0.75], rel=1e-5)


def test_the_divergence_vanishes_where_the_prediction_is_the_target() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(losses.divergence(logits, logits.softmax(1))) == pytest.approx(0, abs=1e-12)
    target = torch.tensor([[1.0, 0.0, 0.0]] * 4, dtype=torch.float64)
    torch.testing.assert_close(losses.divergence(logits, target), losses.soft_cross_entropy(logits, target))
