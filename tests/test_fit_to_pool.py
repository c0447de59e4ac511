"""What is fitted to a pool: for pools of any size something that can be trained, and what is given always wins."""

from __future__ import annotations

from typing import Any

import pytest

from coreg_ray.config import Config, MethodConfig, MethodSettings
from coreg_ray.config.fit_to_pool import as_begun, fitted_to_pool, resolved
from coreg_ray.config.method import FITTED

SIZES = (1, 9, 130, 800, 5_000, 60_000, 800_000, 100_000_000)
GIVEN: dict[str, Any] = {
    "epochs": 7, "warmup_epochs": 0, "contrast_delay": 0, "ramp_epochs": 0, "batch_size": 17, "warmup_batch_size": 19,
    "learning_rate": 0.3, "key_momentum": 0.0, "queue_size": 0,
}  # fmt: skip


@pytest.mark.parametrize("images", SIZES)
@pytest.mark.parametrize("frozen", [False, True])
def test_every_pool_gets_a_schedule_that_fits(images: int, frozen: bool) -> None:
    method = resolved(MethodSettings(), images, frozen)
    assert not method.empty
    assert 0 < method.warmup_epochs < method.epochs
    joins = method.warmup_epochs + method.contrast_delay + 1
    assert joins < method.epochs, "the contrastive branch would never join"
    assert method.warmup_epochs + method.ramp_epochs < method.epochs
    assert 2 <= method.batch_size <= max(2, images // 2)
    assert method.warmup_batch_size <= max(2, images // 2)
    assert method.queue_size <= max(256, images)


@pytest.mark.parametrize("frozen", [False, True])
def test_larger_pools_take_larger_batches_and_more_steps_in_all(frozen: bool) -> None:
    sizes = [images for images in SIZES if images > 128]
    methods = [resolved(MethodSettings(), images, frozen) for images in sizes]
    for name in ("batch_size", "warmup_batch_size", "key_momentum", "queue_size"):
        values = [getattr(method, name) for method in methods]
        assert values == sorted(values)
        assert values[0] < values[-1]
    steps = [method.epochs * images // method.batch_size for method, images in zip(methods, sizes, strict=True)]
    assert steps[1:] == sorted(steps[1:])
    assert min(steps) > 300
    rates = [method.learning_rate for method in methods]
    assert rates == sorted(rates, reverse=True)


def test_all_that_is_given_stays() -> None:
    assert set(GIVEN) == set(FITTED)
    assert resolved(MethodSettings(**GIVEN), 800, frozen=False) == MethodConfig(**GIVEN)
    assert resolved(MethodConfig(), 800, frozen=True) == MethodConfig()


@pytest.mark.parametrize("name", [name for name in FITTED if name not in ("epochs", "warmup_epochs")])
def test_one_setting_moves_no_other(name: str) -> None:
    usual = resolved(MethodSettings(), 3_000, frozen=False).model_dump()
    assert resolved(MethodSettings(**{name: GIVEN[name]}), 3_000, frozen=False).model_dump() == {
        **usual,
        name: GIVEN[name],
    }


def test_the_schedule_follows_the_epochs_that_are_given_and_makes_room_for_the_warm_up() -> None:
    long = resolved(MethodSettings(epochs=200), 3_000, frozen=False)
    assert long.warmup_epochs > 20
    assert long.ramp_epochs > 20
    assert resolved(MethodSettings(epochs=1), 3_000, frozen=False).warmup_epochs <= 1
    late = resolved(MethodSettings(warmup_epochs=50), 3_000, frozen=False)
    assert late.warmup_epochs == 50
    assert late.epochs > 60


def test_what_was_fitted_once_is_kept_when_the_pool_has_grown() -> None:
    config = Config.model_validate({"method": {"epochs": 9}})
    begun = fitted_to_pool(config, 700)
    assert fitted_to_pool(config, 700_000, begun) == begun
    assert fitted_to_pool(config, 700_000) != begun
    assert as_begun(config, config) == config
    assert as_begun(begun, config) == begun
    assert fitted_to_pool(config, 700, config) == begun  # it was stopped before it had fitted anything


def test_what_is_empty_cannot_be_trained_with() -> None:
    with pytest.raises(ValueError, match=r"method\.epochs, .*method\.queue_size not set: fit them"):
        MethodSettings().whole()
    with pytest.raises(ValueError, match=r"^method\.queue_size not set"):
        MethodSettings(**{**GIVEN, "queue_size": None}).whole()
    assert MethodSettings(**GIVEN).whole() == MethodConfig(**GIVEN)


def test_heads_and_networks_have_schedules_of_their_own() -> None:
    heads = Config.model_validate({"student": {"name": "test_efficientnet", "frozen": True}})
    assert fitted_to_pool(heads, 5_000).method == MethodSettings(
        **resolved(MethodSettings(), 5_000, frozen=True).model_dump()
    )


@pytest.mark.parametrize("warm_start", [0, 5, 40])
def test_a_backbone_that_is_held_at_first_learns_for_as_long_after_that(warm_start: int) -> None:
    student = {"name": "resnet18", "warm_start": warm_start}
    config = Config.model_validate({"student": student, "method": {"learning_rate": 0.02}})
    usual = resolved(config.method, 800, frozen=False)
    method = fitted_to_pool(config, 800).method
    assert method.epochs == max(usual.epochs, 2 * warm_start)
    assert Config.model_validate({"student": student, "method": method.model_dump()}).student.warm_start == warm_start
