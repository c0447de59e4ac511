"""Work of both networks at the same time, where one process holds both."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from coreg_ray.training.mesh import Mesh
from coreg_ray.training.state import Learner

T = TypeVar("T")


def side_by_side(learners: list[Learner], work: Callable[[Learner], T], mesh: Mesh) -> dict[int, T]:
    """`work` for each network, by network; two networks in one process on a CPU work at the same time.

    They share nothing that either changes before the next exchange, so this alters no bit. Small networks hardly gain
    from more threads in one operation, so two threads with half of the cores each are nearly twice as fast as turns.
    """
    if len(learners) == 1 or mesh.device.type != "cpu":
        return {learner.network: work(learner) for learner in learners}
    pair = _pair_of_threads(torch.get_num_threads())
    return dict(zip([learner.network for learner in learners], pair.map(work, learners), strict=True))


@cache
def _pair_of_threads(num_threads: int) -> ThreadPoolExecutor:
    """The same two threads each time: new ones would leave their part of the heap behind, 0.8 GB for the digits.

    They keep the number of threads that torch had when they started, so another number gets another pair.
    """
    return ThreadPoolExecutor(2, thread_name_prefix=f"network-{num_threads}")
