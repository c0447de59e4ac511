"""How long a training will take: measured on a few rows, added up for many."""

from __future__ import annotations

from typing import Any

import pytest
import toy

from coreg_ray.config import Config, MethodConfig, StudentConfig
from coreg_ray.methods import coreg
from coreg_ray.training.pace import CLEAN, Pace, measure

PACE = Pace(warmup=1.0, plain=10.0, contrast=100.0, look=1e-3, labelled=CLEAN, memory=0, parameters=0)


def seconds(rows: int = 1000, tested: int = 0, held_out: int = 0, **settings: Any) -> float:
    return PACE.seconds(MethodConfig(**settings), rows, tested, held_out)


def test_epochs_of_each_kind_add_up() -> None:
    looks = (6 * 1000 + 3 * 512 * 5) * 1e-3  # five assessments, the first one twice; views in the last three epochs
    steps = 1000 * (3 * 1 + CLEAN * (2 * 10 + 3 * 100))
    assert seconds(epochs=8, warmup_epochs=3, contrast_delay=1) == pytest.approx(steps + looks)
    assert seconds(epochs=4, warmup_epochs=4) == pytest.approx(4000 + 3 * 512 * 5 * 1e-3)
    assert seconds(epochs=4, warmup_epochs=1, contrast_delay=50) == pytest.approx(
        1000 * (1 + CLEAN * 30) + (4 * 1000 + 3 * 512 * 5) * 1e-3
    )


def test_images_that_are_scored_count_in_every_epoch() -> None:
    short = {"epochs": 4, "warmup_epochs": 4}
    assert seconds(tested=500, **short) - seconds(**short) == pytest.approx(4 * 500 * 1e-3)
    more = seconds(held_out=600, **short) - seconds(held_out=512, **short)
    assert more == pytest.approx((4 * 88 + 3 * 88 * 4) * 1e-3)


@pytest.mark.parametrize("heads", [False, True])
def test_a_few_steps_are_taken_on_whatever_the_networks_look_at(heads: bool) -> None:
    data = toy.toy(20)
    student = StudentConfig(name="test_efficientnet", frozen=True, width=4, projection=8) if heads else toy.STUDENT
    inputs = data.rows.pixels[:, None, :4, :4, 0].flatten(2).half() if heads else data.rows.pixels
    config = Config(method=toy.method(batch_size=4, queue_size=8).model_dump(), student=student)
    pace = measure(config, coreg, inputs, data.rows.numbers, 4)
    assert min(pace.warmup, pace.plain, pace.contrast, pace.look) > 0
    assert pace.parameters > 1000
    assert pace.memory > 50e6
