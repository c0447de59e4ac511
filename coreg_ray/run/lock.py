"""One command at a time in a run folder: `.lock` says which process works there, and since when.

    {"host": "node-1", "pid": 4711, "started": 1795929069.0, "renewed": 1795929129.0,
     "birth": 166012, "space": 4026531836, "token": "a71d..."}

Whether a process of this machine still works there, its number and its start tell (process.py); of another machine's,
or on an object store, the last renewal does. Times are seconds since 1970.

On a local disk the lock is taken under `flock`, in one indivisible step. An object store has no such step that pyarrow
knows (no conditional put), so a command first writes a claim, which nobody else writes (`.lock-TOKEN`), then lists
the claims of all. Of two commands the one that wrote later sees the other's: at least one of them gives way, however
long a write takes (the flag principle: Herlihy and Shavit, The Art of Multiprocessor Programming, 2.3). Claims are
ordered by their names: who sees an earlier one withdraws, who sees later ones waits until they have withdrawn or one of
them, which had looked before, has the lock. A claim goes once the lock is written.

What that does not guarantee: a store whose listings lag behind its writes (those of S3, GCS and Azure do not; a folder
on NFS without locks may) can show a claim too late; clocks of two machines that differ by a minute and more make a lock
look older than it is; so does a process that sleeps for GIVEN_UP_AFTER_S, or a store that carries out a write after
that time. Whoever lost a lock in such a way says so in its log at the next renewal.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from coreg_ray.errors import UserError
from coreg_ray.run.claim import usable
from coreg_ray.run.process import Process
from coreg_ray.run.storage import LOCK, LOCK_CLAIM, Folder
from coreg_ray.run.whole import sweep

log = logging.getLogger(__name__)

RENEWED_EVERY_S = 20.0
GIVEN_UP_AFTER_S = 100.0
CLAIMED_WITHIN_S = 30.0  # a claim that has not become a lock by then is withdrawn, long before others call it dead
_LOOKS_EVERY_S = 0.2


@contextlib.contextmanager
def locked(folder: Folder, given: str) -> Iterator[None]:
    """Work in a folder alone; what dead processes have left there in the making is removed first.

    Args:
        given: the folder as the user named it.

    Raises:
        UserError: another command works in it, or it cannot be read or written.
    """
    token = secrets.token_hex(16)
    try:
        with usable(given):
            _take(folder, given, token)
            if folder.local:
                sweep(Path(folder.path), deep=True)
        with _renewed(folder, token):
            yield
    finally:
        with contextlib.suppress(OSError, UserError):
            if _token(folder) == token:
                folder.delete(LOCK)


@contextlib.contextmanager
def _renewed(folder: Folder, token: str) -> Iterator[None]:
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(folder, token, ended), daemon=True, name="lock of the run folder")
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join(10.0)  # a store may not answer


def worker(folder: Folder) -> str | None:
    """Who works in a folder at the moment, in words; None: nobody."""
    holder = _Holder.of(folder)
    return holder.words if holder is not None and holder.works else None


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock, or did when it was last renewed, `age` seconds ago.

    Attributes:
        here: whether this machine can look whether it lives.
    """

    process: Process
    age: float
    here: bool

    @property
    def works(self) -> bool:
        return self.process.lives if self.here else self.age <= GIVEN_UP_AFTER_S

    @classmethod
    def of(cls, folder: Folder, name: str = LOCK) -> _Holder | None:
        """Of the lock or of a claim; None: there is none, or nobody can tell whose it is and since when."""
        try:
            content = _read(folder, name)
            started, renewed = _seconds(content.get("started")), _seconds(content.get("renewed"))
            birth, space = int(content.get("birth", 0)), int(content.get("space", 0))
            process = Process(str(content["host"]), int(content["pid"]), started, birth, space)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            if name == LOCK:
                log.warning("%s/%s is none of ours; it is replaced", folder.path, LOCK)
            return None
        return cls(process, time.time() - (renewed or 0.0), folder.local and process.is_here)

    def refusal(self, given: str) -> UserError:
        """Says who it is, and what to do."""
        if self.here:
            remedy = "wait until it ends, or choose another --output"
        else:
            left = max(1, round(GIVEN_UP_AFTER_S - self.age))
            remedy = (
                f"wait until it ends (if it was killed, the folder is free in {left} s), or choose another --output"
            )
        return UserError(f"--output {given} is in use by {self.words}; {remedy}")

    @property
    def words(self) -> str:
        """Which process, where, since when, and how long ago it was last heard of."""
        begun = self.process.started
        since = f", begun {datetime.fromtimestamp(begun):%Y-%m-%d %H:%M:%S}" if begun else ""
        heard = f"last heard of {max(0, round(self.age))} s ago"
        return f"process {self.process.pid} on {self.process.host}{since}, {heard}"


