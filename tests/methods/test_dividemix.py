"""DivideMix against Co-Reg, of which it is a part, and its penalty against the formula."""

from __future__ import annotations

from functools import partial
from typing import Any

import frozen_toy
import pytest
import torch
import toy
from torch import Tensor

from coreg_ray.methods import coreg, dividemix
from coreg_ray.pure import losses
from coreg_ray.training.assess import Opinion, assess
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import pack
from coreg_ray.training.plan import split_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import State
from coreg_ray.training.steps import Batch


def scene(kind: str, **settings: Any) -> tuple[State, Rows]:
    data = frozen_toy.frozen(toy.toy(count=80))
    return toy.start(data, Mesh(), student=frozen_toy.STUDENT, kind=kind, warmup_epochs=0, **settings)


def opinion_of(rows: Rows) -> Opinion:
    random = torch.Generator().manual_seed(1)
    return Opinion(torch.rand(len(rows), generator=random), torch.rand(len(rows.indices), generator=random).half())


@pytest.mark.parametrize("weak_views", [1, 2])
def test_a_step_is_coregs_without_what_it_lacks(weak_views: int) -> None:
    """From equal state and equal opinions, to the bit: weak views, no prototypes, no contrast, and the penalty off."""
    settings: dict[str, Any] = {"weak_views": weak_views, "contrast_delay": 0}
    ours, rows = scene("dividemix", dividemix={"penalty": 0}, **settings)
    theirs, _ = scene("coreg", **settings)
    opinion = opinion_of(rows)
    plan = split_plan(rows, opinion.clean, 0.5, 0.25, 0, 0, 3, 16, Mesh())
    assert all(plan.team_labelled)
    assert all(plan.team_unlabelled)
    for number in range(plan.steps):
        batch = Batch(rows, plan, number, 3)
        mine = dividemix.step(ours, ours.learners[0], batch, Mesh(), opinion)
        other = coreg.coreg_step(
            theirs, theirs.learners[0], batch, Mesh(), opinion, views=dividemix.weak_pair, regularised=False
        )
        assert mine[:4].tolist() == other[:4].tolist()
        assert mine[3] > 0
        assert torch.equal(pack(ours.learners[0].student), pack(theirs.learners[0].student))


def test_an_assessment_is_coregs_without_alignment() -> None:
    ours, rows = scene("dividemix")
    theirs, _ = scene("coreg")
    uneven = torch.tensor([0.7, 0.1, 0.1, 0.1])
    theirs.prior = uneven
    mine = assess(ours, ours.learners[0], rows, Mesh(), 2, aligned=False)
    aligned = assess(theirs, theirs.learners[0], rows, Mesh(), 2)
    assert not torch.equal(mine.soft_labels, aligned.soft_labels)
    theirs.learners[0].memory.mean = uneven  # alignment to what predictions are anyway moves nothing
    same = assess(theirs, theirs.learners[0], rows, Mesh(), 2)
    torch.testing.assert_close(mine.soft_labels, same.soft_labels, atol=1e-3, rtol=0)
    assert ours.learners[0].memory.mean is None


def test_a_sound_label_is_its_own_target() -> None:
    """With one candidate a row and clean probability 1 the target is one-hot, whatever the network thinks."""
    state, rows = scene("dividemix", temperature=0.7)
    single = rows.candidates(torch.arange(len(rows)), torch.device("cpu")).float().argmax(1)
    rows = toy.make_rows(
        rows.numbers, rows.pixels, torch.nn.functional.one_hot(single, 4).bool(), features=rows.features
    )
    opinion = Opinion(torch.ones(len(rows)), torch.ones(len(rows), dtype=torch.float16))
    plan = split_plan(rows, opinion.clean, 0.5, 0.25, 0, 0, 3, 16, Mesh())
    batch = Batch(rows, plan, 0, 3)
    images = rows.take(batch.labelled, torch.device("cpu"))
    targets, _ = coreg.pseudo_labels(state, state.learners[0], batch, opinion, images)
    assert torch.equal(targets, torch.nn.functional.one_hot(single[batch.labelled], 4).float())


def test_the_penalty_pulls_towards_the_prior() -> None:
    state, rows = scene("dividemix", dividemix={"penalty": 50.0}, learning_rate=0.5)
    state.prior = torch.tensor([0.85, 0.05, 0.05, 0.05])
    learner, opinion = state.learners[0], opinion_of(rows)
    plan = split_plan(rows, opinion.clean, 0.5, 0.25, 0, 0, 3, 16, Mesh())

    def share() -> float:
        with torch.no_grad():
            learner.student.eval()
            probs = learner.student.classify(rows.features[:, 0]).softmax(1)  # type: ignore[index]
        return float(probs.mean(0)[0])

    before = share()
    for number in range(plan.steps):
        dividemix.step(state, learner, Batch(rows, plan, number, 3), Mesh(), opinion)
    assert share() > before + 0.1


def divergence(logits: Tensor, prior: Tensor) -> Tensor:
    """KL(prior || mean of the predictions), as it is written."""
    return (prior * (prior / logits.softmax(1).mean(0)).log()).sum()


def test_replicas_add_up_to_the_divergence_in_value_and_gradient() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=random, dtype=torch.float64).requires_grad_()
    prior = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64)
    expected = divergence(logits, prior)
    (gradient,) = torch.autograd.grad(expected, logits)
    mean = logits.softmax(1).mean(0).detach()
    of_part = partial(losses.kl_to_prior, prior=prior, mean=mean, denominator=12)
    parts = [of_part(part.softmax(1)) for part in logits.split([7, 5, 0])]
    torch.testing.assert_close(torch.stack(parts).sum(), expected)
    (added,) = torch.autograd.grad(torch.stack(parts).sum(), logits)
    torch.testing.assert_close(added, gradient)
    torch.testing.assert_close(losses.kl_to_prior(logits.softmax(1), prior), expected)


def test_the_divergence_is_finite_where_a_class_is_never_expected_or_never_predicted() -> None:
    probs = torch.tensor([[1.0, 0.0, 0.0]]).requires_grad_()
    value = losses.kl_to_prior(probs, torch.tensor([0.5, 0.5, 0.0]))
    value.backward()
    assert value.isfinite()
    assert probs.grad is not None
    assert probs.grad.isfinite().all()
