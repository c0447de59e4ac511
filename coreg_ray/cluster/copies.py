"""Exact copies with different votes, looked for in every annotator's table: tasks mark the images, one compares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import ray

from coreg_ray.annotation import copies
from coreg_ray.annotation.parts import Part
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.run.storage import Folder

_PARTS_A_TASK = 64


def copies_warnings(
    tables: Sequence[tuple[Folder, Sequence[Part], Sequence[int] | None]], cpus: float = 1
) -> list[str]:
    """A sentence for each annotator's table in which copies of an image have different votes; 16 bytes an image.

    `tables`: each one's folder, parts, and places of the votes that count (None: all).

    Args:
        cpus: that each task asks for; 0 where whoever waits holds them all.
    """
    asked = []
    for folder, parts, places in tables:
        rest = iter(parts)
        marked = []
        while some := list(islice(rest, _PARTS_A_TASK)):
            marked.append(task(copies.marks, cpus).remote(some, folder, places))
        asked.append(task(_compared, cpus).remote(parts, folder, marked))
    told = (ask(answer).warning() for answer in asked)
    return [warning for warning in told if warning is not None]


def _compared(parts: Sequence[Part], folder: Folder, marked: list[ray.ObjectRef]) -> copies.Copies:
    tables = [np.zeros((0, 2), np.uint64), *map(ray.get, marked)]
    return copies.different_copies(parts, folder, np.concatenate(tables))
