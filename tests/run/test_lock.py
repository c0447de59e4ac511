"""One command at a time in a run folder: who holds it, who takes it over, and when."""

from __future__ import annotations

import json
import logging
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from s3_server import s3_server

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.run import lock
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.lock import locked
from coreg_ray.run.process import Process
from coreg_ray.run.storage import LOCK, LOCK_CLAIM, Folder

OWN = Process.own()
DEAD = {"host": OWN.host, "pid": 2**22 + 1, "started": 1.0, "renewed": time.time()}


@pytest.fixture(scope="module")
def s3() -> Iterator[Callable[[str], str]]:
    with s3_server("bucket") as uri:
        yield uri


@pytest.fixture(params=["local", "remote", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder; `remote` is one that Folder cannot tell from an object store, `s3` lies on a real one."""
    if request.param == "local":
        return Folder.at(tmp_path / "run")
    if request.param == "s3":
        return Folder.at(request.getfixturevalue("s3")(f"{tmp_path.name}/run"))
    return Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/run")


@pytest.fixture
def other() -> Iterator[dict[str, Any]]:
    """The lock of a process of this machine that lives until the test ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield {"host": OWN.host, "pid": child.pid, "started": time.time(), "renewed": time.time() - 9999}
        child.kill()


def refusal(folder: Folder) -> str:
    """What a command is told that wants to work in the folder too; empty: it may."""
    try:
        with locked(folder, "runs/x"):
            return ""
    except UserError as error:
        return str(error)


def test_it_says_who_works_there_and_is_gone_afterwards(folder: Folder) -> None:
    with locked(folder, "runs/x"):
        content = folder.read_json(LOCK)
        assert (content["host"], content["pid"]) == (OWN.host, OWN.pid)
        assert abs(content["started"] - (OWN.started or 0)) < 2
        assert 0 <= time.time() - content["renewed"] < 60
    assert not folder.exists(LOCK)


def test_it_is_gone_after_an_error_too(folder: Folder) -> None:
    with pytest.raises(KeyboardInterrupt), locked(folder, "runs/x"):
        raise KeyboardInterrupt
    assert not folder.exists(LOCK)


def later_claim(folder: Folder, seconds_ago: float) -> str:
    """Another machine's claim to the lock, whose name comes after that of any other."""
    claim = {"host": "elsewhere", "pid": 7, "started": 1.0, "renewed": time.time() - seconds_ago, "token": "~"}
    folder.write_json(f"{LOCK_CLAIM}~", claim)
    return f"{LOCK_CLAIM}~"


def test_it_is_gone_when_ctrl_c_comes_while_another_claims_it(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    folder.write_json(LOCK, {"host": "elsewhere", "pid": 1, "started": 1.0, "renewed": 1.0})
    claim = later_claim(folder, 0)
    monkeypatch.setattr(lock.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt), locked(folder, "runs/x"):
        pass
    assert folder.read_json(LOCK)["host"] == "elsewhere"
    assert folder.lock_claims() == [claim]
    assert folder.entries() == []


def test_claims_are_waited_for_as_long_as_their_commands_may_live(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LOOKS_EVERY_S", 0.05)

    def answer() -> str:  # a lock of another machine has to be taken over by a claim on a local disk too
        folder.write_json(LOCK, {"host": "elsewhere", "pid": 1, "started": 1.0, "renewed": 1.0})
        return refusal(folder)

    claim = later_claim(folder, 0)
    with monkeypatch.context() as patch:
        patch.setattr(lock, "CLAIMED_WITHIN_S", 0.3)
        assert "is in use by process 7 on elsewhere" in answer()
    assert folder.lock_claims() == [claim]
    threading.Timer(0.3, folder.delete, [claim]).start()  # it withdraws
    assert answer() == ""
    later_claim(folder, 110)  # its command was killed
    assert answer() == ""
    assert folder.lock_claims() == []


def test_who_took_too_long_to_take_it_has_not_got_it(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_json(LOCK, {"host": "elsewhere", "pid": 1, "started": 1.0, "renewed": 1.0})
    for late, limit in ((LOCK_CLAIM, "CLAIMED_WITHIN_S"), (LOCK, "GIVEN_UP_AFTER_S")):
        with monkeypatch.context() as patch:
            patch.setattr(lock, limit, 0.2)
            slow_writes(patch, partial(late_by, late))
            assert re.search(r"to take its lock took \d s, and after \d s others may have", refusal(folder))
        assert folder.lock_claims() == []
        folder.write_json(LOCK, {"host": "elsewhere", "pid": 1, "started": 1.0, "renewed": 1.0})


def late_by(beginning: str, name: str) -> float:
    """Seconds that a file takes longer whose name begins so."""
    return 0.3 if name.startswith(beginning) else 0.0


def slow_writes(patch: pytest.MonkeyPatch, seconds: Callable[[str], float]) -> None:
    """What a file of this name takes longer to be written than it would, from now on."""
    write = lock._write

    def slow(folder: Folder, name: str, token: str) -> None:
        time.sleep(seconds(name))
        write(folder, name, token)

    patch.setattr(lock, "_write", slow)


def test_the_second_is_told_who_holds_it(folder: Folder) -> None:
    with locked(folder, "runs/x"):
        message = refusal(folder)
        assert message.startswith(f"--output runs/x is in use by process {OWN.pid} on {OWN.host}, begun 20")
        assert re.search(r"last heard of \d s ago; wait until it ends", message)
        assert "choose another --output" in message
        assert folder.exists(LOCK)


def test_a_living_process_of_this_machine_keeps_it_however_old(tmp_path: Path, other: dict[str, Any]) -> None:
    folder = Folder.at(tmp_path)
    folder.write_json(LOCK, other)
    assert f"in use by process {other['pid']}" in refusal(folder)
    folder.write_json(LOCK, other | {"started": other["started"] - 60})  # the number was another's before
    assert refusal(folder) == ""


def test_a_dead_process_of_this_machine_loses_it(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    folder.write_json(LOCK, DEAD)
    assert refusal(folder) == ""


@pytest.mark.parametrize("as_text", [False, True])
def test_another_machine_loses_it_after_a_while(folder: Folder, as_text: bool) -> None:
    for age, message in ((80, "killed, the folder is free in"), (110, "")):
        renewed: Any = time.time() - age
        if as_text:
            renewed = datetime.fromtimestamp(renewed, timezone.utc).isoformat()
        folder.write_json(LOCK, {"host": "elsewhere", "pid": OWN.pid, "started": OWN.started, "renewed": renewed})
        assert (message in refusal(folder)) if message else not refusal(folder)


def test_on_a_store_the_renewal_decides_for_this_machine_too(tmp_path: Path) -> None:
    folder = Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/run")
    folder.write_json(LOCK, DEAD | {"renewed": time.time()})
    assert "is in use by process" in refusal(folder)
    folder.write_json(LOCK, DEAD | {"renewed": time.time() - 301})
    assert refusal(folder) == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}', '{"host": "x", "pid": 1, "renewed": "soon"}'])
def test_a_lock_that_nobody_can_read_is_replaced(folder: Folder, content: str) -> None:
    folder.write(LOCK, content)
    assert refusal(folder) == ""


@pytest.mark.parametrize("before", [None, DEAD, {"host": "elsewhere", "pid": 1, "started": 1.0, "renewed": 1.0}])
def test_of_many_at_once_one_works(
    folder: Folder, before: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a write takes much longer than another command's whole way to the lock."""
    if before is not None:
        folder.write_json(LOCK, before | {"renewed": 1.0})
    monkeypatch.setattr(lock, "_LOOKS_EVERY_S", 0.05)
    slow_writes(monkeypatch, lambda name: random.choice((0.0, 0.05, 0.3)))
    start, end = threading.Barrier(8), threading.Barrier(8)
    answers: list[str] = []

    def command() -> None:
        with ExitStack() as stack:
            start.wait(20)
            try:
                stack.enter_context(locked(folder, "runs/x"))
                answers.append("")
            except UserError as error:
                answers.append(str(error))
            end.wait(20)

    threads = [threading.Thread(target=command) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 8
    assert answers.count("") == 1, answers


def test_it_is_renewed_and_its_loss_is_said(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(folder.filesystem, fs.S3FileSystem):
        pytest.skip("the test's server cannot read a file that is replaced at the moment")
    monkeypatch.setattr(lock, "RENEWED_EVERY_S", 0.05)
    with locked(folder, "runs/x"):
        first = folder.read_json(LOCK)
        wait_for(lambda: folder.read_json(LOCK)["renewed"] > first["renewed"])
        assert folder.read_json(LOCK) | {"renewed": 0} == first | {"renewed": 0}
        # What it reads and what it writes are two steps, so that a renewal may come between; the stand-in for a store
        # writes in two steps as well, where a renewal may find nothing and tell no name.
        theirs = {"host": "elsewhere", "pid": 7, "started": 1.0, "renewed": time.time(), "token": "theirs"}

        def taken_over() -> bool:
            folder.write_json(LOCK, theirs)
            return "has been taken over by" in caplog.text

        wait_for(taken_over)
    assert folder.read_json(LOCK) == theirs


def test_a_renewal_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, write = Folder.at(tmp_path), lock._write
    monkeypatch.setattr(lock, "RENEWED_EVERY_S", 0.05)
    failures = iter([OSError("503"), UserError("no space is left")])

    def failing(folder: Folder, name: str, token: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            for error in failures:
                raise error
        write(folder, name, token)

    monkeypatch.setattr(lock, "_write", failing)
    with caplog.at_level(logging.WARNING), locked(folder, "runs/x"):
        first = folder.read_json(LOCK)
        wait_for(lambda: folder.read_json(LOCK)["renewed"] > first["renewed"])
    assert "cannot be renewed (503)" in caplog.text
    assert "cannot be renewed (no space is left)" in caplog.text


def test_a_folder_that_holds_nothing_else_is_empty(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps(DEAD))
    with locked(run, "runs/x"):
        assert run.entries() == []
        run.claim(Config(output=str(tmp_path)))
    assert run.entries() == ["config.yaml", "versions.json"]


def test_what_a_killed_command_has_left_in_the_making_goes(tmp_path: Path) -> None:
    left = (
        tmp_path
        / "checkpoints/epoch-000001"
        / f".{Process(OWN.host, 2**22 + 1, None, 1, OWN.space).mark}.00000000.partial"
    )
    left.parent.mkdir(parents=True)
    left.write_text("x")
    with locked(Folder.at(tmp_path), "runs/x"):
        assert not left.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "--output runs/x cannot be used" in refusal(Folder.at(tmp_path / "file"))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
