"""Files on local disks, whole or absent, whatever happens to the process, the machine or the disk meanwhile.

A file in the making lies beside its place as `.<host>.<space>.<pid>.<started>.<random>.partial`: no two writers share
one, and what a dead process has left is known as that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from coreg_ray.errors import UserError
from coreg_ray.run.process import Process

_PARTIAL = ".partial"
_FULL = {errno.ENOSPC: "no space is left on the disk", errno.EDQUOT: "the quota on that disk is used up"}
_UNSYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)  # what some file systems say of folders
_FOREIGN_S = 86400.0  # no file of another machine is in the making for a day


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is the old or the new one at any time, and the new one for good afterwards.

    Raises:
        UserError: the disk is full; nothing is left of the attempt.
    """
    with room_for(path, len(content)):
        _make_folder(path.parent)
        _sweep_once(os.getpid(), path.parent)
        _write(path, content)


@contextlib.contextmanager
def room_for(path: Path, size: int | None = None) -> Iterator[None]:
    """Raises UserError where a file, of so many bytes, finds no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        what = str(path) if size is None else f"{path} ({size:,} bytes)"
        raise UserError(
            f"{what} cannot be written: {_FULL[error.errno]}; free some space there, then give the same command "
            "again, or choose an --output on another disk"
        ) from error


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is one in the making."""
    return _writer(name) is not None


def sweep(folder: Path, deep: bool = False) -> int:
    """Remove what dead processes have left in the making, in this folder or all below it too; returns how many."""
    removed = 0
    for path in _unfinished(folder, deep):
        writer = _writer(path.name)
        with contextlib.suppress(OSError):  # another process sweeps too
            if writer is not None and (
                not writer.lives if writer.is_here else time.time() - path.stat().st_mtime > _FOREIGN_S
            ):
                path.unlink()
                removed += 1
    return removed


def _write(path: Path, content: bytes) -> None:
    target = path.with_name(f".{Process.own().mark}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with target.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        target.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of them for good."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """The names in a folder reach the disk, where its file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _UNSYNCABLE:
            raise


@lru_cache(4096)
def _sweep_once(pid: int, folder: Path) -> None:
    """Sweep a folder when a process first writes into it."""
    sweep(folder)


def _writer(name: str) -> Process | None:
    """Which process a file in the making belongs to; None: the name is of no such file."""
    if not (name.startswith(".") and name.endswith(_PARTIAL)):
        return None
    return Process.parse(name.removeprefix(".").removesuffix(_PARTIAL).rpartition(".")[0])


def _unfinished(folder: Path, deep: bool) -> Iterator[Path]:
    for above, below, names in os.walk(folder):
        yield from (Path(above, name) for name in names if is_unfinished(name))
        if not deep:
            below.clear()
