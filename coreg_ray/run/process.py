"""Which process something belongs to, and whether it still lives."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_SLACK_S = 2.0  # clocks are set now and then, and the time of the machine's start with them
_MARK = re.compile(r"(?P<host>.+)\.(?P<space>\d+)\.(?P<pid>\d+)\.(?P<started>\d+)")


@dataclass(frozen=True)
class Process:
    """A process on some machine.

    Attributes:
        host: name of its machine. pid: its number there. started: its start in seconds since 1970, None: unknown.
        space: which numbering of processes `pid` belongs to, since containers have their own; 0 where there is one.
    """

    host: str
    pid: int
    started: float | None
    space: int = 0

    @classmethod
    def own(cls) -> Process:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()), _space())

    @property
    def mark(self) -> str:
        """A text for names of files, which `parse` reads."""
        return f"{self.host.replace('/', '-')}.{self.space}.{self.pid}.{int(self.started or 0)}"

    @classmethod
    def parse(cls, mark: str) -> Process | None:
        """The process of a `mark`; None: it is none."""
        parts = _MARK.fullmatch(mark)
        if parts is None:
            return None
        started = float(parts["started"]) or None
        return cls(parts["host"], int(parts["pid"]), started, int(parts["space"]))

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, one of this machine, so that `lives` can tell."""
        return self.host == socket.gethostname() and self.space in (0, _space())

    @property
    def lives(self) -> bool:
        """Whether it runs; of processes of this machine only. A number that another process has got since is none."""
        started = _started(self.pid)
        if started is None:
            return _exists(self.pid)
        return self.started is None or abs(started - self.started) <= _SLACK_S


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


def _started(pid: int) -> float | None:
    """When a process of this machine started, in seconds since 1970; None: it does not run, or nothing tells."""
    if not Path("/proc/self/stat").exists():
        return _started_by_ps(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold anything
    if state in "ZX":  # it has ended, and its parent has not asked yet
        return None
    since_start = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - since_start + int(rest[18]) / os.sysconf("SC_CLK_TCK")


def _started_by_ps(pid: int) -> float | None:
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False, env={"LC_ALL": "C"})
        return time.mktime(time.strptime(text.stdout.strip(), "%a %b %d %H:%M:%S %Y"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
