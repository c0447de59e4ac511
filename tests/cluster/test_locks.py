"""Commands that write a run hold its lock from before their first step to their last, and clear away only their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coreg_ray.cluster import pipeline, tune
from coreg_ray.commands.base import run
from coreg_ray.config import Config
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.process import Process
from coreg_ray.run.storage import LOCK
from coreg_ray.search.definition import Search

HOST = Process.own().host
COMMANDS: dict[str, Callable[[Config], Any]] = {
    "pipeline": pipeline.run_pipeline,
    "train": lambda config: pipeline.run_pipeline(config, annotated=config.output),
    "annotate": lambda config: pipeline.annotate_pool(config, RunFolder.at(config.output)),
    "tune": lambda config: tune.search(Search(), config),
}


class Reached(Exception):
    """The command has come to its work."""


@pytest.fixture
def lock_of_another(tmp_path: Path) -> Iterator[int]:
    """A lock in the folder; the process that holds it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        now = time.time()
        (tmp_path / LOCK).write_text(json.dumps({"host": HOST, "pid": child.pid, "started": now, "renewed": now}))
        yield child.pid
        child.kill()


def ends_at_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "begin", lambda *given: None)  # which would load a model
    monkeypatch.setattr(tune, "refuse_unreachable", _reached)
    for module in (pipeline, tune):
        monkeypatch.setattr(module, "connect", _reached)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_command_ends_before_any_work(
    name: str, lock_of_another: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_at_its_work(monkeypatch)
    with pytest.raises(SystemExit) as end:
        run(lambda _: COMMANDS[name](Config(output=str(tmp_path))), [])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: --output {tmp_path} is in use by process {lock_of_another} on {HOST}")
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_lock_is_held_from_before_the_claim_to_the_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = []
    claim = RunFolder.write_json

    def claimed(self: RunFolder, file: str, content: Any) -> None:
        if file != LOCK:
            claims.append((tmp_path / LOCK).exists())
        claim(self, file, content)

    monkeypatch.setattr(RunFolder, "write_json", claimed)
    ends_at_its_work(monkeypatch)
    with pytest.raises(Reached):
        COMMANDS[name](Config(output=str(tmp_path)))
    assert claims
    assert all(claims)
    assert not (tmp_path / LOCK).exists()


def test_forgetting_trials_leaves_what_is_a_persons(tmp_path: Path) -> None:
    runs = RunFolder.at(tmp_path)
    for name in ("known/config.yaml", "unknown/config.yaml", "unknown/history.csv", "mine/notes.txt", "notes.txt"):
        runs.write(name, "x")
    tune._forget_unknown({"known"}, runs)
    assert runs.entries() == ["known", "mine", "notes.txt"]


def _reached(*_: Any) -> None:
    raise Reached
