"""`review.jsonl`: every label as it was given, one line each, never changed; and how far `review.csv` holds them.

    {"time": 1795929069.1, "image_id": "a/01.png", "label": "cat", "before": "", "how": "picture", "order": "listed"}
    {"merged": 12}

A label is on disk before it is acknowledged. The second kind of line says that `review.csv` holds the first 12 labels
of the journal; what a person writes into that file later is not overruled by them. A line that a killed process left
unfinished was never acknowledged and is passed over.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coreg_ray.run.folder import JOURNAL
from coreg_ray.run.storage import Folder
from coreg_ray.run.whole import room_for, sync_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One label that was given.

    Attributes:
        label: a class name, `?` (not sure), `-` (none of these) or "" (taken back). before: what stood there.
        how: `picture`, `grid`, `undo`. order: `listed` or `random` for a picture that came up by itself, else `chosen`.
        time: seconds since 1970.
    """

    image_id: str
    label: str
    before: str
    how: str
    order: str
    time: float

    @classmethod
    def now(cls, image_id: str, label: str, before: str, how: str, order: str) -> Entry:
        """An entry that is made at this moment."""
        return cls(image_id, label, before, how, order, round(time.time(), 3))


class Journal:
    """The journal of one run, on a local disk or an object store; several processes may write it on a local disk."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def read(self) -> tuple[list[Entry], int]:
        """All labels in their order, and how many of the first ones are in `review.csv`."""
        entries: list[Entry] = []
        merged = broken = 0
        for line in self._content().splitlines():
            try:
                values = json.loads(line)
                if "merged" in values:
                    merged = max(merged, int(values["merged"]))
                else:
                    entries.append(_entry(values))
            except (ValueError, KeyError, TypeError, AttributeError):
                broken += bool(line.strip())
        if broken:
            log.warning("%s/%s: %d lines are unfinished or none of ours; left out", self.folder.path, JOURNAL, broken)
        return entries, min(merged, len(entries))

    def add(self, entries: Sequence[Entry]) -> None:
        """Write labels to the end; they are on disk when this returns.

        Raises:
            UserError: the disk is full. OSError: it cannot be written.
        """
        self._append([asdict(entry) for entry in entries])

    def mark(self, merged: int) -> None:
        """Note that `review.csv` holds the first `merged` labels. Raises as `add` does."""
        self._append([{"merged": merged}])

    def _content(self) -> bytes:
        return self.folder.read(JOURNAL) if self.folder.exists(JOURNAL) else b""

    def _append(self, lines: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        if self.folder.local:
            _append(Path(self.folder.path) / JOURNAL, content)
            return
        there = self._content()  # object stores know no appending
        gap = b"\n" if there and not there.endswith(b"\n") else b""
        self.folder.write(JOURNAL, there + gap + content)


def _append(path: Path, content: bytes) -> None:
    """Write to the end of a file, for good; on a line of its own, whatever was left there."""
    new = not path.exists()
    with room_for(path, len(content)):
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                content = b"\n" + content
            while content:
                content = content[os.write(handle, content) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    if new:
        sync_folder(path.parent)


def _entry(values: dict[str, Any]) -> Entry:
    texts = {name: str(values.get(name, "")) for name in ("label", "before", "how", "order")}
    return Entry(str(values["image_id"]), **texts, time=float(values.get("time", 0)))
