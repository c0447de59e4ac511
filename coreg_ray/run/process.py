"""Which process something belongs to, and whether it still lives."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_SLACK_S = 2.0  # of times that another program has noted
_MARK = re.compile(r"(?P<host>.+)\.(?P<space>\d+)\.(?P<pid>\d+)\.(?P<birth>\d+)")


@dataclass(frozen=True)
class Process:
    """A process on some machine.

    Attributes:
        host: name of its machine. pid: its number there.
        started: its start in seconds since 1970, for people, since clocks are set now and then. None: unknown.
        birth: its start by the machine's own clock, which tells it from others that had or will have its number; 0:
            unknown.
        space: which numbering of processes `pid` belongs to, since containers have their own; 0: the only one.
    """

    host: str
    pid: int
    started: float | None = None
    birth: int = 0
    space: int = 0

    @classmethod
    def own(cls) -> Process:
        """This process."""
        return _own(os.getpid())

    @property
    def mark(self) -> str:
        """A text for names of files, which `parse` reads."""
        return f"{self.host.replace('/', '-')}.{self.space}.{self.pid}.{self.birth}"

    @classmethod
    def parse(cls, mark: str) -> Process | None:
        """The process of a `mark`; None: it is none."""
        parts = _MARK.fullmatch(mark)
        if parts is None:
            return None
        return cls(parts["host"], int(parts["pid"]), None, int(parts["birth"]), int(parts["space"]))

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, one of this machine, so that `lives` can tell."""
        return self.host == socket.gethostname() and self.space in (0, _space())

    @property
    def lives(self) -> bool:
        """Whether it runs; of processes of this machine only. One that has got its number since is another."""
        start = _start(self.pid)
        if start is None:
            return _exists(self.pid)
        birth, started = start
        if self.birth:
            return birth == self.birth
        return self.started is None or abs(started - self.started) <= _SLACK_S


@lru_cache(1)
def _own(pid: int) -> Process:
    birth, started = _start(pid) or (0, None)
    return Process(socket.gethostname(), pid, started, birth, _space())


def _space() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # no Linux
        return 0


def _exists(pid: int) -> bool:
    if pid <= 0 or Path("/proc/self/stat").exists():  # which would have told of it
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _start(pid: int) -> tuple[int, float] | None:
    """When a process of this machine started: by the machine's own clock, and in seconds since 1970.

    None: it does not run, or nothing tells.
    """
    if not Path("/proc/self/stat").exists():
        return _start_by_ps(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold anything
    if state in "ZX":  # it has ended, and its parent has not asked yet
        return None
    ticks = int(rest[18])  # since the machine started
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return ticks, time.time() - age


def _start_by_ps(pid: int) -> tuple[int, float] | None:
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False, env={"LC_ALL": "C"})  # noqa: S603
        started = time.mktime(time.strptime(done.stdout.strip(), "%a %b %d %H:%M:%S %Y"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return int(started), started
