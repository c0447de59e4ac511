"""Two gloo processes against one process with both networks, a thread a network in either; what exchange costs.

Plain processes (`spawn`), no Ray. They stay alive, are told what to do next, and only one world works at a time.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import distributed as dist

from coreg_ray.methods import coreg
from coreg_ray.studies.figures import Figures
from coreg_ray.studies.problem import Problem, build_problem, made_up_opinion, synthetic_rows
from coreg_ray.training.assess import swap_opinions
from coreg_ray.training.fit import exchange, train_epoch

_TIMEOUT_S = 1800.0
CIFAR_ROWS = 50_000


class World:
    """`size` processes with `threads` threads each; `run` lets all of them call one of the functions below."""

    def __init__(self, size: int, threads: int) -> None:
        self.size, self.threads = size, threads

    def __enter__(self) -> World:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._ends, self._processes = [], []
        for rank in range(self.size):
            here, there = context.Pipe()
            arguments = (rank, self.size, self.threads, self._folder.name, there)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self._ends.append(here)
            self._processes.append(process)
        return self

    def run(self, name: str, *arguments: Any) -> list[Any]:
        """Every rank's answer. Raises RuntimeError when one of them fails or takes too long."""
        for end in self._ends:
            end.send((name, arguments))
        answers = []
        for rank, end in enumerate(self._ends):
            if not end.poll(_TIMEOUT_S):
                raise RuntimeError(f"rank {rank} of {self.size} did not answer within {_TIMEOUT_S:.0f} s")
            try:
                answers.append(end.recv())
            except EOFError as error:
                raise RuntimeError(f"rank {rank} of {self.size} failed; its traceback is above") from error
        return answers

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self._ends:
            end.close()  # which ends the processes
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def measure_workers(figures: Figures, rounds: int, rows: int, batch_size: int, width: int) -> None:
    """Epochs of both networks with contrast on: both worlds do the same work, in turns."""
    with World(1, threads=1) as one, World(2, threads=1) as two:  # one trains its two networks side by side
        for world in (one, two):
            world.run("prepare", rows, batch_size, width)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(rounds + 1):  # the first is to warm up
            for world in (one, two):
                taken = max(world.run("epoch", 1 + turn))
                if turn:
                    seconds[world.size].append(taken)
    note = f"epochs a second: 2 processes over 1 with 2 threads; {rows} rows, batch {batch_size}"
    figures.add_ratio("workers/two_over_one", seconds[1], seconds[2], note)
    for size, taken in seconds.items():
        figures.add(f"workers/epoch_s_{size}", taken, "s", f"width {width}, float32, contrast on")


def measure_exchange(figures: Figures, steps: int, batch_size: int, width: int = 64) -> None:
    """Seconds of an epoch's exchanges between two processes, as a share of an epoch of CIFAR-10's size.

    The epoch is extrapolated from `steps` steps; the opinions are those of 50,000 rows.
    """
    with World(2, threads=1) as world:
        world.run("prepare", max(4 * batch_size, 64), batch_size, width)
        step = max(world.run("steps", steps)) / steps
        opinions = max(world.run("opinions", 5))
        exchanges = max(world.run("exchanges", 5))
    epoch_steps, rounds = -(-int(0.9 * CIFAR_ROWS) // batch_size), 4
    spent, epoch = opinions + rounds * exchanges, step * epoch_steps
    note = f"{rounds} of weights, 1 of opinions; epoch of {epoch:,.0f} s from {steps} steps of {batch_size} rows"
    figures.add("exchange/seconds_per_epoch", spent, "s", f"CIFAR-10 size, width {width}, 2 gloo processes")
    figures.add("exchange/share_of_epoch", spent / (epoch + spent), "", note)


def _serve(rank: int, size: int, threads: int, folder: str, orders: Connection) -> None:
    torch.set_num_threads(threads)
    if size > 1:
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    problem: Problem | None = None
    while True:
        try:
            name, arguments = orders.recv()
        except EOFError:
            break
        if name == "prepare":
            problem = _prepare(*arguments)
            orders.send(None)
        else:
            assert problem is not None, "prepare comes first"
            orders.send(_ORDERS[name](problem, *arguments))
    if size > 1:
        dist.destroy_process_group()


def _prepare(rows: int, batch_size: int, width: int) -> Problem:
    return build_problem(synthetic_rows(rows), batch_size, width)


def _epoch(problem: Problem, epoch: int) -> float:
    state, rows, mesh = problem.state, problem.rows, problem.mesh

    def epoch_of_both() -> None:
        train_epoch(state, rows, mesh, epoch, coreg.turns(state, rows, mesh, epoch), coreg)

    return _timed(epoch_of_both)


def _steps(problem: Problem, count: int) -> float:
    problem.step()
    return _timed(lambda: [problem.step() for _ in range(count)])


def _opinions(problem: Problem, repeats: int) -> float:
    rows = synthetic_rows(CIFAR_ROWS, side=4)
    opinion = {problem.learner.network: made_up_opinion(rows)}
    return _median([_timed(lambda: swap_opinions(opinion, problem.mesh)) for _ in range(repeats)])


def _exchanges(problem: Problem, repeats: int) -> float:
    state = problem.state
    return _median([_timed(lambda: exchange(state, problem.mesh, state.learners, coreg)) for _ in range(repeats)])


def _timed(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


_ORDERS: dict[str, Callable[..., float]] = {
    "epoch": _epoch,
    "steps": _steps,
    "opinions": _opinions,
    "exchanges": _exchanges,
}
