"""A source's listing in the object store, so that the driver holds no row."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from coreg_ray.annotation import preparation
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.images.base import Source
from coreg_ray.run.storage import Folder


class Listing:
    """Blocks of a listing as Ray Data takes them, and the row numbers of all images.

    It is taken in a task that starts at once; the first question about it waits for its end.
    """

    def __init__(self, source: Source, labels: Folder | None) -> None:
        """`labels`: where known labels are written, apart from all that training will read; None: nowhere."""
        self._stream = task(preparation.take_listing).options(num_returns="streaming").remote(source, labels)

    @cached_property
    def blocks(self) -> list[Any]:
        """References to the blocks. Raises UserError where `preparation.take_listing` does."""
        references = list(self._stream)
        ask(references[-1])  # a failure is the last thing that a stream yields
        return references

    @cached_property
    def _numbered(self) -> list[Any]:
        """References to N and to the sorted row numbers."""
        return task(_number).options(num_returns=2).remote(self.blocks)

    @property
    def rows(self) -> ray.ObjectRef:
        """Reference to the (N,) int64 sorted row numbers."""
        self.check()
        return self._numbered[1]

    @cached_property
    def images(self) -> int:
        """N. Raises UserError where an id occurs twice, too."""
        return int(ask(self._numbered[0]))

    def check(self) -> None:
        """Raises UserError where `blocks` or `images` does."""
        int(self.images)  # which looks at all blocks

    @cached_property
    def _dataset(self) -> ray.data.Dataset:
        self.check()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        return ray.data.from_arrow_refs(self.blocks)

    def dataset(self) -> ray.data.Dataset:
        """The blocks, as references. `tasks.watch` speaks for Ray Data's own progress reports."""
        return self._dataset


def _number(blocks: list[ray.ObjectRef]) -> tuple[int, NDArray[np.int64]]:
    """N and the sorted row numbers (N,) of the blocks' images. Raises UserError: an id occurs twice."""

    def listed() -> Any:
        for block in blocks:
            table: pa.Table = ray.get(block)
            yield table

    rows = preparation.sorted_rows(listed)
    return len(rows), rows
