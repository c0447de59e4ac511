"""Test images that lie in the pool too, byte for byte, as the hashes in the annotation tables tell.

Only images whose label is known count, for they alone score.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.labels import read_labels
from coreg_ray.annotation.parts import Part, parts
from coreg_ray.ids import contains, row_numbers
from coreg_ray.run.storage import Folder

_DIGITS = 16  # of a content's hash, which make one number


def scored_contents(tables: Iterable[Folder], labels: Folder) -> NDArray[np.uint64]:
    """Sorted numbers (M,), one for the content of each labelled test image that an annotator has answered for.

    Args:
        tables: of the test images, one an annotator. labels: of the test images, as `labels.read_labels` takes them.
    """
    labelled, rows, contents = read_labels(labels).rows, [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for folder in tables:
        for part in parts(folder):
            table = read_table(folder, part.name, ["image_id", "content"])
            rows.append(row_numbers(table["image_id"].to_pylist()))
            contents.append(_numbers(table["content"].to_pylist()))
    row, first = np.unique(np.concatenate(rows), return_index=True)
    return np.sort(np.concatenate(contents)[first][contains(labelled, row)])


def found_in(part: Part, folder: Folder, scored: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the sorted contents (M,) a part of the pool's table holds; masks of several parts add up."""
    return contains(np.sort(_numbers(read_table(folder, part.name, ["content"])["content"].to_pylist())), scored)


def _numbers(contents: list[str]) -> NDArray[np.uint64]:
    """(N,) uint64: the beginning of each content's hash."""
    return np.fromiter((int(content[:_DIGITS], 16) for content in contents), np.uint64, len(contents))
