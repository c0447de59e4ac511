"""`history.csv` as text: one row an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from coreg_ray.metrics import HISTORY, TIME

Epochs = list[dict[str, Any]]  # figures of each finished epoch by name, oldest first


def as_csv(history: Sequence[Mapping[str, Any]]) -> str:
    """The fixed columns first, then all others in the order of their names; times last. Missing values are empty."""
    others = sorted({name for figures in history for name in figures} - set(HISTORY))
    columns = [*HISTORY, *sorted(others, key=lambda name: (name.startswith(TIME), name))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def from_csv(text: str) -> Epochs:
    """The rows of such a text, numbers as numbers; what is empty in a row is missing from it."""
    rows = csv.DictReader(io.StringIO(text))
    return [{name: _number(cell) for name, cell in row.items() if cell} for row in rows]


def _number(cell: str) -> int | float | str:
    try:
        return int(cell) if cell.isdigit() else float(cell)
    except ValueError:
        return cell
