"""The matrix of classes by labels: its two readings, posteriors as products, and that it learns a known transition."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from coreg_ray.pure.losses import transferred
from coreg_ray.pure.purify import restrict
from coreg_ray.pure.transition import matrices, posterior, scale_for

RANDOM = torch.Generator().manual_seed(6)
PROBS = (2 * torch.randn(20, 5, generator=RANDOM)).softmax(1)
SETS = torch.rand(20, 5, generator=RANDOM) < 0.5
SETS[:, 1] |= ~SETS.any(1)
SETS[:, 4] &= ~SETS.all(1)
WEIGHTS = torch.randn(5, 5, generator=RANDOM)


def test_posteriors_are_products_over_the_set() -> None:
    forward, log_confusion = matrices(WEIGHTS, 3.0)
    columns = WEIGHTS / WEIGHTS.square().sum(0).sqrt()
    scores = 3 * columns / columns.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(forward, scores.exp() / scores.exp().sum(0))
    confusion = scores.exp() / scores.exp().sum(1, keepdim=True)
    torch.testing.assert_close(log_confusion.exp(), confusion)
    answer = posterior(PROBS, SETS, log_confusion)
    for i in range(20):
        row = [float(PROBS[i, k]) * math.prod(float(confusion[k, j]) for j in range(5) if SETS[i, j]) for k in range(5)]
        assert answer[i].tolist() == pytest.approx([value / sum(row) for value in row], rel=1e-4)


def test_labels_that_say_nothing_leave_the_prediction_and_certain_ones_restrict_it() -> None:
    torch.testing.assert_close(posterior(PROBS, SETS, torch.full((5, 5), -math.log(5))), PROBS)
    _, certain = matrices(torch.eye(5), 60.0)
    torch.testing.assert_close(posterior(PROBS, SETS, certain), restrict(PROBS, SETS))
    nothing = torch.stack([torch.ones(5), torch.zeros(5)]).bool()
    torch.testing.assert_close(posterior(PROBS[:2], nothing, certain), PROBS[:2])
    one_hot = torch.eye(5)
    assert posterior(one_hot, torch.eye(5).roll(1, 0).bool(), certain).equal(one_hot)  # a sure network is not moved


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_it_begins_as_sure_whatever_the_number_of_classes(num_classes: int) -> None:
    _, log_confusion = matrices(torch.eye(num_classes), scale_for(num_classes))
    assert float(log_confusion.exp().diagonal().mean()) == pytest.approx(0.982, abs=1e-3)


def test_relabelled_classes_permute_everything() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    forward, log_confusion = matrices(WEIGHTS, 3.0)
    turned, log_turned = matrices(WEIGHTS[order][:, order], 3.0)
    torch.testing.assert_close(turned, forward[order][:, order])
    torch.testing.assert_close(
        posterior(PROBS[:, order], SETS[:, order], log_turned), posterior(PROBS, SETS, log_confusion)[:, order]
    )
    torch.testing.assert_close(
        transferred(PROBS[:, order], turned, ~SETS[:, order]), transferred(PROBS, forward, ~SETS)
    )


def test_the_loss_of_labels_not_given_against_loops_and_in_parts() -> None:
    forward, _ = matrices(WEIGHTS, 3.0)
    total = 0.0
    for i in range(20):
        taken = [sum(float(PROBS[i, k] * forward[k, j]) for k in range(5)) for j in range(5)]
        total -= sum(math.log(1 - taken[j] / sum(taken)) for j in range(5) if not SETS[i, j])
    assert float(transferred(PROBS, forward, ~SETS)) == pytest.approx(total / 20, rel=1e-5)
    parts = [transferred(PROBS[rows], forward, ~SETS[rows], denominator=20) for rows in (slice(7), slice(7, 20))]
    assert float(sum(parts)) == pytest.approx(total / 20, rel=1e-5)
    assert transferred(PROBS[:0], forward, ~SETS[:0]) == 0
    sure = torch.eye(5).requires_grad_()  # a label that was certain and not given
    value = transferred(sure, torch.eye(5), torch.ones(5, 5, dtype=torch.bool))
    value.backward()
    assert value.isfinite()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_labels_teach_the_matrix_their_transition_up_to_the_scale_of_its_rows() -> None:
    """Sevens are called nines: class 0 is given label 1 in four of ten rows. (Beyond five of ten R cannot follow: its
    columns are distributions, and label 1 belongs to class 1 as well.)
    """
    truth = torch.eye(4)
    truth[0] = torch.tensor([0.6, 0.4, 0.0, 0.0])
    classes = torch.arange(4).repeat(500)
    labels = torch.multinomial(truth[classes], 1, generator=torch.Generator().manual_seed(7))[:, 0]
    probs = 0.998 * F.one_hot(classes, 4) + 0.0005
    weights = torch.eye(4).requires_grad_()
    for _ in range(400):
        forward, _ = matrices(weights, scale_for(4))
        loss = transferred(probs, forward, ~F.one_hot(labels, 4).bool())
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            weights -= 0.3 * gradient
    forward, _ = matrices(weights.detach(), scale_for(4))
    torch.testing.assert_close(forward / forward.sum(1, keepdim=True), truth, atol=0.08, rtol=0)
