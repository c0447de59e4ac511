"""The label model over all voters of a pool: rounds of sums over blocks of votes that lie in the object store.

A round is a handful of tasks, each with its share of the blocks. The driver holds the model and sums of blocks, which
do not grow with the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from coreg_ray.annotation import candidate_builder, first_look
from coreg_ray.cluster.candidate_inputs import AskedAnnotator
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.pure.label_fit import fit
from coreg_ray.pure.label_model import LabelModel, Sums, block_sums
from coreg_ray.pure.voters import Survey, survey_votes

_TASKS_A_CPU = 2


def blocks_of_parts(
    one: AskedAnnotator, listed: Sequence[Any], making: ray.ObjectRef, num_classes: int, cpus: float = 1
) -> list[ray.ObjectRef]:
    """References to the votes (n, P) of a single annotator, block by block."""
    rows = ask(task(first_look.count_rows, cpus).remote(listed[0], one.folder))
    at_once = max(1, first_look.rows_at_once(num_classes) // max(1, rows))
    read, text = task(first_look.read_votes, cpus), ray.put(one.text)
    groups = [list(listed[start : start + at_once]) for start in range(0, len(listed), at_once)]
    return [read.remote(group, one.folder, one.card, text, making, one.places) for group in groups]


def blocks_of_tables(
    tables: Sequence[ray.ObjectRef], prompts: list[int], num_classes: int, cpus: float = 1
) -> list[ray.ObjectRef]:
    """References to the votes (n, P) of several annotators, whose evidence lies joined by image in some tables."""
    return [task(_votes_of_table, cpus).remote(table, prompts, num_classes) for table in tables]


def _votes_of_table(table: Any, prompts: list[int], num_classes: int) -> NDArray[np.signedinteger]:
    if not len(table):
        return np.zeros((0, sum(prompts)), np.int8)
    return first_look.compact(candidate_builder.join(table, prompts).votes, num_classes)


def fit_label_model(blocks: Sequence[ray.ObjectRef], num_classes: int, cpus: float = 1) -> tuple[Survey, LabelModel]:
    """What the votes look like from outside, and the label model fitted to them.

    Args:
        blocks: references to votes (n, P).
    """
    tasks = max(1, min(len(blocks), _TASKS_A_CPU * int(ray.cluster_resources().get("CPU", 1))))
    shares = [list(blocks[number::tasks]) for number in range(tasks)]
    surveyed = [task(_survey, cpus).remote(share, num_classes) for share in shares]
    survey = reduce(Survey.merge, map(ask, surveyed))

    def count(model: LabelModel) -> Sums:
        shared = ray.put(model)
        counted = [task(_sums, cpus).remote(share, shared) for share in shares]
        return reduce(Sums.merge, map(ask, counted))

    return survey, fit(survey, count)


def _survey(blocks: list[ray.ObjectRef], num_classes: int) -> Survey:
    return reduce(Survey.merge, (survey_votes(_tensor(block), num_classes) for block in blocks))


def _sums(blocks: list[ray.ObjectRef], model: LabelModel) -> Sums:
    return reduce(Sums.merge, (block_sums(_tensor(block), model) for block in blocks))


def _tensor(block: ray.ObjectRef) -> torch.Tensor:
    return torch.from_numpy(ray.get(block).astype(np.int64))
