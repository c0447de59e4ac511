"""The stage that reads, decodes and resizes, as Ray's tasks run it.

A worker process imports the module of the function that it is given: this one stays without torch, which costs two
seconds and half a gigabyte in each of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from coreg_ray.annotation import preparation
from coreg_ray.cluster import metrics
from coreg_ray.images.base import Source
from coreg_ray.images.notes import ListingNotes
from coreg_ray.run.storage import Folder


def decode(
    block: pa.Table,
    split: str,
    known: list[ray.ObjectRef],
    rows: preparation.RowParts | None = None,
    rows_known: list[ray.ObjectRef] | None = None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """`preparation.prepare`, with the known keys in the object store; what it rejects shows in Ray's metrics."""
    if rows is not None and rows_known:
        rows = replace(rows, known=ray.get(rows_known[0]))
    batches = preparation.prepare(block, known=ray.get(known[0]), rows=rows, **settings)
    rejected = yield from _of_split(split, batches)
    metrics.count(metrics.REJECTED, split, rejected)


def _of_split(split: str, batches: Generator[dict[str, Any], None, int]) -> Generator[dict[str, Any], None, int]:
    """The batches, every row saying which split it belongs to; returns what they return."""
    while True:
        try:
            batch = next(batches)
        except StopIteration as end:
            return int(end.value)
        yield {**batch, "split": np.full(len(batch["image_id"]), split, dtype=object)}


def take_listing(source: Source, labels: Folder | None) -> Iterator[pa.Table | ListingNotes]:
    """The blocks of `preparation.take_listing`, and what it has to tell as the last."""
    notes = yield from preparation.take_listing(source, labels)
    yield notes


def size(known: NDArray[np.uint64]) -> int:
    """How many keys a table has, told by a worker that has it in reach."""
    return len(known)


def unknown(block: ray.ObjectRef, source: Source, known: list[ray.ObjectRef]) -> int:
    """How many images of a listed block one of the tables of known keys lacks; none is decoded."""
    return preparation.count_unknown(ray.get(block), source, [ray.get(reference) for reference in known])


def only_rows(
    block: pa.Table, rows: preparation.RowParts, rows_known: list[ray.ObjectRef], **settings: Any
) -> dict[str, Any]:
    """`preparation.prepare` without an annotator; answers with the number of images."""
    for _ in preparation.prepare(block, rows=replace(rows, known=ray.get(rows_known[0])), **settings):
        pass
    return {"images": np.array([len(block)])}
