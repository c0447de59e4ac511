"""Tables from outside, opened only when nothing in them would be unpickled.

Ray Data's extension types for arrays and Python objects hold pickled programs, in a file's schema or in its cells, and
Arrow hands them to Ray wherever Ray is loaded: when the schema is read already. So the raw bytes of a schema are looked
at before Arrow reads them, and what it then makes of them before any row is read.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coreg_ray.errors import UserError
from coreg_ray.images.reading import Attempts, of_reading

_MARK = b"ARROW:extension:name"  # precedes the name of an extension type in a schema
_UNPICKLED = (b"ray.data.", b"py_extension_type")  # beginnings or ends of names of types whose content is unpickled
_HARMLESS = ("datasets.", "pandas.")  # types of other libraries that are described by text
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{32,}")
_TAIL = 8  # bytes at the end of a Parquet file: length of the footer, and PAR1
_IPC_HEAD = 2**26  # no schema is larger


def parquet_file(source: pa.NativeFile, name: str) -> pq.ParquetFile:
    """A Parquet file of unknown origin, by an open file of it.

    Args:
        name: what messages call it.

    Raises:
        UserError: it is no Parquet file, or has columns that would be unpickled; before any row is read.
        OSError: it cannot be read at the moment (`reading.of_reading`).
    """
    try:
        for schema in _schemas(_footer(source)):
            _refuse_pickled(schema, name)
        parquet = pq.ParquetFile(source)
        for field in parquet.schema_arrow:
            _refuse_foreign(field.type, field.name, name)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, pa.ArrowException) as error:
        if of_reading(error):
            raise
        reason = str(error).split("\n")[0]
        raise UserError(f"{name} cannot be read as Parquet ({reason}); give Parquet files") from error
    return parquet


def refuse_pickled_files(folder: Path) -> None:
    """Raises UserError where an Arrow or Parquet file in a local folder would be unpickled, or cannot be read."""
    attempts = Attempts()
    for path in sorted(folder.rglob("*.arrow")):
        _refuse_pickled(attempts.one(partial(_head, path), str(path)), str(path))
    for path in sorted(folder.rglob("*.parquet")):
        attempts.one(partial(_look_at, path), str(path))


def _head(path: Path) -> bytes:
    """The beginning of an Arrow file, with its schema."""
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head[4:] if head[:4] == b"\xff" * 4 else head[:4], "little")
        return head + file.read(min(length + 8, _IPC_HEAD))


def _look_at(path: Path) -> None:
    with pa.OSFile(str(path)) as source:
        parquet_file(source, str(path))


def _footer(source: pa.NativeFile) -> bytes:
    """The end of a Parquet file that describes it; empty where it is too short to be one."""
    size = source.size()
    if size < _TAIL:
        return b""
    length = int.from_bytes(source.read_at(_TAIL, size - _TAIL)[:4], "little")
    return source.read_at(min(length, size - _TAIL), max(0, size - _TAIL - length))


def _schemas(footer: bytes) -> Iterator[bytes]:
    """All that may be an Arrow schema in a footer: it is written in base64, wherever that begins."""
    for run in _BASE64.findall(footer):
        for start in range(4):
            letters = run[start:]
            yield base64.b64decode(letters + b"A" * (-len(letters) % 4))


def _refuse_pickled(schema: bytes, name: str) -> None:
    if _MARK in schema and any(kind in schema for kind in _UNPICKLED):
        raise UserError(_refusal(name, "Python objects or arrays in Ray's own form, which may hold programs"))


def _refuse_foreign(kind: pa.DataType, column: str, name: str) -> None:
    """Refuse extension types that Python code reads, however deep, unless they are known to be described by text."""
    if isinstance(kind, pa.ExtensionType) and not kind.extension_name.startswith(_HARMLESS):
        raise UserError(_refusal(name, f"values of the type {kind.extension_name} in {column!r}"))
    for number in range(kind.num_fields):
        inner = kind.field(number)
        _refuse_foreign(inner.type, column, name)


def _refusal(name: str, what: str) -> str:
    return (
        f"{name} holds {what}, so it is not read; write images as encoded bytes, arrays as lists of whole numbers or "
        "as Arrow's own tensors, and labels as text or numbers"
    )
