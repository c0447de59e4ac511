"""Searches as users run them: one annotation for all trials, stopped early, killed and gone on with, refused."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from shutil import copytree
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from leftovers import all_actors, left_behind
from PIL import Image

from coreg_ray.cluster.address import refuse_silent
from coreg_ray.cluster.tune import search
from coreg_ray.cluster.tune_trial import CandidateMaker, Study
from coreg_ray.commands import train, tune
from coreg_ray.commands.base import load
from coreg_ray.config import Config
from coreg_ray.config.texts import resolved_yaml
from coreg_ray.embedded.digits import CLASS_NAMES, Split, digits
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.search_folder import SearchFolder
from coreg_ray.search.definition import Search, claim_search
from coreg_ray.search.space import read_space

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

ROOT = Path(__file__).parents[2]
PROMPTS = ["the digit {}", "a printed {}"]
DIVERGES = 1e30  # a learning rate


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 scans to label and 40 with labels, as folders of pictures."""
    folder = tmp_path_factory.mktemp("images")
    splits: dict[Split, int] = {"train": 160, "test": 40}
    for split, count in splits.items():
        for name, picture, label in zip(*(part[:count] for part in digits(split, 16)), strict=True):
            place = folder / split / CLASS_NAMES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{name.rsplit('/', 1)[1]}.png")
    return folder


def short_trials(images: Path, output: Path) -> Config:
    """Trials of four epochs that take a second, two at a time."""
    return Config.model_validate(
        {
            "output": str(output),
            "source": {"kind": "folder", "path": str(images / "train"), "classes": list(CLASS_NAMES),
                       "prompts": PROMPTS, "holdout": 0.15},
            "test": {"kind": "folder", "path": str(images / "test")},
            "annotator": {"model": "embedded"},
            "student": {"resolution": 8, "width": 4, "projection": 8},
            "method": {"epochs": 4, "warmup_epochs": 2, "contrast_delay": 0, "batch_size": 32, "warmup_batch_size": 32,
                       "queue_size": 64, "key_momentum": 0.9},
            "cluster": {"resources_per_worker": {"CPU": 2}},
            "export": {"onnx": False},
            "report": {"pictures": 0, "baselines": False, "review": 0},
        }
    )  # fmt: skip


@pytest.fixture
def config(images: Path, tmp_path: Path) -> Config:
    return short_trials(images, tmp_path / "search")


def space_file(folder: Path, **keys: Any) -> str:
    (folder / "space.yaml").write_text(yaml.safe_dump(keys))
    return str(folder / "space.yaml")


def table(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / "trials.csv").open()))


def with_annotation(donor: Path, definition: Search, config: Config) -> Search:
    """The state of a search that was killed before its first trial began, and how to go on with it."""
    output = SearchFolder.at(config.output)
    claim_search(definition, config, read_space(definition.space, config), output)
    for part in ("annotations", "labels", "rows", "candidates"):
        copytree(donor / part, Path(output.path) / part)
    return definition.model_copy(update={"resume": True})


def with_schedule(config: Config, epochs: int) -> Config:
    return config.model_copy(update={"method": config.method.model_copy(update={"epochs": epochs})})


def histories(output: Path) -> dict[str, list[dict[str, Any]]]:
    """By name of the run folder, the epochs of each trial."""
    folder = SearchFolder.at(output)
    return {name: folder.trial(name).read_history() for name in folder.trials.entries()}


def gcs_address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def trial_processes() -> set[str]:
    """All that ever ran trials on this cluster."""
    return {actor.actor_id for actor in all_actors() if "ImplicitFunc" in actor.class_name}


@pytest.fixture(scope="module")
def first(images: Path, tmp_path_factory: pytest.TempPathFactory, _ray_session: None) -> Path:
    """A search over what candidate sets and images are made of; its annotation serves the other tests."""
    folder = tmp_path_factory.mktemp("first")
    keys = {
        "method.learning_rate": {"loguniform": [0.01, 0.1]},
        "method.prior": {"choice": ["uniform", "annotator"]},
        "candidates.mode": {"grid": ["union", "cumulative"]},
        "source.prompts": {"choice": [PROMPTS, PROMPTS[:1]]},
        "student.resolution": {"grid": [8, 10]},
    }
    (folder / "run.yaml").write_text(resolved_yaml(short_trials(images, folder / "search")))
    options = ["--config", str(folder / "run.yaml"), "--space", space_file(folder, **keys), "--num_samples", "1"]
    options += ["--grace_period", "1", "--reduction_factor", "2", "--max_concurrent", "1"]
    with (folder / "printed").open("w") as printed, redirect_stdout(printed):
        tune.main(options)
    return folder / "search"


