"""The loop that trains any method: turns of steps, exchanges between the networks, scores, epoch by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.training.evaluate import Scored, evaluate
from coreg_ray.training.memory import parts
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Method, Turn, Turns
from coreg_ray.training.networks import Student, pack, unpack
from coreg_ray.training.rows import Rows
from coreg_ray.training.side_by_side import side_by_side
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch

_PARTS = ("weights", "batch-norm statistics", "momenta", "prototypes, keys or other memory")
_REMEDY = "lower method.learning_rate, or use student.precision float32, and continue from the last checkpoint"


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; `metrics` has the names of `history.csv`."""

    number: int
    metrics: dict[str, float | str]


class NonFiniteLossError(RuntimeError):
    """A loss, or what was learnt from it, became infinite or NaN; the message names epoch, network and where."""


def fit(state: State, rows: Rows, scored: Scored, mesh: Mesh, method: Method) -> Iterator[Epoch]:
    """Train both networks to the last epoch, from wherever `state` stands; yields after each epoch.

    Args:
        rows: this replica's. scored: what every process scores. method: a module of `methods/`.

    Raises:
        NonFiniteLossError: on every process alike, with the epoch, step, network and term. The state before that epoch
            is the last that the caller saw.
    """
    for epoch in range(state.epoch, state.method.epochs):
        start = time.perf_counter()
        mesh.take_seconds()
        passes = _passes(state)
        for learner in state.learners:
            _set_learning_rate(learner, state, epoch)
            learner.student.hold(epoch < state.student.warm_start)
        turns = method.turns(state, rows, mesh, epoch)
        figures: dict[str, float | str] = {metrics.EPOCH: epoch, metrics.PHASE: turns.phase, **turns.figures}
        figures |= train_epoch(state, rows, mesh, epoch, turns, method)
        figures[metrics.PASSES] = _passes_per_row(_passes(state) - passes, state, rows, mesh)
        _refuse_non_finite_state(state, mesh, epoch)
        trained = time.perf_counter()
        figures |= evaluate(state, scored, mesh)
        figures[metrics.EVALUATE_S] = time.perf_counter() - trained
        figures[metrics.EXCHANGE_S] = mesh.take_seconds()
        figures[metrics.EPOCH_S] = time.perf_counter() - start
        state.epoch = epoch + 1
        state.history.append(figures)
        yield Epoch(epoch, figures)


def train_epoch(state: State, rows: Rows, mesh: Mesh, epoch: int, turns: Turns, method: Method) -> dict[str, float]:
    """Take all planned steps, with an exchange after each round; returns mean losses and times.

    Raises:
        NonFiniteLossError: on every process alike.
    """
    start = time.perf_counter()
    terms: dict[int, list[Tensor]] = {learner.network: [] for learner in state.learners}

    def take_steps(learner: Learner) -> None:
        turn = turns.of[learner.network]
        for step in steps[learner.network]:
            batch = Batch(rows, turn.plan, step, epoch)
            terms[learner.network].append(turn.step(state, learner, batch, mesh))

    alone = turns.phase == metrics.WARMUP or turns.alone or not method.LISTENS
    for steps in _rounds(state, turns.of, 1 if alone else state.method.exchanges):
        trained = [learner for learner in state.learners if learner.network in steps]
        side_by_side(trained, take_steps, mesh)
        _refuse_non_finite(terms, epoch, mesh, method.TERMS)
        exchange(state, mesh, trained, method)
    means = {network: mesh.team_sum(torch.stack(taken)).mean(0).cpu() for network, taken in terms.items()}
    both = means | {1 - network: theirs for network, theirs in mesh.swap(means).items()}
    figures = {}
    for network, values in both.items():
        name = NETWORKS[network]
        figures[metrics.of(metrics.LOSS, name)] = float(values.sum())
        figures |= {metrics.of(term, name): float(value) for term, value in zip(method.TERMS, values, strict=True)}
    figures[metrics.TRAIN_EPOCH_S] = time.perf_counter() - start
    figures[metrics.STEP_S] = figures[metrics.TRAIN_EPOCH_S] / max(1, *(len(taken) for taken in terms.values()))
    return figures


