"""Few manual labels (METHOD section 7): a CSV or Parquet of `image_id,label`, checked against the pool."""

from __future__ import annotations

import csv
import io
import sys
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreg_ray.annotation.csv_lines import csv_blocks
from coreg_ray.annotation.labels import NO_CLASS, Labels
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.errors import UserError
from coreg_ray.ids import contains, row_numbers
from coreg_ray.images.labels import LabelReader
from coreg_ray.images.tables import parquet_file
from coreg_ray.run.review_table import NONE_OF_THESE, NOT_SURE
from coreg_ray.run.storage import Folder

_SHOWN = 3


def read_manual(path: str, words: Vocabulary) -> tuple[list[str], Labels]:
    """The ids in the file, and their labels by row number.

    Rows whose label is empty or `?` (not sure) are passed over; `-` (none of these) is NO_CLASS.

    Raises:
        UserError: the file cannot be read, lacks a column, gives an image two labels, holds none, or one is no class.
    """
    rows = read_rows(path)
    reader = LabelReader(words.index())
    labels: dict[str, int] = {}
    for image_id, label in rows:
        if label is None or (isinstance(label, str) and not label.strip()):
            continue  # a review list need not be filled in to its end
        if isinstance(label, str) and label.strip() in (NOT_SURE, NONE_OF_THESE) and reader.find(label) is None:
            if label.strip() == NOT_SURE:
                continue  # a person looked, and could not tell
            number: int | None = NO_CLASS
        else:
            number = reader.written(label, image_id) if isinstance(label, str) else reader(label, image_id)
        assert number is not None
        if labels.setdefault(image_id, number) != number:
            raise UserError(f"{path} gives {image_id} two labels; keep one")
    if not labels:
        raise UserError(f"{path} holds no label in {len(rows)} rows; write class names into the column `label`")
    ids = list(labels)
    numbers = row_numbers(ids)
    order = np.argsort(numbers)
    return ids, Labels(numbers[order], np.array(list(labels.values()), dtype=np.int64)[order])


def check_manual(path: str, words: Vocabulary, pool: NDArray[np.int64]) -> int:
    """The number of manual labels; `pool` (N,) holds the sorted row numbers of all images.

    Raises:
        UserError: as `read_manual`, or a label is about an image that the pool does not hold.
    """
    ids, _ = read_manual(path, words)
    strange = [image_id for image_id in ids if not contains(pool, row_numbers([image_id]))[0]]
    if strange:
        shown = ", ".join(map(repr, strange[:_SHOWN]))
        raise UserError(f"{path} labels {len(strange)} images that the pool does not hold ({shown}); correct their ids")
    return len(ids)


def read_rows(path: str) -> list[tuple[str, Any]]:
    """The ids and labels in the file as they stand there, None for an empty cell. Raises UserError: it has no such."""
    try:
        folder, name = Folder.of_file(path)
        content = folder.read(name)
        if name.lower().endswith(".parquet"):
            table = parquet_file(pa.BufferReader(content), path).read()
            columns: dict[str, Any] = {column: table[column].to_pylist() for column in table.column_names}
        else:
            text = io.StringIO(content.decode("utf-8-sig"))
            (columns,) = csv_blocks(text, path, rows=sys.maxsize)
    except UserError:
        raise
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"source.manual_labels={path} cannot be read ({error}); give a CSV or Parquet file") from error
    if not {"image_id", "label"} <= set(columns):
        raise UserError(f"{path} has the columns {', '.join(map(str, columns))}; it needs image_id and label")
    return list(zip(map(str, columns["image_id"]), columns["label"], strict=True))
