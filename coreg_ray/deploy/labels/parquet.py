"""Labels as one Parquet file with the columns of `purified/`."""

from __future__ import annotations

import pyarrow.parquet as pq

from coreg_ray.deploy.labels.base import Pictures, PoolLabels
from coreg_ray.deploy.purified import SCHEMA
from coreg_ray.run.storage import Folder

FILE: str | None = "labels.parquet"
HAS_PICTURES = False


def write(labels: PoolLabels, folder: Folder, name: str, pictures: Pictures) -> int:
    """Write the file, a row group a part."""
    count = 0
    with (
        folder.filesystem.open_output_stream(f"{folder.path}/{name}") as stream,
        pq.ParquetWriter(stream, SCHEMA, compression="zstd") as writer,
    ):
        for table in labels.tables():
            writer.write_table(table)
            count += len(table)
    return count
