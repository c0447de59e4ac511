"""The commands as functions: the same settings and refusals, and objects that show themselves."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from finished_run import NAMES, export, finished_run
from labelled_run import PICTURES, labelled_run, purify_by_hand

import coreg_ray
from coreg_ray import Config, Labels, Run, UserError
from coreg_ray.commands import api, base
from coreg_ray.commands.base import Command
from coreg_ray.commands.compare import rows_of
from coreg_ray.run.folder import RunFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = finished_run(RunFolder.at(tmp_path_factory.mktemp("run")))
    export(folder)
    return Run(folder.path)


@pytest.fixture
def labelled(tmp_path: Path) -> Run:
    purify_by_hand(labelled_run(tmp_path))
    return Run(str(tmp_path / "run"))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Command, Any]]:
    """The configuration that `coreg_ray.train` hands on to the work, and whose annotations are taken."""
    handed: list[tuple[Command, Any]] = []
    monkeypatch.setattr(api, "trained", lambda config, annotations: handed.append((config, annotations)))

    def call(*words: Any, **settings: Any) -> tuple[Command, Any]:
        coreg_ray.train(*words, **settings)
        return handed[-1]

    return call


def test_public_names_are_there_and_named() -> None:
    for name in coreg_ray.__all__:
        assert getattr(coreg_ray, name) is not None
        assert name in dir(coreg_ray)
    with pytest.raises(AttributeError, match="no attribute 'trian'; it has Comparison"):
        coreg_ray.trian  # type: ignore[attr-defined]


def test_a_mistake_is_found_before_ray_and_torch_are_loaded() -> None:
    code = (
        "import sys, coreg_ray\n"
        "try:\n    coreg_ray.train('never', method={'epoch': 3})\n"
        "except coreg_ray.UserError as error:\n    print(error)\n"
        "print(*({'ray', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    told, loaded = ended.stdout.splitlines()
    assert told.startswith("unknown setting method.epoch; did you mean method.epochs? valid ones: method.kind")
    assert loaded in ("", "pyarrow")


def test_settings_are_those_of_the_command_line(settled: Any, tmp_path: Path) -> None:
    words = ["--preset", "digits,method-elr", "--method.epochs", "7", "--seed", "2", "--output", str(tmp_path / "a")]
    settings: dict[str, Any] = {"method": {"epochs": np.int64(7)}, "seed": 2}
    config, annotations = settled(tmp_path / "a", preset="digits,method-elr", **settings)
    assert config == base.load(words, Command, continues=True)
    assert annotations is None
    config, _ = settled("a", preset="digits,method-elr", **{"method.epochs": 7, "seed": 2})
    assert config.decisive() == base.load(words, Command).decisive()


def test_a_configuration_or_a_file_of_one_may_be_given(settled: Any, tmp_path: Path) -> None:
    whole = Config.model_validate({"seed": 4, "student": {"width": 4}, "method": {"epochs": 9}})
    config, _ = settled("a", config=whole, method={"epochs": 2})
    assert (config.output, config.seed, config.student.width, config.method.epochs) == ("a", 4, 4, 2)
    assert config.model_copy(update={"method": whole.method}).decisive() == whole.decisive()  # no preset lies under it
    file = tmp_path / "run.yaml"
    file.write_text("method.epochs: 8\nseed: 3\n")
    config, _ = settled("a", config=file, seed=7)
    assert (config.method.epochs, config.seed) == (8, 7)
    with pytest.raises(UserError, match="config is whole, so preset=smoke changes nothing"):
        settled("a", config=whole, preset="smoke")


def test_training_takes_the_settings_of_the_run_it_goes_on_with(settled: Any, finished: Run, tmp_path: Path) -> None:
    config, annotations = settled(tmp_path / "b", annotations=finished, seed=5)
    assert (config.source.classes, config.seed, annotations) == (NAMES, 5, finished.folder)
    config, annotations = settled(finished.folder)
    assert config.fingerprint() == finished.config.fingerprint()
    assert annotations is None
    with pytest.raises(UserError, match=r"has no config\.yaml, so nobody knows what was annotated"):
        settled(tmp_path / "b", annotations=tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": {"epoch": 3}}, "unknown setting method.epoch; did you mean method.epochs"),
        ({"methods": {"epochs": 3}}, "unknown setting methods.epochs; did you mean method.epochs"),
        ({"method": 3}, "method is a section of settings"),
        ({"method": {"epochs": 0}}, "method.epochs=0: input should be greater than or equal to 1"),
        ({"seed": "x"}, "seed=x: input should be a valid integer"),
        ({"source": {"kind": "folder"}}, "source.kind=folder needs source.path"),
        ({"preset": "smok"}, "preset=smok is unknown; the presets are cifar10"),
        ({"config": "none.yaml"}, r"--config none.yaml cannot be read \(No such file"),
        ({"estimate": True}, "unknown setting estimate"),
    ],
)
def test_what_the_command_line_refuses_is_refused(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    for function in (coreg_ray.annotate, coreg_ray.train):
        with pytest.raises(UserError, match=reason):
            function(tmp_path / "run", **settings)
    assert not list(tmp_path.iterdir())


def test_a_comparison_is_asked_for_in_plain_values(monkeypatch: pytest.MonkeyPatch, labelled: Run) -> None:
    handed: list[tuple[Any, Any]] = []

    def stop(config: Any, rows: Any) -> None:
        handed.append((config, rows))
        raise UserError("far enough")

    monkeypatch.setattr(api, "compared", stop)
    calls: list[dict[str, Any]] = [
        {"kinds": ["coreg", "pico"], "seeds": range(3), "method": {"epochs": 2}},
        {"variants": {"short": {"method": {"epochs": 1}}, "plain": {}}, "seeds": 4, "max_concurrent": 1},
    ]
    for settings in calls:
        with pytest.raises(UserError, match="far enough"):
            coreg_ray.compare(labelled, **settings)
    (kinds, none), (several, rows) = handed
    assert (kinds.kinds, kinds.seeds, kinds.method.epochs, none) == ("coreg,pico", "0,1,2", 2, None)
    assert (several.seeds, several.max_concurrent) == ("4", 1)
    assert [(row.name, row.changes) for row in rows_of(several, rows)] == [
        ("short", {"method.epochs": 1}),
        ("plain", {}),
    ]
    with pytest.raises(UserError, match="'a,b' are no seeds"):
        coreg_ray.compare(labelled, seeds="a,b")


def test_a_run_shows_itself_and_nothing_of_it_is_executed(finished: Run) -> None:
    assert "finished" not in repr(finished)  # it has no report yet
    assert repr(finished).startswith(f"Run('{finished.folder}': trained; ")
    shown = finished._repr_html_()
    assert "<td>test/accuracy</td>" in shown
    assert [epoch["epoch"] for epoch in finished.history] == [0, 1, 2, 3]
    assert finished.figures["test/accuracy"] == finished.history[-1]["test/accuracy"]
    assert finished.config.source.classes == NAMES
    assert finished.model().classes == NAMES
    nothing = Run("runs/<script>none")
    assert "does not exist, or is empty" in repr(nothing)
    assert "<script>" not in nothing._repr_html_()
    with pytest.raises(UserError, match=r"holds no config\.yaml, so it is no run"):
        nothing.config


def test_labels_are_a_table_and_may_be_written(labelled: Run, tmp_path: Path) -> None:
    every = coreg_ray.labels(labelled)
    assert isinstance(every, Labels)
    assert sorted(every.table["image_id"].to_pylist()) == sorted(PICTURES)
    assert len(every) == sum(every.counts.values()) == len(PICTURES)
    assert every.written is None
    assert "<td>=SUM(A1)</td>" in every._repr_html_()
    clean = coreg_ray.labels(labelled.folder, tmp_path / "out.parquet", status=["clean", "trusted"])
    assert set(clean.table["status"].to_pylist()) == {"clean", "trusted"}
    assert pq.read_table(tmp_path / "out.parquet").equals(clean.table)
    assert f"written to {tmp_path / 'out.parquet'}" in repr(clean)
    with pytest.raises(UserError, match="is there already"):
        labelled.labels(tmp_path / "out.parquet")
    with pytest.raises(UserError, match="sure is no status; use some of trusted, clean"):
        labelled.labels(status="sure")
    with pytest.raises(UserError, match=r"holds no config\.yaml, so it is no run"):
        coreg_ray.labels(tmp_path)


def test_credentials_are_not_shown() -> None:
    run = Run("s3://key:secret@bucket/run?endpoint_override=127.0.0.1:1&scheme=http")
    labels = Labels(run.folder, np.zeros(3), "both", {"clean": 3}, run.folder)
    assert "secret" not in repr(labels)


def test_names_of_classes_are_escaped(tmp_path: Path) -> None:
    import pyarrow as pa

    row = {"image_id": "<img src=x>", "label": "<b>", "status": "clean", "probability": 0.5}
    shown = Labels("run", pa.Table.from_pylist([row]), "both")._repr_html_()
    assert "<img" not in shown
    assert "&lt;img src=x&gt;" in shown


def test_the_library_logs_as_it_does(caplog: pytest.LogCaptureFixture, settled: Any, finished: Run) -> None:
    with caplog.at_level(logging.INFO):
        settled(finished.folder, preset="smoke", source=finished.config.source, test=finished.config.test)
    assert "as " + finished.folder + " was begun with" in caplog.text
