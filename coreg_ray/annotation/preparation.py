"""What happens to a block of images before the annotator or the trainer sees it: read, hash, decode, resize."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import write_table
from coreg_ray.annotation.parts import Part
from coreg_ray.annotation.rejects import UNREAD, record_rejects
from coreg_ray.errors import UserError
from coreg_ray.ids import contains, content_hash, keys, keys_hash, row_numbers
from coreg_ray.images.base import Content, Source
from coreg_ray.images.decode import Fit, Undecodable, decode, from_array
from coreg_ray.images.notes import ListingNotes
from coreg_ray.images.reading import Unreadable
from coreg_ray.run.storage import Folder

ROWS_AT_ONCE = 256  # pixels in memory at a time: 38 MB at 224 px


@dataclass(frozen=True)
class RowParts:
    """The rows to train on: images at the student's resolution, written on the way to the annotator.

    Bicubic, antialiased; what sticks out of a square is cropped evenly. A part holds `row` (number), `key`
    (ids.keys) and `image` (side x side x 3 bytes).

    Attributes:
        folder: of one split. side: in pixels. known: sorted keys of images that are there, or that cannot be decoded.
    """

    folder: Folder
    side: int
    known: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    def write(self, rows: list[tuple[str, np.uint64, NDArray[np.uint8]]], run: int) -> None:
        """Write one part: ids, keys and pixels (side, side, 3)."""
        ids, marks, images = zip(*rows, strict=True)
        pixels, key = pa.py_buffer(np.stack(images)), np.array(marks, dtype=np.uint64)
        binary = pa.FixedSizeBinaryArray.from_buffers(pa.binary(self.side**2 * 3), len(ids), [None, pixels])
        table = pa.table({"row": row_numbers(ids), "key": key, "image": binary})
        write_table(self.folder, Part(run, keys_hash(key), f"{self.side}px").name, table)


def take_listing(source: Source, labels: Folder | None) -> Generator[pa.Table, None, ListingNotes]:
    """The blocks of a source's listing without labels, one or more; returns what the listing has to tell.

    Args:
        labels: where known labels are written, apart from all that training will read; None: nowhere.

    Raises:
        UserError: no image, an id that occurs twice, or a label outside the class list; labels that lie there stay.
    """
    numbers, known = [], []
    listing, notes = iter(source.listing()), ListingNotes()
    while True:
        try:
            block = next(listing)
        except StopIteration as end:
            notes = end.value or notes
            break
        numbers.append(row_numbers(block["image_id"].to_pylist()))
        if labels is not None and block["label"].null_count < len(block):
            known.append(block.select(["image_id", "label"]).filter(pc.is_valid(block["label"])))
        yield block.drop_columns(["label"])
    _check_unique(np.sort(np.concatenate(numbers)), source)
    if labels is not None:
        labels.delete()
    if labels is not None and known:
        table = pa.concat_tables(known)
        column = pa.array(row_numbers(table["image_id"].to_pylist()))
        write_table(labels, "labels.parquet", table.add_column(0, "row", column))
    return notes


def sorted_rows(blocks: Iterable[pa.Table]) -> NDArray[np.int64]:
    """The sorted row numbers (N,) of all images in the blocks of a listing."""
    numbers = [row_numbers(block["image_id"].to_pylist()) for block in blocks]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *numbers]))


def _check_unique(rows: NDArray[np.int64], source: Source) -> None:
    """Raises UserError where an id occurs twice: rows (N,) sorted; the listing is gone through again to name some."""
    twice = np.unique(rows[1:][rows[1:] == rows[:-1]])
    if len(twice):
        names = ", ".join(_named(source.listing(), twice))
        raise UserError(f"{len(twice)} image_ids occur more than once, for example {names}; make every id unique")


def _named(listing: Iterable[pa.Table], rows: NDArray[np.int64], at_most: int = 3) -> list[str]:
    named: list[str] = []
    for block in listing:
        ids = block["image_id"].to_pylist()
        for position in np.flatnonzero(contains(rows, row_numbers(ids))):
            if repr(ids[position]) not in named:
                named.append(repr(ids[position]))
        if len(named) >= at_most:
            break
    return named[:at_most]


def prepare(
    block: pa.Table,
    *,
    source: Source,
    fit: Fit | None,
    known: NDArray[np.uint64] | None = None,
    rejects: Folder | None = None,
    run: int = 0,
    rows: RowParts | None = None,
) -> Generator[dict[str, NDArray[Any]], None, int]:
    """Read, decode and resize the images of one block of a listing, each once for all that is made of it.

    Args:
        fit: the size the pixels are brought to; None: nothing is yielded, only rows are written.
        known: sorted keys (ids.keys) of images that need no work; None: all are wanted.
        rejects: where images that cannot be read or decoded are recorded; None: nowhere.
        run: number of the annotation run, for the names of rejects and rows.
        rows: where images at the student's resolution go; None: nowhere.

    Yields:
        Batches of `image_id`, `content` (hash) and `image` (B, height, width, 3) uint8.

    Returns:
        How many images could not be read or decoded.

    Raises:
        UserError: a file cannot be read at the moment, and `source.unreadable` is `fail`.
    """
    ids: list[str] = block["image_id"].to_pylist()
    failed: list[tuple[str, str, str]] = []
    batch: list[tuple[str, str, NDArray[np.uint8]]] = []
    small: list[tuple[str, np.uint64, NDArray[np.uint8]]] = []
    for image_id, content in zip(ids, source.fetch(block), strict=True):
        digest = _digest(content)
        key = keys([image_id], [digest])
        asked = fit is not None and (known is None or not contains(known, key)[0])
        kept = rows is not None and not contains(rows.known, key)[0]
        if not asked and not kept:
            continue
        try:
            image = _decoded(content)
            if asked and fit is not None:
                batch.append((image_id, digest, fit(image)))
            if kept and rows is not None:
                small.append((image_id, key[0], Fit.square(rows.side)(image)))
        except Undecodable as reason:
            failed.append((image_id, digest, str(reason)))
        if len(batch) == ROWS_AT_ONCE:
            yield _columns(batch)
            batch = []
        if rows is not None and len(small) == ROWS_AT_ONCE:
            rows.write(small, run)
            small = []
    if rows is not None and small:
        rows.write(small, run)
    if failed and rejects is not None:
        record_rejects(rejects, failed, run)
    if batch:
        yield _columns(batch)
    return len(failed)


def count_unknown(block: pa.Table, source: Source, known: list[NDArray[np.uint64]]) -> int:
    """How many images of a block one of the sorted tables of keys lacks; images are read and hashed, not decoded."""
    ids: list[str] = block["image_id"].to_pylist()
    block_keys = keys(ids, [_digest(content) for content in source.fetch(block)])
    return int((~np.logical_and.reduce([contains(table, block_keys) for table in known])).sum())


def _digest(content: Content) -> str:
    """What the content of an image is known by in tables."""
    if isinstance(content, Exception):
        return UNREAD if isinstance(content, Unreadable) else ""
    return content_hash(content)


def _decoded(content: Content) -> Any:
    if isinstance(content, Exception):
        raise Undecodable(str(content)) from content
    return decode(content) if isinstance(content, bytes) else from_array(content)


def _columns(batch: list[tuple[str, str, NDArray[np.uint8]]]) -> dict[str, NDArray[Any]]:
    ids, contents, images = zip(*batch, strict=True)
    return {
        "image_id": np.array(ids, dtype=object),
        "content": np.array(contents, dtype=object),
        "image": np.stack(images),
    }