def _rounds(state: State, turns: dict[int, Turn], rounds: int) -> list[dict[int, range]]:
    """Which network takes which steps between two exchanges: both side by side, or one after the other."""
    if state.method.order == "sequential":
        return [{network: range(turn.plan.steps)} for network, turn in turns.items()]
    cuts = {network: turn.plan.rounds(rounds) for network, turn in turns.items()}
    return [{network: cut[number] for network, cut in cuts.items()} for number in range(rounds)]


def exchange(state: State, mesh: Mesh, trained: list[Learner], method: Method) -> None:
    """Renew both peers, and whatever else the method brings into line (METHOD: section 6)."""
    for learner in trained:
        for network in _networks(learner):
            _average_buffers(network, mesh)
    weights = mesh.swap({learner.network: pack(learner.student) for learner in state.learners})
    for learner in state.learners:
        unpack(weights[learner.network], learner.peer)
    method.settle(state, trained, mesh)


@torch.no_grad()
def _average_buffers(network: Student, mesh: Mesh) -> None:
    """Batch-norm statistics become the team's mean; each replica has seen other rows.

    Those that nothing has moved are left alone: the mean of three equal numbers may be off by a bit.
    """
    if mesh.replicas == 1 or network.keeps_statistics or network.held:
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


def _refuse_non_finite(terms: dict[int, list[Tensor]], epoch: int, mesh: Mesh, names: tuple[str, ...]) -> None:
    """Every process learns of the first term that is not a number, so that all of them stop alike."""
    first = math.inf
    for network, taken in terms.items():
        if taken:
            bad = torch.nonzero(~torch.isfinite(mesh.team_sum(torch.stack(taken)))).tolist()
            if bad:
                step, term = bad[0]
                first = min(first, (step * 2 + network) * len(names) + term)
    first = -float(mesh.world_max(torch.tensor(-first, dtype=torch.float64)))
    if math.isfinite(first):
        rest, term = divmod(int(first), len(names))
        step, network = divmod(rest, 2)
        raise NonFiniteLossError(
            f"epoch {epoch}, step {step}, network {NETWORKS[network]}: the {names[term]} loss is not finite; {_REMEDY}"
        )


def _refuse_non_finite_state(state: State, mesh: Mesh, epoch: int) -> None:
    """Every process learns whether a part of either network is not a number, which the next loss would be the first to
    show: too late, since this state would have been saved by then.
    """
    bad = torch.zeros(2, len(_PARTS))
    for learner in state.learners:
        for part, tensors in enumerate(_numbers(learner)):
            bad[learner.network, part] = not all(bool(tensor.isfinite().all()) for tensor in tensors)
    for network, part in mesh.world_max(bad).nonzero().tolist():
        raise NonFiniteLossError(
            f"epoch {epoch}, after its last step, network {NETWORKS[network]}: its {_PARTS[part]} are not finite; "
            f"{_REMEDY}"
        )


def _numbers(learner: Learner) -> tuple[list[Tensor], ...]:
    """All numbers that a network goes on from, in the order of `_PARTS`."""
    networks, memory = _networks(learner), learner.memory
    return (
        [parameter for network in networks for parameter in network.parameters()],
        [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()],
        list(learner.optimizer.momenta.values()),
        [part.content for part in parts(memory, "team")] + [part.content.keys for part in parts(memory, "ring")],
    )


def _passes(state: State) -> int:
    return sum(network.passes for one in state.learners for network in [one.peer, *_networks(one)])


def _passes_per_row(passes: int, state: State, rows: Rows, mesh: Mesh) -> float:
    """What an epoch cost each network, in forward passes a row; the same whatever the world is."""
    both = mesh.world_sum(torch.tensor([passes, len(rows) * len(state.learners)], dtype=torch.float64))
    return float(both[0] / both[1])


def _networks(learner: Learner) -> list[Student]:
    """The network in training and those that follow it."""
    return [learner.student, *(part.content for part in parts(learner.memory, "network"))]
