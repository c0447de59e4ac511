"""SIGTERM, with which schedulers and `kill` end a command, treated like Ctrl-C: everything is left in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM  # as shells count


class Terminated(KeyboardInterrupt):
    """The process has been told to end; what Ctrl-C would put in order, this does too."""


_heeding = _ending = False


@contextmanager
def terminable() -> Iterator[None]:
    """In this block SIGTERM raises Terminated in the main thread: once, so that a second one does not disturb the end.

    Only the main thread may ask for it; elsewhere nothing changes.
    """
    global _heeding
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, was = signal.signal(signal.SIGTERM, _raise), _heeding
    _heeding = True
    try:
        yield
    except BaseException as end:
        # Ray's own answer while it starts, or what a library has made of ours.
        if isinstance(end, SystemExit) and end.code == signal.SIGTERM:
            raise Terminated from end
        if _ending and not isinstance(end, Terminated):
            raise Terminated from end
        raise
    finally:
        if not _ending:
            _heeding = was
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def heed_again() -> None:
    """Take SIGTERM back from what has taken it over: Ray's start does. Only inside `terminable`."""
    if _heeding and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: Any) -> None:
    global _ending
    if not _ending:
        _ending = True
        raise Terminated
