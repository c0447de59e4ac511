"""The main job as a user runs it: everything through Ray, on the embedded digits, at the size of its smoke twin."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray

from coreg_ray.cluster.pipeline import run_pipeline
from coreg_ray.cluster.purify import purify
from coreg_ray.cluster.stages import prepare
from coreg_ray.commands import labels
from coreg_ray.commands.base import Command, load
from coreg_ray.errors import UserError
from coreg_ray.ids import held_out, row_numbers
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.inventory import of_file

JOBS = Path(__file__).parents[2] / "jobs"
SPLITS: tuple[Split, Split] = ("pool", "test")


def command(output: Path, *more: str) -> Command:
    return load(["--preset", "smoke", "--output", str(output), *more], Command)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, _ray_session: None) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "smoke"
    return output, run_pipeline(command(output))


def test_one_command_makes_the_whole_run_folder(finished: tuple[Path, dict[str, Any]]) -> None:
    output, metrics = finished
    assert json.loads((output / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert metrics["annotation/encoded_images"] == 1437
    assert metrics["annotation/rejected_images"] == 0
    assert 0.55 <= metrics["test/zero_shot_accuracy"] <= 0.85
    assert metrics["annotation/coverage"] >= 0.8
    assert metrics["train/world_size"] == 1
    assert metrics["train/start_epoch"] == 0
    for name in ("test/accuracy", "test/accuracy_a", "test/accuracy_b", "criterion/label_free"):
        assert 0 <= metrics[name] <= 1
    rows = list(csv.DictReader((output / "history.csv").open()))
    assert [row["phase"] for row in rows] == ["warmup", "warmup", "coreg", "coreg"]
    assert float(rows[-1]["contrast/a"]) > 0
    for name in ("config.yaml", "report.html", "model/model.json", "model/model.safetensors"):
        assert (output / name).stat().st_size > 0
    assert list((output / "tensorboard").glob("events.*"))
    there = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    assert not [name for name in there if of_file(name) is None]  # docs/reference/run-folder.md has them all


def test_every_image_of_the_pool_has_a_purified_label(finished: tuple[Path, dict[str, Any]]) -> None:
    output, metrics = finished
    rows = ds.dataset(sorted((output / "purified").glob("*.parquet"))).to_table().to_pylist()
    candidates = ds.dataset(sorted((output / "candidates").glob("*.parquet"))).to_table()["image_id"].to_pylist()
    assert sorted(row["image_id"] for row in rows) == sorted(candidates)
    assert metrics["purified/images"] == len(rows) == 1437
    assert metrics["purified/changed"] == sum(row["label"] != row["annotator_label"] for row in rows)
    outside = held_out(row_numbers([row["image_id"] for row in rows]), command(output).source.holdout)
    assert [row["clean_a"] is None for row in rows] == outside.tolist()  # looked at, though never trained on
    truth = ds.dataset(sorted((output / "labels/pool").glob("*.parquet"))).to_table()
    names = RunFolder.at(output).read_candidate_manifest().class_names  # type: ignore[union-attr]
    true = dict(zip(truth["image_id"].to_pylist(), truth["label"].to_pylist(), strict=True))
    hits = [row["label"] == names[true[row["image_id"]]] for row in rows]
    assert metrics["purified/accuracy"] == pytest.approx(sum(hits) / len(hits))
    told = ds.dataset(sorted((output / "probabilities").glob("*.parquet"))).to_table()
    assert len(told) == len(rows)


def test_macro_f1_and_recall_stand_beside_every_accuracy(finished: tuple[Path, dict[str, Any]]) -> None:
    output, metrics = finished
    names = {name for name in metrics if re.search(r"^(?!int8/).*/(zero_shot_)?accuracy(_[ab])?$", name)}
    assert names == {
        *("annotation/zero_shot_accuracy", "test/zero_shot_accuracy", "test/accuracy"),
        *("test/accuracy_a", "test/accuracy_b", "purified/accuracy"),
    }
    labels = {split: ds.dataset(sorted((output / "labels" / split).glob("*.parquet"))) for split in SPLITS}
    images = {split: np.bincount(table.to_table()["label"].to_numpy()) for split, table in labels.items()}
    for name in names:
        recall = metrics[name.replace("accuracy", "recall")]
        count = images["test" if name.startswith("test/") else "pool"]
        assert float(np.dot(recall, count) / count.sum()) == pytest.approx(metrics[name], abs=0.01)
        assert 0 < metrics[name.replace("accuracy", "macro_f1")] <= 1


def test_annotations_hold_one_vote_per_prompt_and_no_label(finished: tuple[Path, dict[str, Any]]) -> None:
    table = ds.dataset(sorted((finished[0] / "annotations").rglob("*.parquet"))).to_table()
    assert table.num_rows == 1797
    assert {len(votes) for votes in table["votes"].to_pylist()} == {12}
    for folder in ("annotations", "candidates", "rows"):
        names = ds.dataset(sorted((finished[0] / folder).rglob("*.parquet"))).schema.names
        assert "label" not in names


@pytest.mark.cluster
def test_the_same_command_again_finds_everything_done(finished: tuple[Path, dict[str, Any]], ray_cluster: None) -> None:
    output, metrics = finished
    history = (output / "history.csv").read_text()
    made = {path: path.stat().st_mtime_ns for path in (output / "purified").iterdir()}
    again = run_pipeline(command(output))
    assert {path: path.stat().st_mtime_ns for path in (output / "purified").iterdir()} == made
    assert again["purified/accuracy"] == metrics["purified/accuracy"]
    assert again["annotation/encoded_images"] == 0
    assert again["train/start_epoch"] == 4
    assert again["test/accuracy"] == metrics["test/accuracy"]
    assert (output / "history.csv").read_text() == history


@pytest.mark.cluster
def test_purified_labels_go_on_where_they_were_interrupted_and_follow_the_checkpoint(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, ray_cluster: None
) -> None:
    output = tmp_path / "smoke"
    copytree(finished[0], output)
    run, config = RunFolder.at(output), command(output)
    whole = run.read_purified_manifest()
    first, *others = sorted((output / "purified").glob("*.parquet"))
    content, kept = pq.read_table(first), {path: path.stat().st_mtime_ns for path in others}
    first.unlink()
    (output / "purified/manifest.json").unlink()
    assert purify(config, run) == whole
    assert pq.read_table(first).select(["image_id", "label"]) == content.select(["image_id", "label"])
    assert {path: path.stat().st_mtime_ns for path in others} == kept
    (newest,) = [path for path in (output / "checkpoints").iterdir() if path.name == "epoch-000003"]
    rmtree(newest)
    labels.main([str(output), "--format", "csv", "--output", str(tmp_path / "labels.csv")])  # makes them anew
    earlier = run.read_purified_manifest()
    assert whole is not None
    assert earlier is not None
    assert earlier.made_from != whole.made_from
    assert not first.exists()
    assert len(list(csv.DictReader((tmp_path / "labels.csv").open()))) == 1437
    assert run.read_metrics()["purified/accuracy"] == earlier.figures["purified/accuracy"]


@pytest.fixture(scope="module")
def second(finished: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """A run with the annotations of the first."""
    output = finished[0].parent / "second"
    plain = command(output, "--method.epochs", "2", "--seed", "5", "--report.baselines", "true")
    return output, run_pipeline(plain, annotated=str(finished[0]))


@pytest.mark.cluster
def test_training_from_an_annotation_made_before(
    finished: tuple[Path, dict[str, Any]], second: tuple[Path, dict[str, Any]], ray_cluster: None
) -> None:
    output, metrics = second
    assert metrics["test/zero_shot_accuracy"] == finished[1]["test/zero_shot_accuracy"]
    assert metrics["annotation/coverage"] == finished[1]["annotation/coverage"]
    assert len((output / "history.csv").read_text().splitlines()) == 3
    compared = json.loads((output / "baselines.json").read_text())["baselines"]
    assert len(compared) == 2  # both learn from the other run's embeddings
    assert compared[0]["accuracy"] > 0.5


@pytest.mark.cluster
def test_annotations_that_a_run_has_borrowed_serve_a_third_one(
    finished: tuple[Path, dict[str, Any]], second: tuple[Path, dict[str, Any]], tmp_path: Path, ray_cluster: None
) -> None:
    first, lender, third = (RunFolder.at(path) for path in (finished[0], second[0], tmp_path / "third"))
    assert not lender.exists("annotations")
    figures = prepare(command(tmp_path / "third"), third, annotated=lender)
    expected = {name: value for name, value in finished[1].items() if name in figures and not name.startswith("time/")}
    assert expected["annotation/rows"] == 1437
    assert expected["test/zero_shot_accuracy"] > 0
    assert {name: value for name, value in figures.items() if not name.startswith("time/")} == expected
    assert third.read_candidate_manifest() == first.read_candidate_manifest()
    assert [third.read_rows_manifest(split) for split in SPLITS] == [
        first.read_rows_manifest(split) for split in SPLITS
    ]
    assert [third.annotations(split) for split in SPLITS] == [first.annotations(split) for split in SPLITS]


@pytest.mark.cluster
def test_sigterm_ends_a_run_in_words_and_the_same_command_goes_on(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, ray_cluster: None
) -> None:
    """On a Ray of its own first, which has to end with it; then on a cluster."""
    run = tmp_path / "run"
    arguments = ["--preset", "smoke", "--output", str(run), "--student.width", "4", "--export.onnx", "false"]
    RunFolder.at(run).claim(load(arguments, Command))
    for part in ("annotations", "labels", "rows", "candidates"):
        copytree(finished[0] / part, run / part)
    program = [sys.executable, str(JOBS / "pipeline.py"), *arguments]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(program, env=alone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 1500
        while not (run / "history.csv").exists():
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (run / ".lock").exists()
        job.send_signal(signal.SIGTERM)
        _, shown = job.communicate(timeout=1500)
    assert job.returncode == 143
    assert "SIGTERM" not in shown
    assert "Traceback" not in shown
    assert shown.endswith("\nstopped; the same command continues this run\n")
    assert not (run / ".lock").exists()
    assert not list(run.rglob("*.partial"))
    there = alone | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(program, env=there, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "metrics.json").read_text())["train/start_epoch"] >= 1
    assert (run / "model/model.json").exists()


def test_other_settings_on_the_same_folder_are_refused(tmp_path: Path) -> None:
    output = RunFolder.at(tmp_path)
    output.claim(command(tmp_path))
    output.claim(command(tmp_path, "--cluster.num_workers", "2", "--checkpoint.keep", "5"))
    with pytest.raises(UserError, match=r"method\.epochs 4 -> 9.*choose another --output"):
        output.claim(command(tmp_path, "--method.epochs", "9"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.tex.*choose an empty folder"):
        RunFolder.at(tmp_path).claim(command(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        RunFolder.at(tmp_path / "file").claim(command(tmp_path / "file"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method.epochs", "0"], "method.epochs=0"),
        (["--method.epoch", "9"], "did you mean method.epochs"),
        (["--cluster.num_workers", "3"], "use 1 or an even number"),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, JOBS / "pipeline.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
