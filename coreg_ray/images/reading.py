"""The way to every byte of a source: what cannot be read at the moment is tried again, and then given up by its name.

Reading and decoding fail for different reasons. A file that cannot be read (a permission, a hanging mount, a store
that answers 503, too many open files) may hold a good image: it is tried again with growing pauses, and then ends the
command or, with `source.unreadable reject`, is a reject that every further run tries again. What was read and is no
image, or no table, is bad at once, and stays so until its bytes change. A single file that is gone between listing and
reading is a reject, since nobody can bring it back; it is not in the next listing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

from coreg_ray.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # between the attempts at a file: half a minute
_STORES = ("AWS Error", "google::cloud")  # what object stores' errors, which have no number, are known by
_WORDS = 300  # characters of what a store says


class Unreadable(OSError):
    """An image that could not be read after all attempts, or is gone; the message is the reason for `rejects/`."""


def pause(seconds: float) -> None:
    """Wait between two attempts. Tests put something quicker in its place."""
    time.sleep(seconds)


def of_reading(error: BaseException) -> bool:
    """Whether an error comes from a disk, network or store, rather than from a library that makes sense of bytes.

    Pillow's and Arrow's errors about broken content are OSErrors too, but without a number.
    """
    if not isinstance(error, OSError):
        return False
    numbered = error.errno is not None or isinstance(error, (TimeoutError, ConnectionError))
    return numbered or any(mark in str(error) for mark in _STORES)


def reason_of(error: OSError) -> str:
    """What is wrong, in one line for a person."""
    if error.errno is not None:
        return os.strerror(error.errno)
    text = " ".join(str(error).split())
    return text[:_WORDS] or type(error).__name__


class Attempts:
    """Attempts at the files of one block of a source, or at what a listing needs.

    Once a file was waited for in vain, no other is waited for: what hangs for one hangs for all, and a thousand files
    that nobody may read must not take half a minute each.
    """

    def __init__(self, unreadable: Literal["fail", "reject"] | None = None) -> None:
        """`unreadable`: what comes of an image that cannot be read; None where a listing cannot do without."""
        self._unreadable = unreadable
        self._in_vain, self._told = 0, False  # pauses that brought nothing, and whether it was said that there are any

    def one(self, read: Callable[[], T], name: str, raw: bool = False) -> T:
        """What `read` returns, after as many attempts as it takes.

        Args:
            name: of the file, for people. raw: `read` hands out bytes as they lie, so that no OSError is about them.

        Raises:
            UserError: it cannot be read, and that ends the command.
            Unreadable: it cannot be read, and that makes a reject.
            Exception: whatever else `read` raises, at once.
        """
        attempt = 0
        while True:
            try:
                return read()
            except Unreadable:
                raise
            except OSError as error:
                if not raw and not of_reading(error):
                    raise
                failed = error
            self._wait_or_give_up(failed, name, attempt)
            attempt += 1

    def stream(self, read: Callable[[int], Iterator[T]], name: str) -> Iterator[T]:
        """All that `read(0)` yields; after a failure it goes on with `read(n)`, n being how much has come already.

        Arguments and errors as with `one`.
        """
        done, attempt = 0, 0
        while True:
            try:
                for item in read(done):
                    yield item
                    done, attempt = done + 1, 0
                return
            except OSError as error:
                if isinstance(error, Unreadable) or not of_reading(error):
                    raise
                failed = error
            self._wait_or_give_up(failed, name, attempt)
            attempt += 1

    def _wait_or_give_up(self, error: OSError, name: str, attempt: int) -> None:
        """Wait before the next attempt, or raise as `one` does."""
        reason = reason_of(error)
        if not self._in_vain and attempt < len(PAUSES_S):
            if not self._told:
                log.warning("%s cannot be read (%s); trying again for %.0f s", name, reason, sum(PAUSES_S))
            self._told = True
            pause(PAUSES_S[attempt])
            return
        self._in_vain = tries = max(self._in_vain, attempt)
        if self._unreadable == "reject":
            raise Unreadable(f"cannot be read: {reason}") from error
        otherwise = ", or leave such images out with --source.unreadable reject" if self._unreadable else ""
        raise UserError(
            f"{name} cannot be read ({reason}), tried {tries + 1} times in {sum(PAUSES_S[:tries]):.0f} s; mend "
            f"that and give the same command again, which goes on where it stopped{otherwise}"
        ) from error
