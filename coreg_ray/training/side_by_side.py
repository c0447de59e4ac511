"""Work of both networks at the same time, where one process holds both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from coreg_ray.training.mesh import Mesh
from coreg_ray.training.state import Learner

T = TypeVar("T")
U = TypeVar("U")


def side_by_side(learners: list[Learner], work: Callable[[Learner], T], mesh: Mesh) -> dict[int, T]:
    """`work` for each network, by network; two networks in one process on a CPU work at the same time.

    They share nothing that either changes before the next exchange, so this alters no bit. Small networks hardly gain
    from more threads in one operation, so two threads with half of the cores each are nearly twice as fast as turns.
    """
    if len(learners) == 1 or mesh.device.type != "cpu":
        return {learner.network: work(learner) for learner in learners}
    return dict(zip([learner.network for learner in learners], at_once(work, learners), strict=True))


def at_once(work: Callable[[U], T], pair: Sequence[U]) -> list[T]:
    """`work` for both of a pair at the same time, each in a thread of its own with `torch.get_num_threads()` threads.

    What holds for one thread alone, such as inference mode and autocast, is up to `work`.
    """
    return list(_pair_of_threads(torch.get_num_threads()).map(work, pair))


@cache
def _pair_of_threads(num_threads: int) -> ThreadPoolExecutor:
    """The same two threads each time: new ones would leave their part of the heap behind, 0.8 GB for the digits.

    They keep the number of threads that torch had when they started, so another number gets another pair.
    """
    return ThreadPoolExecutor(2, thread_name_prefix=f"network-{num_threads}")
