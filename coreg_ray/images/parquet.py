"""Images in Parquet files: encoded bytes, or arrays of uint8."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import Content, Source, Split, Unread, block, columns_of, section_of
from coreg_ray.images.folder import are_among, matching_files
from coreg_ray.images.labels import LabelReader
from coreg_ray.images.limits import MAX_PIXELS
from coreg_ray.images.notes import ListingNotes
from coreg_ray.images.reading import Attempts, Unreadable, of_reading
from coreg_ray.images.tables import parquet_file
from coreg_ray.run.storage import Folder

_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # how Hive writes an empty value


@dataclass(frozen=True)
class ParquetImages:
    """Parquet files with a column of images.

    The column holds encoded bytes, the {bytes, path} pairs that Hugging Face writes, or uint8 arrays (H, W) or
    (H, W, 3), as nested lists or tensors. Without a column of ids, file and row make the id. A folder `label=cat` above
    a file is a column, as Hive and Spark write it.
    """

    folder: Folder
    files: tuple[str, ...]
    labels: LabelReader
    image_column: str = "image"
    id_column: str = "image_id"
    label_column: str = "label"
    known_classes: tuple[str, ...] = ()
    notes: ListingNotes = field(default_factory=ListingNotes)
    unreadable: Unread = "fail"

    @classmethod
    def at(
        cls, path: str, names: dict[str, int] | None, columns: tuple[str, str, str] = ("image", "image_id", "label")
    ) -> ParquetImages:
        """The files at a path, folder, glob or URI; `names` (lower case -> class number) reads labels given as text.

        Args:
            columns: of the image, the id and the label; the last two need not exist.

        Raises:
            UserError: there is none, or one is not Parquet or lacks the column of images, or it holds something else.
        """
        folder, files, notes = matching_files(path, (".parquet",), "Parquet file")
        source = cls(folder, tuple(files), LabelReader(names), *columns, notes=notes)
        Attempts().one(lambda: source._look_at(files[0]), source._path(files[0]))
        return source

    def listing(self) -> Generator[pa.Table, None, ListingNotes]:
        rows = 0
        for file in self.files:
            groups = partial(self._list, file)
            for listed in Attempts().stream(groups, self._path(file)):
                rows += len(listed)
                yield listed
        if not rows:
            raise UserError(f"{self.folder.path} holds no row in {len(self.files)} Parquet files; give some images")
        return replace(self.notes, matched=dict(self.labels.matched))

    def _look_at(self, file: str) -> None:
        with self._open(file):
            pass

    def _list(self, file: str, first: int) -> Iterator[pa.Table]:
        """The row groups of a file from number `first` on."""
        with self._open(file) as parquet:
            for group in range(first, parquet.num_row_groups):
                yield self._list_group(parquet, file, group)

    def _list_group(self, parquet: pq.ParquetFile, file: str, group: int) -> pa.Table:
        columns = [name for name in (self.id_column, self.label_column) if name in parquet.schema_arrow.names]
        table = parquet.read_row_group(group, columns=columns)
        rows = parquet.metadata.row_group(group).num_rows
        if self.id_column in columns:
            given = table[self.id_column]
            if given.null_count:
                raise UserError(f"{file} has a row without {self.id_column}; give every row one, or drop the column")
            ids = [value.decode() if isinstance(value, bytes) else str(value) for value in given.to_pylist()]
        else:
            before = sum(parquet.metadata.row_group(number).num_rows for number in range(group))
            ids = [f"{file}:{before + row}" for row in range(rows)]
        labels, partition = None, partitions(file).get(self.label_column)
        if self.label_column in columns:
            given = table[self.label_column].to_pylist()
            labels = [self.labels(label, image_id) for label, image_id in zip(given, ids, strict=True)]
        elif partition is not None:
            labels = [self.labels.written(partition, file)] * rows
        return block(ids, labels=labels, files=file, groups=group, starts=range(rows))

    def holds(self, other: Source) -> bool:
        return isinstance(other, ParquetImages) and are_among(other.files, other.folder, self.files, self.folder)

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        if not len(block):
            return
        file, group, places = block["file"][0].as_py(), block["group"][0].as_py(), block["start"].to_pylist()
        attempts, done = Attempts(self.unreadable), 0
        try:
            for value in attempts.stream(lambda first: self._read(file, group, places[first:]), self._path(file)):
                yield value
                done += 1
        except Unreadable as reason:
            yield from [reason] * (len(places) - done)

    def _read(self, file: str, group: int, places: list[int]) -> Iterator[Content]:
        """The images at some places of a row group, which are in their order."""
        with self._open(file) as parquet:
            starts = iter(places)
            following, row = next(starts, None), 0
            for batch in parquet.iter_batches(256, row_groups=[group], columns=[self.image_column]):
                for value in _values(batch.column(0)):
                    if row == following:
                        yield value
                        following = next(starts, None)
                        if following is None:
                            return  # a few rows of a large group need not cost all of it
                    row += 1

    @contextmanager
    def _open(self, file: str) -> Iterator[pq.ParquetFile]:
        """One of the files, now or further on.

        Raises:
            UserError: it is no good Parquet file, or lacks the column of images.
            OSError: it cannot be read at the moment.
        """
        path = self._path(file)
        try:
            with self.folder.filesystem.open_input_file(path) as source:
                parquet = parquet_file(source, path)
                self._check(parquet.schema_arrow, path)
                yield parquet
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            if of_reading(error):
                raise
            reason = str(error).split("\n")[0]
            raise UserError(f"{path} cannot be read as Parquet ({reason}); replace or remove it") from error

    def _path(self, file: str) -> str:
        return f"{self.folder.path}/{file}"

    def _check(self, schema: pa.Schema, path: str) -> None:
        fields = [field for field in schema if field.name == self.image_column]
        if not fields:
            raise UserError(
                f"{path} has no column {self.image_column!r}; "
                f"set source.image_column to one of {', '.join(schema.names)}, or remove that file"
            )
        if not _can_hold_images(fields[0].type):
            raise UserError(
                f"{path} holds {fields[0].type} in {self.image_column!r}; images are encoded bytes, {{bytes, path}} "
                "pairs or arrays of whole numbers from 0 to 255: convert it, or set source.image_column"
            )
        for column in (self.image_column, self.id_column, self.label_column):
            if schema.names.count(column) > 1:
                raise UserError(f"{path} has {schema.names.count(column)} columns {column!r}; keep one")


def partitions(file: str) -> dict[str, str | None]:
    """The columns that a relative path names, `label=cat/part.parquet`; None where Hive wrote an empty value."""
    pairs = (part.partition("=") for part in file.split("/")[:-1])
    return {unquote(name): None if value == _NO_PARTITION else unquote(value) for name, sign, value in pairs if sign}


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> ParquetImages:
    """The images at `source.path` or `test.path`. Raises UserError as `ParquetImages.at` does."""
    section = section_of(config, split)
    return ParquetImages.at(section.path or "", names, columns_of(config))


def _can_hold_images(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return True
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth > 0 and pa.types.is_integer(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _values(column: pa.Array) -> Iterator[Content]:
    """The images of one Arrow column, whatever form they have."""
    if isinstance(column, pa.FixedShapeTensorArray):
        yield from map(_pixels, column.to_numpy_ndarray())
        return
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    for number, scalar in enumerate(column):
        if (count := _count_numbers(column.slice(number, 1))) > 4 * MAX_PIXELS:
            yield ValueError(f"{count} numbers; an image has at most {4 * MAX_PIXELS}")
            continue
        value = scalar.as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if value is None:
            yield ValueError("no image in this row")
        else:
            yield value if isinstance(value, bytes) else _pixels(value)


def _count_numbers(column: pa.Array) -> int:
    """How many numbers nested lists hold, before they become Python's."""
    while (
        pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    ):
        column = column.flatten()
    return len(column)


def _pixels(value: Any) -> Content:
    """An array of uint8, or why it is none: not the same length everywhere, or beyond 0 to 255."""
    try:
        pixels = np.asarray(value)
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
            return ValueError(f"pixels from {pixels.min()} to {pixels.max()}; they must lie in 0 to 255")
        return pixels.astype(np.uint8, copy=False)
    except (ValueError, TypeError) as error:
        return error
