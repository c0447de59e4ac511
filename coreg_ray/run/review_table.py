"""`review.csv` as a person may have left it: read with any columns in any order, changed without touching the rest.

Spreadsheets and editors write it with other line ends, columns moved, added or taken away. What is not to be changed
stays as it is, to the byte.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from coreg_ray.run.cells import neutral, restored

IMAGE, LABEL = "image_id", "label"
NOT_SURE, NONE_OF_THESE = "?", "-"  # labels that are no class


@dataclass(frozen=True)
class ReviewTable:
    """The rows of a review file.

    Attributes:
        columns: as the first line names them. rows: the cells of each row by column, those of `cells.neutral` restored;
            a row may end early. texts: every row as it stands in the file, its line end included; the first line apart.
        head: the first line as it stands there.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    texts: list[str]
    head: str

    @classmethod
    def parse(cls, content: bytes) -> ReviewTable | None:
        """The table in a file's content.

        Returns:
            None where it is no CSV in UTF-8 with the columns image_id and label; labels may be in it all the same.
        """
        try:
            text = content.decode("utf-8-sig")
            mark = "\ufeff" if content.startswith("\ufeff".encode()) else ""
            lines = io.StringIO(text, newline="").readlines()
            reader = csv.reader(lines, strict=True)
            columns, rows, texts, head, taken = None, [], [], mark, 0
            for cells in reader:
                piece, taken = "".join(lines[taken : reader.line_num]), reader.line_num
                if columns is None:
                    head += piece
                    columns = cells or None
                    continue
                if cells and len(cells) > len(columns):
                    return None
                texts.append(piece)
                rows.append(dict(zip(columns, map(restored, cells), strict=False)))  # an empty line has no cell
        except (UnicodeDecodeError, csv.Error):
            return None
        columns = columns or []
        if columns and (not {IMAGE, LABEL} <= set(columns) or len(set(columns)) < len(columns)):
            return None
        return cls(columns, rows, texts, head)

    @property
    def has_labels(self) -> bool:
        """Whether a person has written into it."""
        return any(row.get(LABEL, "").strip() for row in self.rows)

    def labels(self) -> dict[str, str]:
        """The label of each image that is named, "" where there is none yet; the first one that an image has."""
        labels: dict[str, str] = {}
        for row in self.rows:
            if IMAGE in row:
                labels[row[IMAGE]] = labels.get(row[IMAGE]) or row.get(LABEL, "").strip()
        return labels

    def with_labels(self, labels: Mapping[str, str]) -> bytes:
        """The file's new content: these labels in the rows of their images, in rows of their own where there are none.

        Rows whose label stays are as they were.
        """
        left = dict(labels)
        texts = []
        for row, text in zip(self.rows, self.texts, strict=True):
            name = row.get(IMAGE)
            if name is not None and name in labels:
                left.pop(name, None)
                if row.get(LABEL, "").strip() != labels[name]:
                    text = self._line(dict.fromkeys(self.columns, "") | row | {LABEL: labels[name]})
            texts.append(text)
        new = [{IMAGE: name, LABEL: label} for name, label in left.items() if label]
        return self._joined(texts, new)

    def with_rows(self, rows: list[dict[str, str]]) -> bytes:
        """The file's new content: all that is there, and rows below it, as far as it has their columns."""
        return self._joined(self.texts, rows)

    def _joined(self, texts: list[str], rows: list[dict[str, str]]) -> bytes:
        there = self.head + "".join(texts)
        if not self.columns:
            there += self._line({IMAGE: IMAGE, LABEL: LABEL})
        if rows and there and not there.endswith(("\n", "\r")):
            there += self._ending
        return (there + "".join(map(self._line, rows))).encode()

    @cached_property
    def _ending(self) -> str:
        return "\r\n" if any("\r\n" in text for text in (self.head, *self.texts)) else "\n"

    def _line(self, row: Mapping[str, str]) -> str:
        line = io.StringIO()
        cells = [neutral(row.get(column, "")) for column in self.columns or (IMAGE, LABEL)]
        csv.writer(line, lineterminator=self._ending).writerow(cells)
        return line.getvalue()