def test_candidates_prompts_prior_and_resolution_are_searched_over_one_annotation(first: Path) -> None:
    rows = table(first)
    assert len(rows) == 4
    assert {(row["candidates.mode"], row["student.resolution"]) for row in rows} == {
        (mode, side) for mode in ("union", "cumulative") for side in ("8", "10")
    }
    assert {row["status"] for row in rows} <= {"finished", "stopped early"}
    assert rows[0]["status"] == "finished"
    ended = [epoch["criterion/combined"] for epoch in histories(first)[rows[0]["trial"]][-3:]]
    assert float(rows[0]["objective"]) == pytest.approx(sum(ended) / len(ended))
    printed = (first.parent / "printed").read_text()
    assert [line.split()[0] for line in printed.splitlines()[1:5]] == [row["trial"] for row in rows]
    assert f"Best by criterion/combined: trial {rows[0]['trial']}" in printed
    assert f"--annotations {first}/annotations --config {first}/best.yaml" in printed  # what to do next
    assert (first / "trials.svg").read_text().count("</svg>") == 1
    assert len(list((first / "annotations/pool").glob("*/"))) == 1
    assert {len(list((first / "trials" / row["trial"] / "checkpoints").glob("epoch-*"))) for row in rows} <= {1, 2, 3}
    borrowed = {(first / "trials" / row["trial"] / "borrowed.json").read_text() for row in rows}
    assert len(borrowed) == 4  # each has its own candidate sets and size of images
    assert not [trial for trial in rows if (first / "trials" / trial["trial"] / "rows").exists()]


def test_the_best_configuration_is_one_that_the_training_job_takes(first: Path, tmp_path: Path) -> None:
    (best,) = (row for row in table(first) if row["trial"] in (first / "best.yaml").read_text().splitlines()[0])
    given = ["--annotations", str(first / "annotations"), "--config", str(first / "best.yaml")]
    config = load([*given, "--output", str(tmp_path / "best")], train.TrainCommand)
    # The same settings, seed, rows and candidate sets: the same training.
    trial = RunFolder.at(first / "trials" / best["trial"]).read_config()
    assert trial is not None
    assert config.decisive() == trial.decisive()
    for key in ("method.learning_rate", "method.prior", "candidates.mode", "student.resolution"):
        section, name = key.split(".")
        assert str(getattr(getattr(config, section), name)) == best[key]


def test_candidate_sets_that_lost_a_part_are_made_anew_when_a_search_goes_on(images: Path, first: Path) -> None:
    config = short_trials(images, first)
    space = read_space(str(first.parent / "space.yaml"), config)
    study = Study(config, space, "criterion/combined", keep=False, cpus=2, images=152, at_once=1)
    cumulative = Config.model_validate(config.settings() | {"candidates": {"mode": "cumulative"}}).settings()
    folder = Path(CandidateMaker(study).folder(cumulative))
    (part,) = folder.glob("*.parquet")
    sets = pq.read_table(part)
    part.unlink()
    assert CandidateMaker(study).folder(cumulative) == str(folder)
    assert pq.read_table(part) == sets


