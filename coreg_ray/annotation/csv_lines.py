"""The lines of a CSV file by column, some at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TextIO

from coreg_ray.errors import UserError
from coreg_ray.run.cells import restored


def csv_blocks(text: TextIO, path: str, rows: int) -> Iterator[dict[str, list[str | None]]]:
    """The cells of a CSV by column, at most `rows` lines at a time; one block at least, which may have no line.

    Cells come without the apostrophes of `cells.neutral`, and None where a line ends early.

    Args:
        path: what messages call it.

    Raises:
        UserError: a line has cells too many.
    """
    lines = csv.DictReader(text)
    names = list(lines.fieldnames or ())
    columns: dict[str, list[str | None]] = {name: [] for name in names}
    some = 0
    for line in lines:
        beyond = line.pop(None, [])  # where DictReader puts what has no column
        if any(cell.strip() for cell in beyond):
            raise UserError(
                f"{path}, line {lines.line_num}, has {len(columns) + len(beyond)} cells for {len(columns)} columns; "
                'put what holds a comma in quotes ("a,b.png",cat)'
            )
        for name, cells in columns.items():
            cell = line[name]
            cells.append(cell if cell is None else restored(cell))
        some += 1
        if some % rows == 0:
            yield columns
            columns = {name: [] for name in names}
    if some % rows or not some:
        yield columns
