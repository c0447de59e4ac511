"""How many images of a pool nobody has answered for."""

from __future__ import annotations

import numpy as np

from coreg_ray.annotation.arrow import read_table
from coreg_ray.ids import row_numbers
from coreg_ray.run.storage import Folder


def unanswered(images: int, candidates: Folder, rejects: Folder) -> int:
    """Images with neither a candidate set nor a reject; with several annotators one may have both.

    Args:
        images: in the pool, of which both folders hold no others.
    """
    rows = [np.empty(0, np.int64)]
    rows += [read_table(candidates, name, ["row"])["row"].to_numpy() for name in _tables(candidates)]
    rows += [row_numbers(read_table(rejects, name, ["image_id"])["image_id"].to_pylist()) for name in _tables(rejects)]
    return images - len(np.unique(np.concatenate(rows)))


def _tables(folder: Folder) -> list[str]:
    return [name for name in folder.entries() if name.endswith(".parquet")]
