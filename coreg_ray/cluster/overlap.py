"""How many of the test images lie in the pool too: counted after annotation, before anything is learned."""

from __future__ import annotations

import logging

import numpy as np
import ray

from coreg_ray.annotation.overlap import found_in, scored_contents
from coreg_ray.annotation.parts import parts
from coreg_ray.cluster.tasks import added_up, ask, task
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.records import Overlap

log = logging.getLogger(__name__)


def pool_overlap(annotated: RunFolder) -> Overlap:
    """Compare the contents of the labelled test images with those of the pool, all of them annotated.

    Args:
        annotated: run folder of the annotations.

    Raises:
        UserError: all test images lie in the pool.
    """
    scored = ask(task(scored_contents).remote(annotated.read_used("test"), annotated.labels("test")))
    shared, copied = ray.put(scored), np.zeros(len(scored), bool)
    for folder in annotated.read_used("pool"):
        if listed := parts(folder):
            copied |= added_up(found_in, listed, folder, shared)
    overlap = Overlap(len(scored), int(copied.sum()))
    if overlap.images and overlap.in_pool == overlap.images:
        raise UserError(
            f"all {overlap.images} labelled test images lie in the pool, byte for byte, so accuracy would say nothing "
            "about new images; give other labelled images with --test.path, or none with --test.kind null (what is "
            "annotated stays: coreg-ray train --annotations takes it)"
        )
    if overlap.in_pool:
        log.warning("%s", overlap.words())
    return overlap
