"""The studies of real noise on their small twin: lines, what is skipped, what is refused, and how variants rank."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreg_ray.errors import UserError
from coreg_ray.pure.candidates import combine_votes
from coreg_ray.studies.real_noise import __main__ as command
from coreg_ray.studies.real_noise import criteria, data, problem, tiny, untuned
from coreg_ray.studies.real_noise.eyes import Eyes
from coreg_ray.studies.real_noise.table import ranks, table
from coreg_ray.studies.real_noise.trial import run

FIELDS = {
    "variant", "votes", "seed", "rows", "student", "epochs", "test_accuracy", "votes_accuracy", "pool_accuracy",
    "purified_accuracy", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    tiny.make(tiny.study(data.STUDIES["vlm"]), made)
    return made


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def small(folder: Path, seen: Path) -> problem.Problem:
    eyes = Eyes(tiny.STUDENT, seen)
    return problem.read_problems(tiny.study(data.STUDIES["vlm"]), folder, eyes, tiny.ROWS, "clip3")["clip3"]


def asked(folder: Path, seen: Path, output: Path, *variants: str) -> argparse.Namespace:
    given = ["--study", "vlm", "--data", str(folder), "--features", str(seen), "--output", str(output), "--smoke"]
    return command._parser().parse_args([*given, "--seeds", "0", *(f"--variant={name}" for name in variants)])


def test_a_line_a_run_and_none_twice(folder: Path, seen: Path, tmp_path: Path) -> None:
    output = tmp_path / "vlm.jsonl"
    lines = command.study(asked(folder, seen, output, "coreg_calm", "default"))
    assert [(line["votes"], line["variant"]) for line in lines] == [
        ("clip3", "coreg_calm"), ("clip3", "default"), ("vlm13", "coreg_calm"), ("vlm13", "default"),
    ]  # fmt: skip
    assert all(set(line) >= FIELDS for line in lines)
    assert all(len(line["curve"]) == tiny.EPOCHS for line in lines)
    assert [line["test_accuracy"] for line in lines[::2]] == [line["test_accuracy"] for line in lines[1::2]]
    assert [json.loads(line) for line in output.read_text().splitlines()] == lines

    before = output.read_text()
    again = command.study(asked(folder, seen, output, "coreg_calm", "label_model"))
    assert output.read_text().startswith(before)
    assert [line["variant"] for line in again[len(lines) :]] == ["label_model", "label_model"]


def test_networks_from_scratch_are_lines_of_their_own(folder: Path, seen: Path, tmp_path: Path) -> None:
    output = tmp_path / "vlm.jsonl"
    for kind in ("frozen", "scratch"):
        given = asked(folder, seen, output, "label_model", "without_alignment")
        given.student, given.votes = kind, "clip3"
        lines = command.study(given)
    assert [(line["student"], line["variant"]) for line in lines] == [
        ("frozen", "label_model"), ("frozen", "without_alignment"),
        ("scratch", "label_model"), ("scratch", "without_alignment"),
    ]  # fmt: skip
    heads = [line for line in table(lines) if line.startswith("clip3, 120 images, ")]
    assert [line.split(": ")[0] for line in heads] == ["clip3, 120 images, frozen", "clip3, 120 images, scratch"]


def test_cases_that_nobody_has_tuned_on(
    folder: Path, seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        "two": untuned.Case("vlm", (0, 3), rows=100),
        "mixed": untuned.Case("vlm", (0, 1, 2), without=4, shuffled=0.5),
    }
    monkeypatch.setattr(untuned, "CASES", cases)
    asked_ = argparse.Namespace(data=folder, output=tmp_path / "untuned.jsonl", smoke=True, features=seen)
    two, mixed = untuned.judge(asked_)
    assert (two["rows"], two["voters"], mixed["voters"]) == (100, 2, 3)
    labels = data.read_pictures(folder / "cifar10/test.parquet", tiny.ROWS).labels
    assert mixed["rows"] == int((labels != 4).sum()) < tiny.ROWS
    assert mixed["majority_accuracy"] < 0.75  # of voters who are right for 0.73
    for line in (two, mixed):
        gain = line["purified_accuracy"] - line["votes_accuracy"]
        assert line["right"] == (abs(gain) < untuned.CLOSE or line["votes_improved"] == (gain > 0))
    assert untuned.judge(asked_) == [two, mixed]
    assert len(asked_.output.read_text().splitlines()) == 2


def test_criteria_are_ranked_by_what_they_foretell() -> None:
    random = np.random.default_rng(0)
    accuracy = random.random(30).round(1)
    good, none = accuracy + random.normal(0, 0.2, 30), random.random(30)
    lines = [
        {"votes": "us", "student": "frozen", "rows": 9, "variant": str(place), "test_accuracy": right,
         "criterion/a": one, "criterion/b": two}
        for place, (right, one, two) in enumerate(zip(accuracy, good, none, strict=True))
    ]  # fmt: skip
    shown = criteria.table([*lines, {**lines[0], "variant": "truth"}, {**lines[0], "votes": "them"}])
    assert shown[0] == "us, 9 images, frozen: 30 runs of 30 variants"
    assert shown[4].startswith("| `criterion/a` | 0.")
    assert shown[4].endswith(f"| {accuracy.max() - accuracy[good.argmax()]:.3f} |")
    assert "them, 9 images, frozen: 1 runs of 1 variants" in shown


def test_a_folder_that_lacks_a_file_is_refused_before_anything_runs(folder: Path, seen: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks cifar10/votes-people\.parquet; the study needs"):
        data.check(data.STUDIES["people"], folder, weights=False)
    with pytest.raises(UserError, match=r"lacks weights/tf_efficientnet_lite0\.safetensors"):
        data.check(data.STUDIES["vlm"], folder)
    with pytest.raises(UserError, match="nobody is unknown; the variants are majority"):
        command.study(asked(folder, seen, tmp_path / "none.jsonl", "nobody"))


def test_a_pool_without_labels_is_refused(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table_ = pq.read_table(folder / "cifar10/test.parquet")
    unknown = pa.array([None, *table_["label"].to_pylist()[1:]], pa.int16())
    pq.write_table(table_.set_column(2, "label", unknown), tmp_path / "images.parquet")
    with pytest.raises(UserError, match="1 images without a label"):
        data.read_pictures(tmp_path / "images.parquet", 1000)


def test_fewer_images_are_the_first_of_more(folder: Path) -> None:
    path = folder / "cifar10/test.parquet"
    assert data.read_pictures(path, 30).ids == data.read_pictures(path, 100).ids[:30]


def test_rows_hold_what_the_votes_say_of_each_image(small: problem.Problem) -> None:
    rows = small.rows("union", weighted=True, soft=small.belief)
    place = torch.searchsorted(rows.numbers, small.images.numbers)
    union = combine_votes(small.votes, small.classes)
    assert torch.equal(rows.candidates(torch.arange(len(rows)), torch.device("cpu"))[place], union)
    assert rows.soft is not None
    dense = rows.soft.dense(place, small.classes, "cpu")
    assert torch.allclose(dense.double(), small.belief, atol=2e-3)
    assert rows.features is not None
    assert small.images.features is not None
    assert torch.equal(rows.features[place], small.images.features)
    assert small.held_out.sum() == 6


def test_a_last_stage_learns_what_networks_and_votes_say(small: problem.Problem) -> None:
    from coreg_ray.studies.real_noise.variants import VARIANTS

    outcome, epochs = run(small, VARIANTS["coreg_calm_last"], tiny.STUDENT, 0, 2)
    assert epochs == 4
    assert len(outcome.curve) == 4
    assert torch.allclose(outcome.purified.sum(dim=1), torch.ones(tiny.ROWS), atol=1e-5)


def line(votes: str, variant: str, test: float, purified: float, seed: int = 0) -> dict[str, Any]:
    accuracies = {"test_accuracy": test, "purified_accuracy": purified, "pool_accuracy": 0.5}
    of_votes = {"votes": votes, "student": "frozen", "rows": 9, "majority_accuracy": 0.5, "votes_accuracy": 0.5}
    return {"variant": variant, "seed": seed, **of_votes, **accuracies}


def test_ranks_are_means_over_studies_and_figures() -> None:
    lines = [
        line("a", "one", 0.6, 0.9), line("a", "two", 0.5, 0.9), line("a", "truth", 0.9, 0.9),
        line("b", "one", 0.4, 0.7), line("b", "two", 0.5, 0.8), line("b", "three", 0.9, 0.9),
    ]  # fmt: skip
    assert ranks(lines) == {"two": (2 + 1.5 + 1 + 1) / 4, "one": (1 + 1.5 + 2 + 2) / 4}
    assert ranks(lines, leave_out="b") == {"one": 1.25, "two": 1.75}


def test_the_table_shows_means_and_spreads() -> None:
    text = table([line("a", "one", 0.6, 0.9), line("a", "one", 0.7, 0.9, seed=1)])
    assert "| one | 2 | 0.6500 +- 0.0707 | 0.5000 +- 0.0000 | 0.9000 +- 0.0000 |" in text