def test_a_killed_search_goes_on_where_it_was_and_a_loss_that_is_not_finite_fails_its_trial_alone(
    config: Config, first: Path, tmp_path: Path, free_before: float
) -> None:
    config = with_schedule(config, epochs=6)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"max_failures": 1})})
    definition = Search(
        space=space_file(tmp_path, **{"method.learning_rate": {"choice": [0.02, DIVERGES]}}),
        num_samples=3, scheduler="median", search="optuna", max_concurrent=2,
    )  # fmt: skip
    with_annotation(first, definition, config)
    output = Path(config.output)
    (tmp_path / "run.yaml").write_text((output / "config.yaml").read_text())
    command = ["--config", str(tmp_path / "run.yaml"), "--output", str(output), "--space", str(definition.space)]
    command += ["--num_samples", "3", "--scheduler", "median", "--search", "optuna", "--max_concurrent", "2"]
    environment = {"RAY_ADDRESS": gcs_address(), "TUNE_GLOBAL_CHECKPOINT_S": "1"}
    with (tmp_path / "printed").open("w") as printed:
        driver = subprocess.Popen(
            [sys.executable, "jobs/tune.py", *command],
            cwd=ROOT, stdout=printed, stderr=printed, env=os.environ | environment,
        )  # fmt: skip
        deadline = time.monotonic() + 1500
        while not any(len(history) > 1 for history in histories(output).values()):
            assert driver.poll() is None, (tmp_path / "printed").read_text()
            assert time.monotonic() < deadline, (tmp_path / "printed").read_text()
            time.sleep(0.05)
        driver.kill()
        driver.wait()
    assert not left_behind(free_before)
    before = histories(output)
    assert all(len(history) < 6 for history in before.values())

    search(definition.model_copy(update={"resume": True}), config)
    rows, after = table(output), histories(output)
    assert len(rows) == 3
    # One that Tune did not know yet begins anew, under another name, and its folder goes.
    assert {f"trials/{name}" for name in after} == {row["run"] for row in rows}
    finished, failed = ([row for row in rows if row["status"] == status] for status in ("finished", "failed"))
    assert len(finished) + len(failed) == 3
    for row in finished:
        assert [epoch["epoch"] for epoch in after[row["trial"]]] == list(range(6))
    assert {float(row["method.learning_rate"]) for row in failed} == {DIVERGES}
    assert all("loss is not finite" in row["error"] for row in failed)
    assert not list(output.glob("tune/*/error.txt"))  # no error to Tune, which would try again
    for name, history in ((name, history) for name, history in before.items() if history):
        # No epoch that was done is done again.
        assert [row["time/epoch_s"] for row in after[name]][: len(history)] == [row["time/epoch_s"] for row in history]
    assert yaml.safe_load((output / "best.yaml").read_text())["method"]["learning_rate"] == 0.02


def test_a_population_takes_over_the_state_of_its_best(config: Config, first: Path, tmp_path: Path) -> None:
    # All but the last of it warm-up, in which even so little learns; long enough for both trials to be there together.
    schedule = {"epochs": 15, "warmup_epochs": 13, "warmup_batch_size": 16}
    config = Config.model_validate(
        config.settings()
        | {"cluster": {"resources_per_worker": {"CPU": 1}}, "method": config.method.model_dump() | schedule}
    )
    # One learns and the other does not, so that it is never by chance who takes over from whom.
    keys = {"method.learning_rate": {"grid": [0.05, 1e-7]}, "method.lambda_u": {"uniform": [0.5, 2]}}
    definition = Search(
        space=space_file(tmp_path, **keys),
        num_samples=1, scheduler="pbt", perturbation_interval=4, objective="test/accuracy",
    )  # fmt: skip
    before = trial_processes()
    search(with_annotation(first, definition, config), config)
    assert len(trial_processes() - before) == 2  # who takes over goes on in the process that it has
    rows = table(Path(config.output))
    assert len(rows) == 2
    assert {row["epochs"] for row in rows} == {"15"}
    heirs = [row["run"] for row in rows if "-from-" in row["run"]]
    assert heirs
    history = RunFolder.at(f"{config.output}/{heirs[0]}").read_history()
    assert [row["epoch"] for row in history] == list(range(15))  # the donor's epochs, then its own
    for row in rows:
        assert float(row["method.learning_rate"]) in (0.05, 1e-7)
        assert 0.5 <= float(row["method.lambda_u"]) <= 2


