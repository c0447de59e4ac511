"""The criteria, counted by hand: what they are called, and what each of them sees."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.pure.label_free import VIEWS, count, criteria, no_counts, own_shares

CPU = torch.device("cpu")


def predictions(*images: tuple[tuple[int, int], ...]) -> Tensor:
    """(2, 1 + VIEWS, B) from the classes that both networks give each image and its views; missing views repeat it."""
    whole = [[*image, *[image[0]] * (1 + VIEWS - len(image))] for image in images]
    return torch.tensor(whole).permute(2, 1, 0)


def sets(*rows: set[int]) -> Tensor:
    return torch.tensor([[k in row for k in range(3)] for row in rows])


# The networks agree on two of three images; network b calls one view of the last image otherwise.
PREDICTED = predictions(((0, 0),), ((1, 2),), ((1, 1), (1, 2)))
CANDIDATES = sets({0, 1}, {1}, {1})
CERTAIN = torch.nn.functional.one_hot(PREDICTED[:, 0], 3).float()


def test_each_criterion_is_the_share_that_it_says() -> None:
    figures = criteria(count(PREDICTED, CANDIDATES, 3, CERTAIN), no_counts(3, CPU))
    views, all_of_them = 2 * VIEWS * 3, 2 * (1 + VIEWS) * 3
    outside = (1 + VIEWS) + 1  # network b on the second image, and on one view of the third
    predicted = [10 / all_of_them, (all_of_them - 10 - outside) / all_of_them, outside / all_of_them]
    alike = math.sqrt(predicted[0] * 1 / 4) + math.sqrt(predicted[1] * 3 / 4)
    assert figures == pytest.approx(
        {
            "label_free": 2 / 3,
            "stability": (views - 1) / views,
            "candidates": (all_of_them - outside) / all_of_them,
            "approximated_accuracy": 5 / 6,
            "classes": alike,
            "combined": alike * (views - 1) / views,
        }
    )


def test_counts_add_up() -> None:
    whole = count(PREDICTED, CANDIDATES, 3, CERTAIN)
    parts = [count(PREDICTED[:, :, part], CANDIDATES[part], 3, CERTAIN[:, part]) for part in (slice(0, 1), slice(1, 3))]
    assert torch.equal(parts[0] + parts[1], whole)
    assert whole.dtype == torch.float64


def test_images_that_are_trained_on_have_no_say_in_the_agreement() -> None:
    nothing = no_counts(3, CPU)
    held_out, shown = count(PREDICTED[:, :, :1], None, 3, CERTAIN[:, :1]), count(PREDICTED, CANDIDATES, 3, CERTAIN)
    assert criteria(held_out, nothing) == {"label_free": 1.0, "stability": 1.0}
    assert criteria(held_out, shown)["label_free"] == 1.0
    assert criteria(held_out, shown)["stability"] == pytest.approx(1 - 1 / (2 * VIEWS * 4))
    assert criteria(nothing, shown) == {}


def test_their_names_are_those_of_the_figures() -> None:
    """A caller puts `criterion/` before them."""
    names = {metrics.CRITERION + name for name in criteria(count(PREDICTED, CANDIDATES, 3, CERTAIN), no_counts(3, CPU))}
    assert names == {
        *(metrics.LABEL_FREE, metrics.STABILITY, metrics.CANDIDATES, metrics.APPROXIMATED, metrics.CLASSES),
        metrics.COMBINED,
    }  # fmt: skip


def test_own_shares_are_zero_outside_the_candidates_and_whole_where_one_is_left() -> None:
    probs = torch.tensor([[[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], [[0.1, 0.3, 0.6], [0.2, 0.7, 0.1]]])
    sets = torch.tensor([[True, True, False], [False, True, True]])
    assert own_shares(probs, sets).flatten().tolist() == pytest.approx([0.625, 0, 0, 0.875])
    predicted = probs.argmax(2)[:, None].expand(2, 1 + VIEWS, 2)
    counts = count(predicted, sets, 3, probs)
    figures = criteria(counts, no_counts(3, torch.device("cpu")))
    assert figures["approximated_accuracy"] == pytest.approx((0.625 + 0.875) / 4)
