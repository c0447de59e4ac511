"""Confident learning: which labels are wrong, by predictions of models that have not learned them.

Northcutt et al., Confident Learning, JAIR 2021: the rule that cleanlab calls `prune_by_noise_rate`, and the answers of
its `find_label_issues` up to MOST_SHARES classes (tests/pure/test_confident.py), but for counts that can be rounded in
two ways: there the pair of classes that was predicted more surely gets more. Beyond, each row's largest predictions
count alone: never N x K.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLOSE = 1e-6  # a prediction so far below a threshold still reaches it
NEVER = 2.0  # the threshold of a class that is nobody's label


def wrong_labels(labels: Tensor, own: Tensor, classes: Tensor, probs: Tensor, num_classes: int) -> Tensor:
    """The labels that are found wrong: as many of each class as the joint of labels and truths says, by margin.

    Args:
        labels: (N,) int64. own: (N,) the prediction of each row's label.
        classes, probs: (N, r) the largest predictions of each row, the first the largest, as `largest_shares` has them.
        num_classes: K.

    Returns:
        (N,) bool; never a row whose label is its largest prediction, and at least one row of each class stays.
    """
    classes, probs, own = classes.long(), probs.double(), own.double()
    label, truth, count = joint(labels, own, classes, probs, num_classes)
    count = _one_stays(count, label, label == truth, num_classes)
    order = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels, minlength=num_classes)
    starts = sizes.cumsum(0) - sizes
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    off = (label != truth) & (count > 0) & (sizes[label] > 1)
    for one, other, most in zip(label[off].tolist(), truth[off].tolist(), count[off].tolist(), strict=True):
        rows = order[starts[one] : starts[one] + sizes[one]]
        margin = (probs[rows] * (classes[rows] == other)).sum(dim=1) - own[rows]
        wrong[rows[torch.argsort(margin, descending=True, stable=True)[:most]]] = True
    return wrong & (classes[:, 0] != labels)


def joint(
    labels: Tensor, own: Tensor, classes: Tensor, probs: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """How many rows of each label are of each true class: pairs of classes and whole counts, (M,) each.

    A row counts for the class that it is predicted for more surely than that class's own rows are on average; for its
    largest prediction where several are, for none where none is. Counts are scaled to the labels'. Arguments are those
    of `wrong_labels`.
    """
    classes, probs, own = classes.long(), probs.double(), own.double()
    sizes = torch.bincount(labels, minlength=num_classes)
    sums = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, labels, own)
    thresholds = torch.where(sizes > 0, sums / sizes.clamp(min=1), NEVER)
    sure = probs >= thresholds[classes] - CLOSE
    only = classes.gather(1, sure.int().argmax(dim=1, keepdim=True))[:, 0]
    guess = torch.where(sure.sum(dim=1) > 1, classes[:, 0], only)
    known = sure.any(dim=1)
    present = sizes.nonzero()[:, 0]  # whose pairs with themselves are there in any case
    code = torch.cat([labels[known] * num_classes + guess[known], present * (num_classes + 1)])
    pairs, place = code.unique(return_inverse=True)
    counted = torch.bincount(place[: int(known.sum())], minlength=len(pairs)).double()
    label, truth = pairs // num_classes, pairs % num_classes
    alike = label == truth
    count = torch.where(alike, counted.clamp(min=1), counted)  # one row of each label is what it says
    total = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, label, count)
    told = probs.gather(1, (classes == guess[:, None]).int().argmax(dim=1, keepdim=True))[known, 0]
    strength = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, place[: len(told)], told)
    return label, truth, _rounded(count * sizes[label] / total[label], label, sizes, strength)


def _rounded(values: Tensor, label: Tensor, sizes: Tensor, strength: Tensor) -> Tensor:
    """Whole numbers (M,) near `values` that sum to `sizes` (K,) for each label: the largest errors give way, of equal
    ones that of the larger `strength` (M,) upwards.
    """
    whole = values.round()
    for one in sizes.nonzero()[:, 0].tolist():
        mine = (label == one).nonzero()[:, 0]
        mine = mine[torch.argsort(strength[mine], stable=True)]
        missing = round(float(sizes[one] - whole[mine].sum()))
        errors = torch.argsort(values[mine] - whole[mine], stable=True)
        if missing > 0:
            whole[mine[errors.flip(0)[:missing]]] += 1
        elif missing < 0:
            whole[mine[errors[:-missing]]] -= 1
    return whole.long()


def _one_stays(count: Tensor, label: Tensor, alike: Tensor, num_classes: int) -> Tensor:
    """Counts (M,) of which each label keeps one for itself, taken from its others alike."""
    lacking = torch.zeros(num_classes).double().index_add_(0, label[alike], (1 - count[alike]).clamp(min=0).double())
    others = (torch.bincount(label[count > 0], minlength=num_classes) - 1).clamp(min=1)
    less = (count - (lacking / others)[label]).clamp(min=0).round().long()
    return torch.where(alike, count.clamp(min=1), less)
