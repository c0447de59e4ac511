"""Where images come from: one listing of what there is, and a reader for a part of it.

Every kind of source answers two questions without Ray: `listing()` yields tables (schema LISTING) of a few hundred
images each, cheaply, without reading a pixel; `fetch(block)` reads the images of one such table. So ids are checked,
counted and labelled before work starts, and a worker can read any block alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from coreg_ray.config import Config, SourceConfig, TestConfig

Split = Literal["pool", "test"]
Unread = Literal["fail", "reject"]  # what comes of an image that cannot be read: `source.unreadable`
Content = bytes | NDArray[np.uint8] | Exception  # encoded, (H, W, 3), or why it could not be read

BLOCK_IMAGES = 512  # images in a block of a listing, unless the source is cut otherwise (Parquet row groups)
LISTING = pa.schema(
    {
        "image_id": pa.string(),  # path relative to the source, or the row's key; unique
        "label": pa.int32(),  # class number, null where unknown
        "file": pa.string(),  # where it lies: a file,
        "group": pa.int32(),  # a row group of the file,
        "start": pa.int64(),  # a row, index or offset,
        "size": pa.int64(),  # and a length in bytes
    }
)


class Source(Protocol):
    """What every kind of source can do. Instances are small and can be sent to other machines."""

    def listing(self) -> Iterator[pa.Table]:
        """All images in a fixed order, a block at a time. Raises UserError where there are none.

        A generator that has something to tell a person returns `notes.ListingNotes`.
        """

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        """The images of one block of the listing, in its order; what is wrong with one is yielded, not raised.

        What cannot be read is tried again first (`reading.Attempts`). Raises UserError: it still cannot be read, and
        `source.unreadable` is `fail`.
        """

    def holds(self, other: Source) -> bool:
        """Whether its path and split alone show that every image of another source is one of its own."""

    @property
    def known_classes(self) -> tuple[str, ...]:
        """Class names that the source brings along, else empty."""


def section_of(config: Config, split: Split) -> SourceConfig | TestConfig:
    """What the configuration says about where a split lies."""
    return config.source if split == "pool" else config.test


def section_name(split: Split) -> Literal["source", "test"]:
    """How that section is called."""
    return "source" if split == "pool" else "test"


def part_of(split: Split) -> Literal["train", "test"]:
    """The part of a set with a split of its own that serves as this one."""
    return "train" if split == "pool" else "test"


def columns_of(config: Config) -> tuple[str, str, str]:
    """Names of the columns that hold the image, its id and its label, in tables of either split."""
    return config.source.image_column, config.source.id_column, config.source.label_column


def block(
    image_ids: Sequence[str],
    *,
    labels: Sequence[int | None] | None = None,
    files: Sequence[str] | str | None = None,
    groups: int | None = None,
    starts: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
) -> pa.Table:
    """A block of a listing from its columns; a single value stands for all rows."""
    rows = len(image_ids)

    def column(values: object, name: str) -> pa.Array:
        spread = [values] * rows if values is None or isinstance(values, (str, int)) else values
        return pa.array(spread, LISTING.field(name).type)

    columns = (image_ids, labels, files, groups, starts, sizes)
    return pa.table([column(values, name) for values, name in zip(columns, LISTING.names, strict=True)], LISTING)


def blocks(ids: list[str], labels: list[int], indices: list[int]) -> Iterator[pa.Table]:
    """Blocks of a listing of images that are read by their index."""
    for start in range(0, len(ids), BLOCK_IMAGES):
        part = slice(start, start + BLOCK_IMAGES)
        yield block(ids[part], labels=labels[part], starts=indices[part])
