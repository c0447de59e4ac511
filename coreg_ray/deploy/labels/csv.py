"""Labels as one CSV in UTF-8: the columns of `purified/`, candidates as a JSON list, empty where nothing is known."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from coreg_ray.deploy.labels.base import Pictures, PoolLabels
from coreg_ray.deploy.purified import SCHEMA
from coreg_ray.run.cells import neutral
from coreg_ray.run.storage import Folder

FILE: str | None = "labels.csv"
HAS_PICTURES = False


def write(labels: PoolLabels, folder: Folder, name: str, pictures: Pictures) -> int:
    """Write the file; texts that a spreadsheet would run as formulas get an apostrophe in front (run/cells.py)."""
    count = 0
    with folder.filesystem.open_output_stream(f"{folder.path}/{name}") as stream:
        stream.write(_lines([SCHEMA.names]))
        for table in labels.tables():
            columns = [table[column].to_pylist() for column in SCHEMA.names]
            stream.write(_lines([list(map(_cell, row)) for row in zip(*columns, strict=True)]))
            count += len(table)
    return count


def _lines(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else neutral(value)