def test_mlflow_gets_every_trial(config: Config, first: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    address = f"sqlite:///{tmp_path}/mlflow.db"
    keys = {"method.learning_rate": {"grid": [0.02, 0.04]}}
    definition = Search(space=space_file(tmp_path, **keys), num_samples=1, scheduler="fifo", mlflow=address)
    search(with_annotation(first, definition, config), config)
    client = mlflow.tracking.MlflowClient(address)
    runs = client.search_runs([client.get_experiment_by_name("search").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    known = {float(row["method.learning_rate"]): float(row["criterion/combined"]) for row in table(Path(config.output))}
    told = {float(run.data.params["method.learning_rate"]): run.data.metrics["criterion/combined"] for run in runs}
    assert told == pytest.approx(known)


def test_wandb_gets_every_trial(config: Config, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")  # its runs then lie beside Tune's own logs
    keys = {"method.learning_rate": {"grid": [0.02, 0.04]}}
    definition = Search(space=space_file(tmp_path, **keys), num_samples=1, scheduler="fifo", wandb="digits")
    search(with_annotation(first, definition, config), config)
    runs = list(Path(config.output).glob("tune/*/wandb/offline-run-*/*.wandb"))
    assert {run.stem.removeprefix("run-") for run in runs} == {row["trial"] for row in table(Path(config.output))}
    assert any(b"criterion/combined" in run.read_bytes() for run in runs)


def test_trials_of_several_workers_leave_nothing_behind_when_stopped(
    config: Config, first: Path, tmp_path: Path, free_before: float
) -> None:
    cluster = {"num_workers": 2, "resources_per_worker": {"CPU": 1}}  # two of them do not fit beside each other
    schedule = {"epochs": 4, "warmup_epochs": 3, "warmup_batch_size": 16}
    config = Config.model_validate(
        config.settings() | {"cluster": cluster, "method": config.method.model_dump() | schedule}
    )
    keys = {"method.learning_rate": {"grid": [0.05, 1e-7]}}
    # One after the other: by the better one, if it was first, the other is stopped.
    definition = Search(space=space_file(tmp_path, **keys), num_samples=1, grace_period=3, max_concurrent=1)
    search(with_annotation(first, definition, config), config)
    rows = table(Path(config.output))
    assert [(row["status"], row["epochs"]) for row in rows] == [("finished", "4"), ("stopped early", "3")]
    assert not left_behind(free_before)


def test_what_cannot_work_is_refused_before_anything_is_annotated(config: Config, images: Path, tmp_path: Path) -> None:
    rate = {"method.learning_rate": {"grid": [0.01, 0.02]}}

    def refused(
        message: str, keys: dict[str, Any] = rate, options: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        changed = Config.model_validate(config.settings() | settings)
        with pytest.raises(UserError, match=message):
            search(Search(space=space_file(tmp_path, **keys), **(options or {})), changed)
        assert not (Path(config.output) / "annotations").exists()

    refused(r"unknown setting method.rate; .*learning_rate", {"method.rate": {"uniform": [0, 1]}})
    refused(r"uniform \[1.0, 0.5\] is empty|uniform \[1, 0.5\] is empty", {"method.lambda_u": {"uniform": [1, 0.5]}})
    refused(
        r"a trial needs 64 CPU on one node, and the largest has 4 CPU; lower cluster.resources_per_worker",
        cluster={"resources_per_worker": {"CPU": 64}},
    )
    refused(r"num_workers=6 .* needs 6 CPU \(there are 4\)", cluster={"num_workers": 6})
    refused(
        r"cluster.num_workers=4 needs 4.01 CPU, its driver's share among it, and the cluster has 4 CPU",
        cluster={"num_workers": 4},
    )
    refused("test/accuracy needs labelled images", options={"objective": "test/accuracy"}, test={})
    unlabelled = tmp_path / "unlabelled.parquet"
    pictures = [picture.read_bytes() for picture in sorted((images / "test").rglob("*.png"))[:4]]
    pq.write_table(pa.table({"image": pictures}), unlabelled)
    refused(
        "objective=test/accuracy needs labels, and the test images have none",
        options={"objective": "test/accuracy"}, test={"kind": "parquet", "path": str(unlabelled)},
    )  # fmt: skip
    RunFolder.at(config.output).write("tune/tuner.pkl", "")  # from here on, this is a search that has begun
    refused("another search.*num_samples 6 -> 7", options={"num_samples": 7, "resume": True})


def test_without_a_cluster_at_the_address_a_job_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RAY_ADDRESS=http://127.0.0.1:8265 .*which takes submitted jobs alone"):
        refuse_silent("http://127.0.0.1:8265")
    address = "127.0.0.1:1"
    job = subprocess.run(
        [sys.executable, "jobs/tune.py", "--output", str(tmp_path / "x")], cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {"RAY_ADDRESS": address}, timeout=600, check=False,
    )  # fmt: skip
    assert job.returncode == 2
    assert f"error: RAY_ADDRESS={address}" in job.stderr
    assert "nobody answers there" in job.stderr
    assert "unset RAY_ADDRESS" in job.stderr
    assert "Traceback" not in job.stderr
