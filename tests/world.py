"""Several plain processes that form a gloo world, for tests of distribution without Ray.

They are forked from one process that has imported torch and the training loop, once for all worlds of a test process:
importing takes seconds, and a world has up to four members.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist


def run_world(world: int, function: str, *arguments: Any, timeout: float = 120) -> list[Any]:
    """Call `module.name` with the arguments in `world` processes; returns their answers in the order of ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "coreg_ray.training.worker"])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_enter, args=(rank, world, folder, function, arguments, sys.path), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        assert not hanging, f"ranks {hanging} of {world} still wait after {timeout} s"
        answers = []
        for rank, process in enumerate(processes):
            assert process.exitcode == 0, f"rank {rank} of {world} ended with {process.exitcode}"
            answers.append(pickle.loads(Path(folder, f"answer-{rank}").read_bytes()))
        return answers


def _enter(rank: int, world: int, folder: str, function: str, arguments: tuple[Any, ...], path: list[str]) -> None:
    sys.path[:] = path
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    module, name = function.rsplit(".", 1)
    answer = getattr(importlib.import_module(module), name)(*arguments)
    Path(folder, f"answer-{rank}").write_bytes(pickle.dumps(answer))
    if world > 1:
        dist.destroy_process_group()
