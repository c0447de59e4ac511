"""Files in the making: whose they are, what of them stays, and disks that are full or fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coreg_ray.errors import UserError
from coreg_ray.run import whole
from coreg_ray.run.process import Process
from coreg_ray.run.storage import Folder
from coreg_ray.run.whole import is_unfinished, sweep
from coreg_ray.training.history import History

KILLED = """
import os, signal, stat, sys
from coreg_ray.run.storage import Folder
os.fsync = lambda handle: stat.S_ISREG(os.fstat(handle).st_mode) and os.kill(os.getpid(), signal.SIGKILL)
Folder.at(sys.argv[1]).write("deep/state.json", "new")
"""


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is flushed to disk, in that order; files in the making are called so."""
    order: list[str] = []
    flush = os.fsync

    def record(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        order.append("in the making" if is_unfinished(name) else name)
        flush(handle)

    monkeypatch.setattr(os, "fsync", record)
    return order


def left(folder: Path) -> list[str]:
    """Names of all files below a folder, hidden ones too."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def killed_while_writing(folder: Path) -> str:
    """The name of what a process leaves that is killed before its file is in place."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False, timeout=600)
    assert done.returncode == -9
    (name,) = left(folder)
    return name


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the names of open files")
def test_a_file_and_its_folders_reach_the_disk(tmp_path: Path, synced: list[str]) -> None:
    Folder.at(tmp_path).write("a/b/state.json", "x")
    assert synced == [tmp_path.name, "a", "in the making", "b"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, flush = Folder.at(tmp_path), os.fsync
    inside: list[int] = []

    def meanwhile(handle: int) -> None:
        if not inside:
            inside.append(1)
            folder.write("state.json", "of the other")
            assert folder.read("state.json") == b"of the other"
        flush(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    folder.write("state.json", "of one")
    assert inside
    assert folder.read("state.json") == b"of one"
    assert left(tmp_path) == ["state.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_a_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = Folder.at(tmp_path)
    folder.write("state.json", "old")

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"/state.json \(1,000 bytes\) cannot be written: .*free some space") as refusal:
        folder.write("state.json", "x" * 1000)
    assert "\n" not in str(refusal.value)
    assert left(tmp_path) == ["state.json"]
    assert folder.read("state.json") == b"old"


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        Folder.at(tmp_path).write("state.json", "x")
    assert left(tmp_path) == []


def test_events_that_find_no_room_are_said_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coreg_ray.run.folder import RunFolder

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(History, "_write_events", full)
    with History(RunFolder.at(tmp_path)) as history, pytest.raises(UserError, match="tensorboard cannot be written"):
        history.write([{"epoch": 0}])


def test_what_a_killed_process_left_is_no_entry_and_goes_with_the_next_write(tmp_path: Path) -> None:
    name = killed_while_writing(tmp_path / "run")
    assert is_unfinished(name)
    folder = Folder.at(tmp_path / "run/deep")
    assert folder.entries() == []
    assert folder.files() == []
    folder.write("other.json", "x")
    assert left(tmp_path) == ["other.json"]


def test_what_was_left_below_is_found(tmp_path: Path) -> None:
    killed_while_writing(tmp_path)
    assert sweep(tmp_path) == 0
    assert sweep(tmp_path, deep=True) == 1
    assert left(tmp_path) == []


def test_files_of_living_processes_of_other_machines_and_of_people_stay(tmp_path: Path) -> None:
    own = Process.own()
    kept = [
        f".{own.mark}.00000000.partial",
        f".{Process('elsewhere', 1).mark}.00000000.partial",
        f".{Process(own.host, own.pid + 1, None, 1, own.space + 1).mark}.00000000.partial",  # of another container
        "mine.partial", ".partial", "state.json.partial",
    ]  # fmt: skip
    gone = [
        f".{Process(own.host, own.pid, None, own.birth + 1, own.space).mark}.00000000.partial",  # of another before
        f".{Process('elsewhere', 2).mark}.00000000.partial",
    ]
    for name in kept + gone:
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / gone[1], (time.time() - 90_000,) * 2)
    assert sweep(tmp_path) == len(gone)
    assert left(tmp_path) == sorted(kept)


def test_each_folder_is_swept_once_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[Path] = []
    monkeypatch.setattr(whole, "sweep", swept.append)
    for name in ("a", "b", "c/d", "c/e"):
        Folder.at(tmp_path).write(name, "x")
    assert swept == [tmp_path, tmp_path / "c"]
