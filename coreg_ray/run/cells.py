"""Texts in CSV files that a person opens in a spreadsheet: none of them becomes a formula there.

Ids are file names and class names come from lists, so anybody who adds a file to a pool can write into these tables. A
text that a spreadsheet would run gets an apostrophe in front, and loses it when it is read.
"""

from __future__ import annotations

import re
from typing import Any

_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the wide forms count where Japanese is written
_PLAIN = re.compile(r"-|[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")  # a number, or a lone dash


def neutral(cell: Any) -> Any:
    """A cell as it is written: texts that begin like a formula with an apostrophe in front, all else as it is."""
    if isinstance(cell, str) and _would_run(cell) and (cell.startswith("'") or not _PLAIN.fullmatch(cell)):
        return f"'{cell}"
    return cell


def restored(cell: str) -> str:
    """What `neutral` was given."""
    return cell[1:] if cell.startswith("'") and _would_run(cell) else cell


def _would_run(cell: str) -> bool:
    """Whether a text begins like a formula, behind the apostrophes of texts that were neutralised before."""
    return cell.lstrip("'").startswith(_STARTS)
