"""Rows to train on: images at the student's resolution, written where they are decoded, a part at a time.

Annotation writes them on its way; what is missing afterwards (other annotations, another resolution) is made here.
A part is whole or absent, and a call writes only what no part holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coreg_ray.annotation import preparation, writer
from coreg_ray.annotation.parts import known_keys, next_run
from coreg_ray.cluster.decode import only_rows
from coreg_ray.cluster.listing import Listing
from coreg_ray.cluster.pools import Pool, open_pool
from coreg_ray.cluster.tasks import ask, task, through, watch
from coreg_ray.config import Config
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import RowsManifest
from coreg_ray.run.storage import Folder


def write_rows(config: Config, split: Split, run: RunFolder, annotated: RunFolder | None = None) -> int:
    """Write what is missing of `rows/<split>/`: every decodable image at the student's resolution, uint8 RGB.

    Args:
        annotated: run folder of the annotations, if it is another one; images that none of its annotators answered for,
            though they can be decoded, get no row.

    Returns:
        How many rows there are.

    Raises:
        UserError: the source is not what it should be, or a file of it cannot be read.
    """
    source = open_pool(config, split)[1]
    pool = Pool(split, source, Listing(source, None), run)
    rejects = [pool.rejects] if annotated is None else []  # else the other run has them
    written = through(
        pool.listing.dataset(),
        only_rows,
        settings={
            "source": source,
            "fit": None,
            "run": next_run(pool.rows, *rejects),
            "rejects": rejects[0] if rejects else None,
            **row_settings(pool, config.student.resolution, *rejects),
        },
        batch_size=None,
        batch_format="pyarrow",
    )
    watch(written, pool.listing.images, f"writing the {split} rows")
    if annotated is None:
        return settle_rows(pool, config.student.resolution)
    theirs, answered = annotated.rejects(split), annotated.read_used(split)
    return settle_rows(pool, config.student.resolution, theirs, answered, own=False)


def row_settings(pool: Pool, side: int, *also: Folder) -> dict[str, Any]:
    """What `preparation.prepare` needs to write rows; those of another size are removed. `also`: tables of rejects."""
    stored = [name for name in pool.rows.entries() if name.endswith(".parquet")]
    if not all(name.endswith(f"-{side}px.parquet") for name in stored):
        pool.rows.delete()
    return {
        "rows": preparation.RowParts(pool.rows, side),
        "rows_known": [task(known_keys).remote(pool.rows, *also)],
    }


def settle_rows(
    pool: Pool, side: int, rejects: Folder | None = None, answered: Sequence[Folder] = (), own: bool = True
) -> int:
    """Leave one row for each image, and say in the manifest which images these are; returns how many.

    Arguments as `writer.settle_rows` takes them.
    """
    rows, images = ask(task(writer.settle_rows).remote(pool.listing.rows, pool.rows, rejects, answered, own))
    pool.run.write_rows_manifest(pool.split, RowsManifest(side, images))
    return int(rows)
