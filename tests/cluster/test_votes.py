"""Votes from files on their way through Ray: alone, and beside a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from toy_clip import write_toy_clip

from coreg_ray.cluster.annotate import annotate_splits
from coreg_ray.cluster.candidates import build_candidates, zero_shot
from coreg_ray.cluster.estimate import estimate
from coreg_ray.cluster.pipeline import run_pipeline
from coreg_ray.commands.pipeline import summary
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.pure.label_fit import fit
from coreg_ray.pure.label_model import block_sums, posterior
from coreg_ray.pure.voters import survey_votes
from coreg_ray.report.vote_targets import MAJORITY, MODELLED
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(0, 100, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(noise + 155 * (level % 2)).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures and a broken one, 6 labelled ones, and what four people say of 38 of them and of two others."""
    root = tmp_path_factory.mktemp("images")
    for number in range(40):
        picture(root / "pool" / f"{number:02d}.png", number)
    (root / "pool" / "broken.png").write_bytes(b"no image")
    for number in range(6):
        picture(root / "test" / ["cat", "dog"][number % 2] / f"{number}.png", 100 + number)
    (root / "votes").mkdir()
    lines = [f"{number:02d}.png,{','.join(map(str, votes(number)))}" for number in [*range(38), 90, 91]]
    for part in range(2):
        (root / "votes" / f"{part}.csv").write_text("image_id,ann,bob,eve,joe\n" + "\n".join(lines[part::2]) + "\n")
    return root


def votes(number: int) -> list[int]:
    """Four voters on a picture: three err now and then, and one always says the same."""
    return [(number + (number % step == 0)) % 2 for step in (7, 9, 11)] + [1]


def config(images: Path, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "source": {"kind": "folder", "path": str(images / "pool"), "classes": ["cat", "dog"], "prompts": ["a {}"]},
        "test": {"kind": "folder", "path": str(images / "test")},
        "annotator": {"kind": "votes", "votes": str(images / "votes")},
        "candidates": {"mode": "label_model"},
        "student": {"resolution": 8},
    }
    return Config.model_validate({**tree, **changes})


def table(folder: Folder) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in folder.files(".parquet")]).sort_by("image_id")


def test_votes_alone_make_sets_of_the_label_model_and_leave_out_what_they_are_not_about(
    images: Path, tmp_path: Path
) -> None:
    run = RunFolder.at(tmp_path / "run")
    done = annotate_splits(config(images), ["pool", "test"], run, rows=True)
    assert (done["pool"].encoded_images, done["pool"].rejected_images, done["pool"].missing_images) == (38, 3, 0)
    answers = table(run / "annotations")
    assert answers["image_id"].to_pylist() == [f"{number:02d}.png" for number in range(38)]
    assert answers["votes"].to_pylist() == [votes(number) for number in range(38)]
    reasons = {row["image_id"]: row["reason"] for row in table(run.rejects("pool")).to_pylist()}
    assert reasons["broken.png"] == "not an image"
    assert reasons["38.png"].startswith("no vote in votes-")
    held = [pq.read_table(path, columns=["row"]).num_rows for path in run.rows("pool").files(".parquet")]
    assert sum(held) == 38
    assert sum(pq.read_table(path).num_rows for path in run.rows("test").files(".parquet")) == 6
    manifest = build_candidates(config(images), run)
    given = torch.tensor([votes(number) for number in range(38)])
    model = fit(survey_votes(given, 2), lambda one: block_sums(given, one))
    belief = posterior(given, model)
    for row, own in zip(table(run / "candidates").to_pylist(), belief, strict=True):
        assert row["scores"] == pytest.approx(own[row["candidates"]].tolist(), abs=1e-3)
    assert [line.split(",")[1] for line in run.read("voters.csv").decode().splitlines()[1:]] == [
        *("ann", "bob", "eve", "joe")
    ]
    assert any("voter 'joe'" in warning for warning in manifest.quality.warnings or [])
    assert zero_shot(config(images), run) == {}
    again = annotate_splits(config(images), ["pool", "test"], run, rows=True)
    assert (again["pool"].encoded_images, again["pool"].rejected_images) == (0, 3)
    with pytest.raises(UserError, match="nothing to estimate"):
        estimate(config(images), run)
    foreign = config(images, source={**config(images).source.model_dump(), "path": str(images / "test")})
    with pytest.raises(UserError, match=r"it is about '00.png'.*the pool holds 'cat/0.png'"):
        annotate_splits(foreign, ["pool"], RunFolder.at(tmp_path / "foreign"))


def test_a_run_on_votes_alone_says_what_stands_in_the_place_of_a_model(images: Path, tmp_path: Path) -> None:
    """The whole pipeline without a model: nothing is zero-shot, and students of the votes are the comparison."""
    (tmp_path / "manual.csv").write_text("image_id,label\n00.png,cat\n01.png,dog\n")
    changes: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "source": {**config(images).source.model_dump(), "manual_labels": str(tmp_path / "manual.csv"), "holdout": 0.1},
        "test": {**config(images).test.model_dump(), "kind": "folder"},
        "candidates": {"mode": "label_model", "weighted": True},
        "method": {"epochs": 2, "warmup_epochs": 1, "batch_size": 8, "warmup_batch_size": 8, "queue_size": 16},
        "student": {"resolution": 8, "width": 4, "projection": 8},
    }
    figures = run_pipeline(config(images, **changes))
    run = RunFolder.at(changes["output"])
    assert "test/zero_shot_accuracy" not in figures
    assert figures["purified/images"] == 38
    assert "votes are about the pool alone" in summary(figures, run.path)
    assert {line["name"] for line in run.read_json("baselines.json")["baselines"]} == {MAJORITY, MODELLED}
    page = run.read("report.html").decode()
    for told in ("Votes alone", MAJORITY, MODELLED, 'id="voters"', 'id="labels"', "embedding to train a linear probe"):
        assert told in page
    weights = {row["image_id"]: row["weights"] for row in table(run / "candidates").to_pylist()}
    assert weights["00.png"] == [1.0]  # a manual label
    assert any(min(some) < 1 for some in weights.values())


def test_votes_beside_a_model_are_voters_of_one_label_model(images: Path, tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path / "run")
    people = config(images).annotator.model_dump()
    (tmp_path / "looks.yaml").write_text("cat: [whiskers, fur]\ndog: [a wet nose]\n")
    source = {**config(images).source.model_dump(), "descriptions": str(tmp_path / "looks.yaml")}
    both = {"source": source, "annotator": write_toy_clip(tmp_path), "further_annotators": [people]}
    done = annotate_splits(config(images, **both), ["pool", "test"], run, rows=True)
    assert (done["pool"].rejected_images, done["pool"].missing_images) == (1, 0)  # the model answers for all others
    manifest = build_candidates(config(images, **both), run)
    assert manifest.quality.rows == 40
    lines = run.read("voters.csv").decode().splitlines()[1:]
    assert [line.split(",")[1].split(" (")[0] for line in lines[:3]] == ["a {}", "description 1", "description 2"]
    assert [line.split(",")[2] for line in lines] == ["40"] * 3 + ["38"] * 4
    assert list(zero_shot(config(images, **both), run))  # the model's own
    for candidates in ({"mode": "cpl"}, {"mode": "union", "align": "uniform"}):
        assert build_candidates(config(images, **both, candidates=candidates), run).quality.rows == 40
        assert not run.exists("voters.csv")
    without = config(images, **both | {"source": config(images).source})  # its one prompt alone
    assert build_candidates(without, run).quality.prompt_accuracy is None
    assert len(run.read("voters.csv").decode().splitlines()) == 1 + 5
