"""A source's listing in the object store, so that the driver holds no row."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from coreg_ray.annotation import preparation
from coreg_ray.cluster import decode
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.cluster.waiting import moved
from coreg_ray.images.base import Source
from coreg_ray.images.notes import ListingNotes
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)


class Listing:
    """Blocks of a listing as Ray Data takes them, and the row numbers of all images.

    It is taken in a task that starts at once; the first question about it waits for its end.
    """

    def __init__(self, source: Source, labels: Folder | None) -> None:
        """`labels`: where known labels are written, apart from all that training will read; None: nowhere."""
        self._stream = task(decode.take_listing).options(num_returns="streaming").remote(source, labels)

    @cached_property
    def blocks(self) -> list[Any]:
        """References to the blocks. Raises UserError where `preparation.take_listing` does.

        What the listing has to tell a person is logged here: a task's own log does not reach the terminal.
        """
        references = []
        for reference in self._stream:
            moved()
            references.append(reference)
        notes: ListingNotes = ask(references.pop())  # a failure is the last thing that a stream yields, too
        for line in notes.lines():
            log.warning("%s", line)
        return references

    @cached_property
    def _numbered(self) -> list[Any]:
        """References to N and to the sorted row numbers."""
        return task(_number).options(num_returns=2).remote(self.blocks)

    @property
    def rows(self) -> ray.ObjectRef:
        """Reference to the (N,) int64 sorted row numbers."""
        return self._numbered[1]

    @cached_property
    def images(self) -> int:
        """N."""
        return int(ask(self._numbered[0]))

    @cached_property
    def _dataset(self) -> ray.data.Dataset:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        return ray.data.from_arrow_refs(self.blocks)

    def dataset(self) -> ray.data.Dataset:
        """The blocks, as references. `tasks.watch` speaks for Ray Data's own progress reports."""
        return self._dataset


def _number(blocks: list[ray.ObjectRef]) -> tuple[int, NDArray[np.int64]]:
    """N and the sorted row numbers (N,) of the blocks' images."""
    rows = preparation.sorted_rows(map(ray.get, blocks))
    return len(rows), rows
