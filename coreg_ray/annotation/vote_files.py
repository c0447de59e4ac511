"""Votes in files, Parquet, CSV or JSON Lines: as columns of plain values, some lines at a time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import pyarrow as pa

from coreg_ray.annotation.csv_lines import csv_blocks
from coreg_ray.errors import UserError
from coreg_ray.images.folder import matching_files
from coreg_ray.images.tables import parquet_file
from coreg_ray.run.storage import Folder

Columns = dict[str, list[Any]]

_ENDINGS = (".parquet", ".csv", ".jsonl", ".ndjson")
_LINES = 10_000  # held as Python's values at a time
_CHUNK = 1 << 20
_SHOWN = 60  # characters of a line that is no JSON


@dataclass(frozen=True)
class VoteFiles:
    """The files at `annotator.votes`. Instances are small and can be sent to other machines."""

    folder: Folder
    names: tuple[str, ...]

    @classmethod
    def at(cls, path: str) -> VoteFiles:
        """The files at a path, folder, glob or URI, by name.

        Raises:
            UserError: there is none, or one is neither Parquet, CSV nor JSON Lines.
        """
        folder, names, _ = matching_files(path, _ENDINGS, "file of votes (.parquet, .csv or .jsonl)")
        for name in names:
            if not name.lower().endswith(_ENDINGS):
                raise UserError(f"{path} is no file of votes by its name; give one that ends in {', '.join(_ENDINGS)}")
        return cls(folder, tuple(names))

    @property
    def shown(self) -> str:
        """What messages call them."""
        return f"{self.folder.path}/{self.names[0]}" if len(self.names) == 1 else self.folder.path

    def bytes(self) -> int:
        """How large they are together."""
        return sum(self.folder.size(name) for name in self.names)

    def digest(self) -> str:
        """32 hex digits over what they hold, whatever they are called."""
        digest = blake2b(digest_size=16)
        for name in self.names:
            with self.folder.filesystem.open_input_stream(f"{self.folder.path}/{name}") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    def lines(self, name: str, columns: list[str] | None = None) -> Iterator[Columns]:
        """The lines of one file; one block at least, with all columns even where there is no line.

        Args:
            columns: those of a Parquet file that are read; None: all. Other files have to be read whole.

        Raises:
            UserError: it cannot be read, or is not what its name says.
        """
        path = f"{self.folder.path}/{name}"
        try:
            with self.folder.filesystem.open_input_file(path) as file:
                if name.lower().endswith(".parquet"):
                    yield from _of_parquet(file, path, columns)
                    return
                text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
                yield from csv_blocks(text, path, _LINES) if name.lower().endswith(".csv") else _of_json(text, path)
        except UserError:
            raise
        except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"annotator.votes: {path} cannot be read ({reason}); mend or replace it") from error


def _of_parquet(file: pa.NativeFile, path: str, columns: list[str] | None) -> Iterator[Columns]:
    parquet = parquet_file(file, path)
    names = parquet.schema_arrow.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} has {names.count(twice[0])} columns {twice[0]!r}; keep one")
    chosen = names if columns is None else [name for name in names if name in columns]
    some = False
    for batch in parquet.iter_batches(_LINES, columns=chosen):
        some = True
        yield {name: batch.column(name).to_pylist() for name in chosen}
    if not some:
        yield {name: [] for name in chosen}


def _of_json(text: io.TextIOWrapper, path: str) -> Iterator[Columns]:
    number, some = 0, False
    while lines := list(islice(text, _LINES)):
        entries = []
        for line in lines:
            number += 1
            if line.strip():
                entries.append(_entry(line, path, number))
        some = True
        yield {name: [entry.get(name) for entry in entries] for name in dict.fromkeys(k for e in entries for k in e)}
    if not some:
        yield {}


def _entry(line: str, path: str, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        raise UserError(
            f"{path}, line {number}, is no JSON object ({line.strip()[:_SHOWN]!r}); write one a line, such as "
            '{"image_id": "a.png", "votes": ["cat", null]}'
        )
    return entry