def _take(folder: Folder, given: str, token: str) -> None:
    """Put a lock of one's own there. Raises UserError: another command works in the folder."""
    with alone(folder) as sole:
        holder = _refuse_worker(folder, given)
        if sole and (holder is None or holder.here):
            _write(folder, LOCK, token)
        else:
            _take_by_claim(folder, given, token)
    if holder is not None:
        log.info("taking over from process %d on %s, which has ended", holder.process.pid, holder.process.host)


def _refuse_worker(folder: Folder, given: str) -> _Holder | None:
    """Who held the lock and works no more. Raises UserError where somebody works in the folder."""
    holder = _Holder.of(folder)
    if holder is not None and holder.works:
        raise holder.refusal(given)
    return holder


def _take_by_claim(folder: Folder, given: str, token: str) -> None:
    """`_take` where no step is indivisible; this file's head says how. Raises UserError as `_take` does."""
    claim, begun = LOCK_CLAIM + token, time.monotonic()

    def refuse_late(limit: float) -> None:
        if (seconds := time.monotonic() - begun) > limit:
            raise UserError(
                f"--output {given}: to take its lock took {seconds:.0f} s, and after {limit:.0f} s others may have "
                "taken it; look whether the store is slow, then give the command again"
            )

    try:
        _write(folder, claim, token)
        while others := _claims(folder, claim):
            first = min(others)
            if first < claim or time.monotonic() - begun > CLAIMED_WITHIN_S:
                raise others[first].refusal(given)
            time.sleep(_LOOKS_EVERY_S)
        # Whoever has won meanwhile has withdrawn its claim after its lock was there, so the lock is looked at last.
        _refuse_worker(folder, given)
        refuse_late(CLAIMED_WITHIN_S)
        _write(folder, LOCK, token)
        refuse_late(GIVEN_UP_AFTER_S)
    finally:
        folder.delete(claim)


def _claims(folder: Folder, own: str) -> dict[str, _Holder]:
    """By name, the other claims of those that live; those of the dead are removed."""
    living = {}
    for name in folder.lock_claims():
        holder = _Holder.of(folder, name) if name != own else None
        if holder is None:  # one's own, or withdrawn, or not whole yet: who writes it will look after that
            continue
        if holder.works:
            living[name] = holder
        else:
            folder.delete(name)
    return living


def _renew(folder: Folder, token: str, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_EVERY_S):
        try:
            if _token(folder) != token:
                holder = _Holder.of(folder)
                log.error(
                    "%s has been taken over by %s, since this process was not heard of for %d s; stop one of both",
                    folder.path,
                    f"process {holder.process.pid} on {holder.process.host}" if holder else "another process",
                    GIVEN_UP_AFTER_S,
                )
                return
            _write(folder, LOCK, token)
        except (OSError, UserError) as error:  # a full disk, a store that does not answer: the next time may be better
            log.warning("%s/%s cannot be renewed (%s)", folder.path, LOCK, error)


def _write(folder: Folder, name: str, token: str) -> None:
    own, now = Process.own(), time.time()
    content = {"host": own.host, "pid": own.pid, "started": own.started, "renewed": now}
    folder.write_json(name, content | {"birth": own.birth, "space": own.space, "token": token})


def _token(folder: Folder) -> Any:
    try:
        return _read(folder, LOCK).get("token")
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _read(folder: Folder, name: str) -> Any:
    """A lock or claim; once more where it broke off, as some stores do when a file goes while they answer."""
    try:
        return folder.read_json(name)
    except FileNotFoundError:
        raise
    except OSError:
        return folder.read_json(name)


@contextlib.contextmanager
def alone(folder: Folder) -> Iterator[bool]:
    """Go on when no other process or thread of this machine is in such a block for this folder: for a moment's work.

    Yields False where the file system cannot see to that.
    """
    if not folder.local:
        yield False
        return
    Path(folder.path).mkdir(parents=True, exist_ok=True)
    handle = os.open(folder.path, os.O_RDONLY)
    try:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # for example folders on NFS
            alone = False
        yield alone
    finally:
        os.close(handle)


def _seconds(given: Any) -> float | None:
    """A time in seconds since 1970, from such a number or from a date."""
    if isinstance(given, str):
        return datetime.fromisoformat(given.replace("Z", "+00:00")).timestamp()
    return None if given is None else float(given)
