"""Arrow columns and Parquet files: ragged lists, matrices, one file whole or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coreg_ray.run.storage import Folder


def lists(counts: NDArray[np.integer], values: NDArray[Any]) -> pa.ListArray:
    """A ragged Arrow column: counts (N,) of consecutive values (sum,)."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def matrix(column: pa.ChunkedArray, dtype: type[np.generic]) -> NDArray[Any]:
    """An Arrow column of lists of equal length -> (N, length), a copy that may be written to."""
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.zeros(0, dtype), *flat]).astype(dtype, copy=False).reshape(len(column), -1)


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    """One Parquet file, whole or not at all; embeddings are split by bytes, which saves a tenth."""
    stream = pa.BufferOutputStream()
    plain = {"embedding", "image", "image_id", "content", "row", "key", "plain", "views"}
    options: dict[str, Any] = {"use_dictionary": [n for n in _leaves(table.schema) if n.split(".")[0] not in plain]}
    if "embedding" in table.column_names:
        options["column_encoding"] = {"embedding.list.element": "BYTE_STREAM_SPLIT"}
    pq.write_table(table, stream, compression="zstd", **options)
    folder.write(name, stream.getvalue().to_pybytes())


def _leaves(schema: pa.Schema) -> list[str]:
    nested = (pa.types.is_list, pa.types.is_fixed_size_list)
    return [f"{f.name}.list.element" if any(is_a(f.type) for is_a in nested) else f.name for f in schema]


def read_table(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file of the folder. Raises FileNotFoundError."""
    with folder.filesystem.open_input_file(f"{folder.path}/{name}") as file:
        return pq.ParquetFile(file).read(columns=columns)
