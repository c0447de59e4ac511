"""What a review says of a run's labels: who was right, when that decides, and what follows."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from labelled_run import NAMES, labelled_run, purify_by_hand

from coreg_ray import metrics
from coreg_ray.annotation.arrow import write_table
from coreg_ray.commands import labels as command
from coreg_ray.deploy.purified import SCHEMA
from coreg_ray.deploy.reviewed import reviewed, verdict
from coreg_ray.pure.trust import ENOUGH, Evidence, Reviewed
from coreg_ray.run.folder import MANIFEST, REVIEW, RunFolder
from coreg_ray.run.trust import review_figures, trust_figures, trust_in_words


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that says its networks are not to be trusted, and that has labels of 300 images beside its own."""
    made = labelled_run(tmp_path)
    purify_by_hand(made)
    manifest = made.read_purified_manifest()
    assert manifest is not None
    made.write_purified_manifest(replace(manifest, figures=trust_figures(Evidence(False, 0.3, 0.5, 50))))
    rows: list[dict[str, Any]] = [
        {"image_id": f"{number}.png", "label": "cat", "annotator_label": "CON", "candidates": [],
         "status": "trusted" if number >= 250 else "clean"}
        for number in range(300)
    ]  # fmt: skip
    write_table(made.purified, "more.parquet", pa.Table.from_pylist(rows, SCHEMA))
    return made


def review(run: RunFolder, labels: dict[str, str]) -> None:
    text = "".join(f"{image_id},{label}\n" for image_id, label in labels.items())
    run.write(REVIEW, f"image_id,label\n{text}".encode())


def test_who_is_right_is_counted_over_labels_that_say_something(run: RunFolder) -> None:
    assert reviewed(run) == Reviewed(0, 0, 0)  # no review yet
    of = ["cat"] * 60 + ["CON"] * 30 + ["a/b"] * 20 + ["?", "-", "no class", ""]
    labels = {f"{number}.png": label for number, label in enumerate(of)}
    review(run, labels | {"299.png": "cat", "gone.png": "cat"})  # trained with; no image of the pool
    assert reviewed(run) == Reviewed(110, 60, 30)
    manifest = run.read_candidate_manifest()
    assert manifest is not None
    other = replace(manifest, names=[[name, f"{name} by another name"] for name in manifest.class_names])
    run.candidates.write_json(MANIFEST, other.as_json())
    review(run, {"1.png": "cat by another name", "2.png": "nobody's name"})
    assert reviewed(run) == Reviewed(1, 1, 0)
    run.write(REVIEW, b"\xff\xfe no table")
    assert reviewed(run) == Reviewed(0, 0, 0)


def test_the_interval_is_wilsons_of_the_images_on_which_one_alone_is_right() -> None:
    low, high = Reviewed(200, 60, 20).gain
    assert (low, high) == pytest.approx((0.4 * (2 * 0.6452 - 1), 0.4 * (2 * 0.8318 - 1)), abs=1e-3)
    assert Reviewed(200, 0, 0).gain == (0.0, 0.0)
    assert Reviewed(ENOUGH, 30, 5).improved is True
    assert Reviewed(ENOUGH, 5, 30).improved is False
    assert Reviewed(ENOUGH, 12, 10).improved is None
    assert Reviewed(ENOUGH - 1, 30, 5).improved is None
    assert review_figures(Reviewed(ENOUGH - 1, 30, 5)) == {}


def test_a_hundred_images_decide_which_labels_are_written(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(name: str) -> str:
        command.main([str(tmp_path / "run"), "--format", "csv", "--output", str(tmp_path / name)])
        with (tmp_path / name).open(encoding="utf-8", newline="") as stream:
            return {row["image_id"]: row["label"] for row in csv.DictReader(stream)}["one/_1.png"]

    before = written("before.csv")
    assert "not to be trusted above the votes alone" in capsys.readouterr().out
    assert metrics.TRUST_REVIEWED not in run.read_metrics()
    review(run, {f"{number}.png": "cat" for number in range(120)})
    assert verdict(run)[metrics.VOTES_IMPROVED] is True
    written("after.csv")
    assert "votes and networks together" in capsys.readouterr().out
    figures = run.read_metrics()
    assert (figures[metrics.VOTES_IMPROVED], figures[metrics.TRUST_REVIEWED]) == (True, 120)
    assert before in NAMES
    words = trust_in_words(figures)
    assert words.startswith(
        "On the 120 reviewed images networks and votes together are more right than the votes alone"
    )
    review(run, {f"{number}.png": "CON" for number in range(120)})
    assert "are less right than the votes alone, by" in trust_in_words(verdict(run))
    mixed = {f"{number}.png": "cat" if number % 2 else "CON" for number in range(120)}
    review(run, mixed)
    undecided = trust_in_words(verdict(run))
    assert "less and" in undecided
    assert "not to be trusted above the votes alone: on held-out images" in undecided
    review(run, {"1.png": "cat"})  # a review that somebody took back
    written("again.csv")
    assert metrics.TRUST_REVIEWED not in run.read_metrics()
    assert "reviewed" not in trust_in_words(run.read_metrics())
