"""The criteria, counted by hand: what they are called, and what each of them sees."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.pure.label_free import VIEWS, count, criteria, no_counts

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


def test_each_criterion_is_the_share_that_it_says() -> None:
    figures = criteria(count(PREDICTED, CANDIDATES, 3), no_counts(3, CPU))
    views, all_of_them = 2 * VIEWS * 3, 2 * (1 + VIEWS) * 3
    outside = (1 + VIEWS) + 1  # network b on the second image, and on one view of the third
    predicted = [10 / all_of_them, (all_of_them - 10 - outside) / all_of_them, outside / all_of_them]
    alike = math.sqrt(predicted[0] * 1 / 4) + math.sqrt(predicted[1] * 3 / 4)
    assert figures == pytest.approx(
        {
            "label_free": 2 / 3,
            "stability": (views - 1) / views,
            "candidates": (all_of_them - outside) / all_of_them,
            "classes": alike,
            "combined": alike * (views - 1) / views,
        }
    )


def test_counts_add_up() -> None:
    whole = count(PREDICTED, CANDIDATES, 3)
    parts = [count(PREDICTED[:, :, part], CANDIDATES[part], 3) for part in (slice(0, 1), slice(1, 3))]
    assert torch.equal(parts[0] + parts[1], whole)
    assert whole.dtype == torch.float64


def test_images_that_are_trained_on_have_no_say_in_the_agreement() -> None:
    nothing = no_counts(3, CPU)
    held_out, shown = count(PREDICTED[:, :, :1], None, 3), count(PREDICTED, CANDIDATES, 3)
    assert criteria(held_out, nothing) == {"label_free": 1.0, "stability": 1.0}
    assert criteria(held_out, shown)["label_free"] == 1.0
    assert criteria(held_out, shown)["stability"] == pytest.approx(1 - 1 / (2 * VIEWS * 4))
    assert criteria(nothing, shown) == {}


def test_their_names_are_those_of_the_figures() -> None:
    """A caller puts `criterion/` before them."""
    names = {metrics.CRITERION + name for name in criteria(count(PREDICTED, CANDIDATES, 3), no_counts(3, CPU))}
    assert names == {
        metrics.LABEL_FREE, metrics.STABILITY, metrics.CANDIDATES, metrics.CLASSES, metrics.COMBINED,
    }  # fmt: skip
