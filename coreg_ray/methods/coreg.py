"""Co-Reg: two networks that judge candidate sets for one another (Wang et al., arXiv 2406.18550).

METHOD, here and in every other file, is docs/method.md.

What differs from the paper or its authors' published settings, and why:

1. No true label of a training image comes near this file; labels of test images only score.
2. Every schedule follows the configured number of epochs.
3. The networks train concurrently, each against a copy of the other that is renewed `method.exchanges` times an epoch,
   so that one worker or two give the same result; `method.order sequential` is the authors' order.
4. Per-row state is ragged or a few numbers a row; nothing has the size N x K.
5. The key encoder is a true moving average from the first contrast epoch on, batch-norm buffers included.
6. Empty queue slots are masked; nothing random stands in for keys.
7. Every pass without gradient runs in evaluation mode, so pseudo-labels do not move batch-norm statistics.
8. A side without rows (labelled or unlabelled) is an epoch with what there is, not a crash; no loss divides by zero.
9. The class prior of alignment is a setting. Manual labels may enter (METHOD: section 7).
10. Every random number is a function of seed, purpose, network, epoch, step and row number, never of placement.
11. For pseudo-labels each network looks at one weak view of a row, not two (`method.weak_views`): as accurate where it
    was measured, in 23 instead of 26 forward passes' time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.training.assess import Opinion, assess, opinion_metrics, swap_opinions
from coreg_ray.training.evaluate import Scored, evaluate
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import pack, unpack
from coreg_ray.training.plan import Plan, coreg_plan, warmup_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import NAMES, Learner, State
from coreg_ray.training.steps import TERMS, Batch, coreg_step, warmup_step

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; `metrics` has the names of `history.csv`."""

    number: int
    metrics: dict[str, float | str]


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or NaN; the message names epoch, step, network and term."""


def fit(state: State, rows: Rows, scored: Scored, mesh: Mesh) -> Iterator[Epoch]:
    """Train both networks to the last epoch, from wherever `state` stands; yields after each epoch.

    Raises:
        NonFiniteLossError: on every process alike, with the epoch, step, network and term.
    """
    method = state.method
    for epoch in range(state.epoch, method.epochs):
        start = time.perf_counter()
        mesh.take_seconds()
        warming = epoch < method.warmup_epochs
        metrics: dict[str, float | str] = {"epoch": epoch, "phase": "warmup" if warming else "coreg"}
        for learner in state.learners:
            _set_learning_rate(learner, state, epoch)
        if warming:
            metrics |= warm_up(state, rows, mesh, epoch)
        else:
            metrics |= co_regularise(state, rows, mesh, epoch)
        trained = time.perf_counter()
        metrics |= evaluate(state, scored, mesh)
        metrics["time/evaluate_s"] = time.perf_counter() - trained
        metrics["time/exchange_s"] = mesh.take_seconds()
        metrics["time/epoch_s"] = time.perf_counter() - start
        state.epoch = epoch + 1
        state.history.append(metrics)
        yield Epoch(epoch, metrics)


def warm_up(state: State, rows: Rows, mesh: Mesh, epoch: int) -> dict[str, float]:
    """One epoch of partial cross-entropy on strong views, each network alone (METHOD: section 2)."""
    plans = {learner.network: _warmup_plan(state, rows, mesh, epoch, learner) for learner in state.learners}
    return _train(state, rows, mesh, epoch, plans, {}, rounds=1)


def co_regularise(state: State, rows: Rows, mesh: Mesh, epoch: int) -> dict[str, float]:
    """One epoch of assessment, opinions, co-pseudo-labels and training (METHOD: section 3)."""
    start = time.perf_counter()
    own = _side_by_side(state.learners, lambda learner: assess(state, learner, rows, mesh, epoch), mesh)
    others = swap_opinions(own, mesh)
    metrics = opinion_metrics(state, own, others, rows, mesh)
    metrics["time/assess_s"] = time.perf_counter() - start
    plans = {}
    for learner in state.learners:
        plan = coreg_plan(
            rows, others[learner.network].clean, state.method.clean_threshold, state.method.trusted_share,
            state.seed, learner.network, epoch, state.method.batch_size, mesh,
        )  # fmt: skip
        if not plan.steps:
            log.warning("epoch %d, network %s: no clean row; it warms up once more", epoch, learner.name)
            others.pop(learner.network)
            plan = _warmup_plan(state, rows, mesh, epoch, learner)
        plans[learner.network] = plan
    return metrics | _train(state, rows, mesh, epoch, plans, others, rounds=state.method.exchanges)


def _train(
    state: State, rows: Rows, mesh: Mesh, epoch: int, plans: dict[int, Plan], opinions: dict[int, Opinion], rounds: int
) -> dict[str, float]:
    """Take all planned steps; a network without an opinion to learn from warms up."""
    start = time.perf_counter()
    terms: dict[int, list[Tensor]] = {learner.network: [] for learner in state.learners}

    def take_steps(learner: Learner) -> None:
        plan, opinion = plans[learner.network], opinions.get(learner.network)
        for step in turn[learner.network]:
            batch = Batch(rows, plan, step, epoch)
            if opinion is None:
                terms[learner.network].append(warmup_step(state, learner, batch, mesh))
            else:
                terms[learner.network].append(coreg_step(state, learner, batch, opinion, mesh))

    for turn in _turns(state, plans, rounds):
        trained = [learner for learner in state.learners if learner.network in turn]
        _side_by_side(trained, take_steps, mesh)
        _refuse_non_finite(terms, epoch, mesh)
        exchange(state, mesh, trained)
    means = {network: mesh.team_sum(torch.stack(found)).mean(0).cpu() for network, found in terms.items()}
    others = mesh.swap(means)
    metrics = {}
    for network, values in (means | {1 - n: v for n, v in others.items()}).items():
        name = NAMES[network]
        metrics[f"loss/{name}"] = float(values.sum())
        metrics |= {f"{term}/{name}": float(value) for term, value in zip(TERMS, values, strict=True)}
    metrics["time/train_s"] = time.perf_counter() - start
    metrics["time/step_s"] = metrics["time/train_s"] / max(1, *(len(found) for found in terms.values()))
    return metrics


def _turns(state: State, plans: dict[int, Plan], rounds: int) -> list[dict[int, range]]:
    """Which network takes which steps between two exchanges: both side by side, or one after the other."""
    if state.method.order == "sequential":
        return [{network: range(plan.steps)} for network, plan in plans.items()]
    cuts = {network: plan.rounds(rounds) for network, plan in plans.items()}
    return [{network: cut[turn] for network, cut in cuts.items()} for turn in range(rounds)]


def _side_by_side(learners: list[Learner], work: Callable[[Learner], T], mesh: Mesh) -> dict[int, T]:
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


def exchange(state: State, mesh: Mesh, trained: list[Learner]) -> None:
    """Renew both peers and make the prototypes common: the mean of both networks', normalised (METHOD: section 6).

    Where only one of a process's two networks has trained (the sequential order), the prototypes are simply its own.
    """
    for learner in trained:
        for network in (learner.student, learner.keys):
            if network is not None:
                _average_buffers(network, mesh)
    weights = mesh.swap({learner.network: pack(learner.student) for learner in state.learners})
    prototypes = mesh.swap({learner.network: learner.prototypes for learner in state.learners})
    for learner in state.learners:
        unpack(weights[learner.network], learner.peer)
        if len(trained) == len(state.learners):
            learner.prototypes = F.normalize(learner.prototypes + prototypes[learner.network], dim=1)
        else:
            learner.prototypes = trained[0].prototypes.clone()


@torch.no_grad()
def _average_buffers(network: torch.nn.Module, mesh: Mesh) -> None:
    """Batch-norm statistics become the team's mean; each replica has seen other rows."""
    if mesh.replicas == 1:
        return
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    flat = mesh.team_sum(torch.cat([buffer.reshape(-1) for buffer in buffers])) / mesh.replicas
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def _set_learning_rate(learner: Learner, state: State, epoch: int) -> None:
    """Cosine from the configured rate to a thousandth of it over the run's own number of epochs (METHOD: section 5)."""
    top = state.method.learning_rate
    rate = top * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * epoch / state.method.epochs)) / 2)
    learner.optimizer.learning_rate = rate


def _warmup_plan(state: State, rows: Rows, mesh: Mesh, epoch: int, learner: Learner) -> Plan:
    return warmup_plan(rows, state.seed, learner.network, epoch, state.method.warmup_batch_size, mesh)


def _refuse_non_finite(terms: dict[int, list[Tensor]], epoch: int, mesh: Mesh) -> None:
    """Every process learns of the first term that is not a number, so that all of them stop alike."""
    first = math.inf
    for network, found in terms.items():
        if found:
            bad = torch.nonzero(~torch.isfinite(mesh.team_sum(torch.stack(found)))).tolist()
            if bad:
                step, term = bad[0]
                first = min(first, (step * 2 + network) * len(TERMS) + term)
    first = -float(mesh.world_max(torch.tensor(-first, dtype=torch.float64)))
    if math.isfinite(first):
        rest, term = divmod(int(first), len(TERMS))
        step, network = divmod(rest, 2)
        raise NonFiniteLossError(
            f"epoch {epoch}, step {step}, network {NAMES[network]}: the {TERMS[term]} loss is not finite; lower "
            "method.learning_rate, or use student.precision float32, and continue from the last checkpoint"
        )
