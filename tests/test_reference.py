"""docs/reference/ says what the code says, and its list of a run's files lacks none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from finished_run import export, finished_run
from make_reference import HERE, PAGES, RENEW, default, kind

from coreg_ray.config import Config, MethodSettings, StudentConfig
from coreg_ray.config.texts import fields_of
from coreg_ray.report.page import write_report
from coreg_ray.run.inventory import ENTRIES, STEPS, of_file, of_top
from coreg_ray.run.lock import LOCK, locked
from coreg_ray.run.search_folder import BEST, PICTURE, RECORD, TABLE


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str) -> None:
    written = (HERE / name).read_text(encoding="utf-8") if (HERE / name).exists() else ""
    assert written == PAGES[name](), f"docs/reference/{name} is out of date; renew it: {RENEW}"


def test_no_other_page_lies_there() -> None:
    assert {path.name for path in HERE.iterdir()} == set(PAGES)


def test_every_setting_has_a_line() -> None:
    text = PAGES["settings.md"]()
    missing = [name for name, _ in fields_of(Config) if f"| `{name}` |" not in text]
    assert not missing


def test_values_limits_and_defaults_are_in_words() -> None:
    views, epochs = StudentConfig.model_fields["frozen_views"], MethodSettings.model_fields["epochs"]
    assert (kind(views), default(views)) == ("whole number, from 2 to 64 multiple of 2", "`8`")
    assert (kind(epochs), default(epochs)) == ("whole number, from 1", "empty")
    decay = MethodSettings.model_fields["weight_decay"]
    assert (kind(decay), default(decay)) == ("number, from 0", "`0.0005`")


# The files of a run.


def test_every_file_of_a_run_is_known(tmp_path: Path) -> None:
    from coreg_ray.run.folder import RunFolder

    run = finished_run(RunFolder.at(tmp_path / "run"))
    export(run)
    write_report(run)
    with locked(run, run.path):
        there = [
            os.path.relpath(Path(folder, name), run.path) for folder, _, names in os.walk(run.path) for name in names
        ]
    assert {"model/model.json", "review.csv", LOCK} <= set(there)
    assert any(name.startswith("checkpoints/epoch-000003/rows_a") for name in there)
    assert not [name for name in there if of_file(name) is None]


@pytest.mark.parametrize(
    "name", ["trials/a-0/history.csv", "methods/elr-1/model/model.json", "data/side-32/rows/pool/0.parquet"]
)
def test_runs_inside_of_a_run_are_known(name: str) -> None:
    assert of_file(name) is not None
    assert of_file(name.rsplit("/", 1)[0] + "/notes.txt") is None


def test_what_is_none_of_ours_is_not_known() -> None:
    for name in (
        "notes.txt",
        "model",
        "model/notes.txt",
        "rows/pool/a/b.parquet",
        "methods/elr-1",
        "checkpoints/x.json",
    ):
        assert of_file(name) is None, name
    assert of_file("tune/any/thing.json") == of_top("tune")


def test_entries_are_whole() -> None:
    assert len({entry.path for entry in ENTRIES}) == len(ENTRIES)
    assert {entry.by for entry in ENTRIES} == set(STEPS)
    tops = {entry.top for entry in ENTRIES if entry.is_top}
    assert {entry.top for entry in ENTRIES} == tops
    assert {RECORD, TABLE, PICTURE, BEST} <= tops
