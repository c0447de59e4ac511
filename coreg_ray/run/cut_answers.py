"""Answers of an object store over plain HTTP that were cut short, told from those that really say "nothing".

An answer whose connection is closed within its head passes for a whole one without a body (curl, and so pyarrow): then
an object is empty or not there, and a listing ends with the page before, all without an error. TLS does not let that
happen, and what is cut behind the head is an error, which pyarrow asks again for by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pyarrow import fs

PAGE = 1000  # keys that one answer to a listing holds
_ALIKE, _MOST = 3, 30  # answers in a row that are believed, and answers in all
T = TypeVar("T")


def sure(filesystem: fs.FileSystem, ask: Callable[[], T], doubtful: Callable[[T], bool]) -> T:
    """What `ask` returns; where it may have been cut, what it has returned three times in a row.

    Args:
        doubtful: whether an answer looks as a cut one would.
    """
    answer, alike = ask(), 1
    for _ in range(_MOST):
        if alike == _ALIKE or not doubtful(answer) or not _may_be_cut(filesystem):
            break
        before, answer = answer, ask()
        alike = alike + 1 if answer == before else 1
    return answer


def is_nothing(info: fs.FileInfo) -> bool:
    """Whether an object is empty or not there."""
    return info.type == fs.FileType.NotFound or info.size == 0


def ends_with_a_page(infos: Sequence[fs.FileInfo]) -> bool:
    """Whether a listing may be what some whole pages hold, or nothing.

    Folders in it may have been keys, as those that pyarrow makes, or be told from keys below them.
    """
    files = sum(info.type == fs.FileType.File for info in infos)
    return (len(infos) + 1) // PAGE > (files - 1) // PAGE  # the listed folder itself may be a key, too


def _may_be_cut(filesystem: fs.FileSystem) -> bool:
    if not isinstance(filesystem, getattr(fs, "S3FileSystem", ())):  # which not every build of pyarrow has
        return False
    sent: Any = filesystem.__reduce__()  # to other processes; nothing else tells how the store is spoken to
    _, (options, *_) = sent
    return bool(options["scheme"] == "http")
