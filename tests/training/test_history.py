"""`history.csv` and TensorBoard events of a run that may be interrupted."""

from __future__ import annotations

import csv
import io
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from coreg_ray.metrics import HISTORY
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.history import as_csv
from coreg_ray.training.history import History


def epoch(number: int, **metrics: Any) -> dict[str, Any]:
    return {"epoch": number, "phase": "coreg", "loss/a": 1 / (number + 1), "loss/b": 2.0, **metrics}


def scalars(folder: Path, name: str) -> dict[int, float]:
    """What TensorBoard would draw: the value of each step."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)} if name in events.Tags()["scalars"] else {}


def test_columns_are_the_fixed_ones_then_others_then_times() -> None:
    text = as_csv([epoch(0, **{"time/epoch_s": 2.5}), epoch(1, zeta=3, alpha=1, **{"time/assess_s": 1.0})])
    header, first, second = csv.reader(io.StringIO(text))
    assert header == [*HISTORY, "alpha", "zeta", "time/assess_s", "time/epoch_s"]
    assert header[:2] == ["epoch", "phase"]
    assert dict(zip(header, first, strict=True))["alpha"] == ""
    assert dict(zip(header, second, strict=True)) == {
        **dict.fromkeys(HISTORY, ""), "epoch": "1", "phase": "coreg", "loss/a": "0.5", "loss/b": "2.0",
        "alpha": "1", "zeta": "3", "time/assess_s": "1.0", "time/epoch_s": "",
    }  # fmt: skip


def test_values_are_written_in_full() -> None:
    (row,) = csv.DictReader(io.StringIO(as_csv([epoch(0, agreement=0.1 + 0.2)])))
    assert float(row["agreement"]) == 0.1 + 0.2


def test_both_files_grow_epoch_by_epoch(tmp_path: Path) -> None:
    done: list[dict[str, Any]] = []
    with History(RunFolder.at(tmp_path)) as history:
        history.write(done)
        assert not (tmp_path / "history.csv").exists()
        for number in range(3):
            done.append(epoch(number))
            history.write(done)
            assert len((tmp_path / "history.csv").read_text().splitlines()) == number + 2
            assert sorted(scalars(tmp_path / "tensorboard", "loss/a")) == list(range(number + 1))
    assert scalars(tmp_path / "tensorboard", "loss/a") == pytest.approx({0: 1.0, 1: 0.5, 2: 1 / 3})
    assert scalars(tmp_path / "tensorboard", "epoch") == {}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["history.csv", "tensorboard"]


def test_the_csv_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with History(RunFolder.at(tmp_path)) as history:
        history.write([epoch(0)])
        before = (tmp_path / "history.csv").read_text()

        def killed(self: Path, target: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            history.write([epoch(0), epoch(1)])
        assert (tmp_path / "history.csv").read_text() == before


def test_epochs_that_are_trained_again_are_purged_from_the_events(tmp_path: Path) -> None:
    """A run died in epoch 4, its last checkpoint is that of epoch 1: epochs 2 and 3 are trained anew."""
    with History(RunFolder.at(tmp_path)) as history:
        for last in range(4):
            history.write([epoch(number, agreement=0.1) for number in range(last + 1)])
    kept = [epoch(number, agreement=0.1) for number in range(2)]
    time.sleep(1.1)  # files of events are read in the order of the seconds in which they were begun
    with History(RunFolder.at(tmp_path)) as history:
        history.write([*kept, epoch(2, agreement=0.9)])
    assert scalars(tmp_path / "tensorboard", "agreement") == pytest.approx({0: 0.1, 1: 0.1, 2: 0.9})
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 4


def test_words_and_missing_values_are_no_curves(tmp_path: Path) -> None:
    with History(RunFolder.at(tmp_path)) as history:
        history.write([epoch(0, note="text", agreement=None)])
    for name in ("phase", "note", "agreement"):
        assert scalars(tmp_path / "tensorboard", name) == {}


def test_tensorboard_gets_the_settings_as_hyper_parameters(tmp_path: Path) -> None:
    settings = {"seed": 3, "start_from": None, "method": {"learning_rate": 0.02}, "source": {"prompts": ["a {}"]}}
    for last in range(2):  # an interrupted run tells them again, and nothing is counted twice
        with History(RunFolder.at(tmp_path), settings=settings) as history:
            history.write([epoch(number, **{"test/accuracy": 0.5}) for number in range(last + 1)])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    told = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = HParamsPluginData.FromString(told).session_start_info.hparams
    assert {name: value.number_value or value.string_value for name, value in values.items()} == {
        "seed": 3, "method.learning_rate": 0.02, "source.prompts": "['a {}']",
    }  # fmt: skip
    experiment = HParamsPluginData.FromString(events.summary_metadata["_hparams_/experiment"].plugin_data.content)
    results = {metric.name.tag for metric in experiment.experiment.metric_infos}
    assert "test/accuracy" in results & set(events.Tags()["scalars"])


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    with History(RunFolder.at(tmp_path), enabled=False) as history:
        history.write([epoch(0)])
    assert list(tmp_path.iterdir()) == []


def test_events_reach_a_folder_that_is_not_local(tmp_path: Path) -> None:
    run = RunFolder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/run")
    with History(run) as history:
        history.write([epoch(0)])
        history.write([epoch(0), epoch(1)])
    assert sorted(scalars(tmp_path / "bucket/run/tensorboard", "loss/b")) == [0, 1]
    assert (tmp_path / "bucket/run/history.csv").exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("ended", [None, Killed])
def test_nothing_stays_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: type[BaseException] | None
) -> None:
    """Beside an object store, events are written locally first: by rank 0 alone, and not for longer than it trains."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    run = RunFolder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/run")
    others = [History(run, enabled=False) for _ in range(3)]
    with pytest.raises(ended) if ended else nullcontext(), History(run) as history:
        assert list(scratch.iterdir()) == []  # an interrupted run with nothing left to do needs none
        for last in range(2):
            for other in others:
                with other:
                    other.write([epoch(number) for number in range(last + 1)])
            history.write([epoch(number) for number in range(last + 1)])
            (only,) = scratch.iterdir()
            assert only.name.startswith("coreg-tb-")
        if ended:
            raise ended
    assert list(scratch.iterdir()) == []
    assert sorted(scalars(tmp_path / "bucket/run/tensorboard", "loss/b")) == [0, 1]


def test_a_run_on_a_local_disk_needs_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with History(RunFolder.at(tmp_path / "run")) as history:
        history.write([epoch(0)])
        assert list((tmp_path / "scratch").iterdir()) == []
