"""Seconds of tasks that take turns, the machine they ran on, and the memory they took."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Task = Callable[[], object]


def take_turns(tasks: Mapping[str, Task], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Run every task once to warm up, then all of them in turn `rounds` times: name -> seconds of each round."""
    for task in tasks.values():
        seconds_of(task, device)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            seconds[name].append(seconds_of(task, device))
    return seconds


def seconds_of(task: Task, device: torch.device) -> float:
    """Wall seconds of one call, with all that it started on the device."""
    _wait(device)
    start = time.perf_counter()
    task()
    _wait(device)
    return time.perf_counter() - start


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use that many threads on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures belong to."""
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_megabytes(device: torch.device) -> float:
    """The most memory held so far: on the GPU by tensors, else by this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 (a kernel file)
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    abilities = [name for name in ("amx_bf16", "avx512_bf16") if able.get(name)]
    return " ".join([names[0] if names else platform.machine(), *abilities])
