"""Confident learning against cleanlab itself, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues
from torch import Tensor

from coreg_ray.pure.confident import joint, wrong_labels
from coreg_ray.pure.soft_labels import MOST_SHARES

Given = tuple[Tensor, Tensor, Tensor, Tensor, int]


def given(labels: Tensor, probs: Tensor) -> Given:
    top = probs.topk(min(MOST_SHARES, probs.shape[1]), dim=1)
    return labels, probs.gather(1, labels[:, None])[:, 0], top.indices, top.values, probs.shape[1]


def told(labels: Tensor, probs: Tensor) -> Tensor:
    return wrong_labels(*given(labels, probs))


def pool(rows: int, classes: int, seed: int, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of which some are wrong, predictions, and the truth; some classes are rare."""
    random = np.random.default_rng(seed)
    truth = random.choice(classes, rows, p=random.dirichlet(np.full(classes, 2.0)))
    labels = np.where(random.random(rows) < noise, random.integers(0, classes, rows), truth)
    logits = random.normal(0, 1, (rows, classes)) + 2.5 * np.eye(classes)[truth]
    probs = torch.tensor(logits).softmax(dim=1)
    return torch.tensor(labels), probs, torch.tensor(truth)


@pytest.mark.filterwarnings("ignore:May not flag all label issues")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("rows", "classes"), [(300, 3), (500, 10), (60, 6), (40, 10)])
def test_what_cleanlab_finds(rows: int, classes: int, seed: int) -> None:
    """Its joint, but for what was rounded otherwise, and with the same joint the same labels."""
    labels, probs, _ = pool(rows, classes, seed)
    labels = labels.clamp(max=classes - 2) if seed % 2 else labels  # a class that is nobody's label
    label, truth, count = joint(*given(labels, probs))
    ours = np.zeros((classes, classes), int)
    ours[label, truth] = count
    theirs = compute_confident_joint(labels.numpy(), probs.numpy())
    assert np.abs(ours - theirs).max() <= 1
    assert ours.sum(axis=1).tolist() == theirs.sum(axis=1).tolist()
    theirs_wrong = find_label_issues(labels.numpy(), probs.numpy(), confident_joint=ours, n_jobs=1)
    assert told(labels, probs).tolist() == theirs_wrong.tolist()


def test_it_finds_more_wrong_labels_than_right_ones() -> None:
    labels, probs, truth = pool(2000, 10, 1)
    wrong = told(labels, probs)
    assert (labels != truth)[wrong].float().mean() > 0.75
    assert wrong[labels != truth].float().mean() > 0.7


def test_labels_that_nobody_doubts_are_right() -> None:
    labels, probs, _ = pool(200, 5, 0)
    assert not told(labels, torch.nn.functional.one_hot(labels, 5).double()).any()
    assert told(torch.tensor([1]), probs[:1]).tolist() == [False]
    assert len(told(labels[:0], probs[:0])) == 0


def test_classes_in_another_order() -> None:
    labels, probs, _ = pool(400, 7, 3)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    assert torch.equal(told(place[labels], probs[:, order]), told(labels, probs))


def test_more_classes_than_are_kept_of_a_row() -> None:
    labels, probs, truth = pool(3000, 60, 2)
    wrong = told(labels, probs)
    assert (labels != truth)[wrong].float().mean() > 0.6
    assert wrong[labels != truth].float().mean() > 0.5
