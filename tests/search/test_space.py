"""Search spaces: what is read from YAML, what is refused before anything starts, and a trial's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from coreg_ray.commands.base import Command, load
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool, resolved
from coreg_ray.errors import UserError
from coreg_ray.search.space import Space, encoded, read_space, trial_settings

BASE = Config(test={"kind": "digits"})


def space_of(tmp_path: Path, content: Any, base: Config = BASE) -> Space:
    path = tmp_path / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_space(str(path), base)


def refusal(tmp_path: Path, content: Any, base: Config = BASE) -> str:
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, content, base)
    return str(caught.value)


def test_dotted_and_nested_keys_mean_the_same(tmp_path: Path) -> None:
    dotted = space_of(tmp_path, {"method.learning_rate": {"loguniform": [0.01, 0.1]}, "seed": {"randint": [0, 9]}})
    nested = space_of(tmp_path, {"method": {"learning_rate": {"loguniform": [0.01, 0.1]}}, "seed": {"randint": [0, 9]}})
    assert dotted == nested
    assert dotted.keys == ["method.learning_rate", "seed"]


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    space = space_of(tmp_path, "method.weight_decay: {loguniform: [1e-5, 1e-3]}")
    assert space.dimensions[0].values == (1e-5, 1e-3)


def test_the_packaged_space_fits_its_preset() -> None:
    base = load(["--preset", "search"], Command)
    assert "method.learning_rate" in read_space(None, base).keys


def test_grids_multiply(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"student.width": {"grid": [8, 16]}, "method.exchanges": {"grid": [1, 2, 4]}})
    assert space.grid_points == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"method.learning_rat": {"uniform": [0, 1]}}, ["did you mean method.learning_rate?", "method.epochs"]),
        ({"metod.epochs": {"choice": [1]}}, ["unknown setting metod.epochs", "did you mean method.epochs?"]),
        ({"method": {"lr": {"uniform": [0.1, 1]}}}, ["unknown setting method.lr", "method.learning_rate"]),
        ({"method.learning_rate": {"uniform": [0.1, 0.1]}}, ["[0.1, 0.1] is empty", "below the second"]),
        ({"method.learning_rate": {"uniform": [0.1, 0.01]}}, ["method.learning_rate", "[0.1, 0.01] is empty"]),
        ({"method.exchanges": {"randint": [3, 3]}}, ["[3, 3] is empty", "upper end is left out"]),
        ({"method.learning_rate": {"loguniform": [0, 1]}}, ["needs ends above 0", "use uniform"]),
        ({"method.learning_rate": {"uniform": [-1, 0.1]}}, ["learning_rate=-1", "greater than 0"]),
        ({"method.momentum": {"uniform": [0.5, 1.5]}}, ["momentum=1.5", "less than 1"]),
        ({"method.learning_rate": {"uniform": [0.1]}}, ["needs two numbers"]),
        ({"method.learning_rate": {"uniform": ["low", "high"]}}, ["needs two numbers"]),
        ({"method.learning_rate": {"uniform": [0.1, float("inf")]}}, ["not finite"]),
        ({"method.epochs": {"uniform": [4, 9]}}, ["takes whole numbers; use randint"]),
        ({"method.epochs": {"randint": [4.5, 9]}}, ["needs whole numbers"]),
        ({"method.batch_size": {"choice": []}}, ["choice needs a list that is not empty"]),
        ({"method.batch_size": {"choice": [32, "many"]}}, ["batch_size=many"]),
        ({"candidates.mode": {"choice": ["union", "all"]}}, ["candidates.mode=all"]),
        ({"method.batch_size": 64}, ["64 is no distribution", "uniform, loguniform"]),
        ({"method.batch_size": {"normal": [0, 1]}}, ["is no distribution"]),
        ({"output": {"choice": ["a", "b"]}}, ["output cannot be searched over", "command line"]),
        ({"cluster.num_workers": {"choice": [1, 2]}}, ["cluster.num_workers cannot be searched over"]),
        ({"annotator.model": {"choice": ["a", "b"]}}, ["another annotation", "one search for each"]),
        ({"source.holdout": {"uniform": [0.1, 0.2]}}, ["source.holdout cannot be searched over"]),
        ({"student.resolution": {"randint": [8, 32]}}, ["stored once at every resolution", "choice or grid"]),
        ({}, ["holds no key"]),
        ("a: [", ["not valid YAML"]),
        ("- a", ["holds no key"]),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, content: Any, words: list[str]) -> None:
    message = refusal(tmp_path, content)
    for word in words:
        assert word in message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml cannot be read .*give an existing YAML file"):
        read_space(str(tmp_path / "nothing.yaml"), BASE)


def test_a_value_that_only_fits_together_with_another_is_taken(tmp_path: Path) -> None:
    base = Config(test={"kind": "digits"}, method={"epochs": 10, "warmup_epochs": 5})
    assert "warmup_epochs=20 exceeds epochs=10" in refusal(tmp_path, {"method.warmup_epochs": {"choice": [20]}}, base)
    space = space_of(tmp_path, {"method.warmup_epochs": {"choice": [20]}, "method.epochs": {"choice": [10, 40]}}, base)
    assert trial_settings(base, space, {"method.warmup_epochs": 20, "method.epochs": 40}, 500).method.epochs == 40
    with pytest.raises(UserError, match="warmup_epochs=20 exceeds epochs=10"):
        trial_settings(base, space, {"method.warmup_epochs": 20, "method.epochs": 10}, 500)


def test_texts_and_lists_may_stand_beside_each_other(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"source.prompts": {"choice": ["a photo of a {}", ["a {}", "the {}"]]}})
    for listed, meant in (("a photo of a {}", ["a photo of a {}"]), (["a {}", "the {}"], ["a {}", "the {}"])):
        assert trial_settings(BASE, space, {"source.prompts": encoded(listed)}, 500).source.prompts == meant


def test_a_trial_differs_from_the_base_in_its_values_alone(tmp_path: Path) -> None:
    prompts = [["a {}"], ["a {}", "the {}"]]
    space = space_of(tmp_path, {"source.prompts": {"choice": prompts}, "method.lambda_u": {"uniform": [0, 2]}})
    trial = trial_settings(BASE, space, {"source.prompts": '["a {}", "the {}"]', "method.lambda_u": 0.5}, 500)
    changed = fitted_to_pool(BASE, 500).settings()
    changed["source"]["prompts"], changed["method"]["lambda_u"] = prompts[1], 0.5
    assert trial.settings() == changed


def test_what_a_trial_leaves_empty_follows_what_is_tried(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"method.epochs": {"choice": [10, 40]}, "method.batch_size": {"choice": [None, 32]}})
    short, long = (
        trial_settings(BASE, space, {"method.epochs": epochs, "method.batch_size": size}, 5000).method.whole()
        for epochs, size in ((10, 32), (40, None))
    )
    fitted = resolved(BASE.method, 5000, frozen=False)
    assert 0 < short.warmup_epochs < long.warmup_epochs
    assert (short.batch_size, long.batch_size) == (32, fitted.batch_size)
    assert short.queue_size == long.queue_size == fitted.queue_size
