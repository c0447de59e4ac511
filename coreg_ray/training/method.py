"""What a method is to the loop: a module with these names.

A method that looks at one network alone trains two that know nothing of one another: a and b are two seeds of it,
weights travel once an epoch, for scoring, and its published figure is that of either network, not of both together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.training.confident import learned_in_warm_up
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import Student
from coreg_ray.training.plan import Plan, whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch, warmup_step

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

Step = Callable[[State, Learner, Batch, Mesh], Tensor]  # takes one step; returns its weighted terms, detached


@dataclass(frozen=True)
class Turn:
    """What one network does in one epoch: which rows in which step, and the step with all that it listens to."""

    plan: Plan
    step: Step


@dataclass(frozen=True)
class Turns:
    """What a process does in one epoch.

    Attributes:
        phase: `warmup`, where each network is alone, or the method's kind.
        of: a turn for each network that the process holds. figures: of the epoch so far, by name.
        alone: no step looks at the other network, though the method's may.
    """

    phase: str
    of: dict[int, Turn]
    figures: dict[str, float] = field(default_factory=dict)
    alone: bool = False


class Method(Protocol):
    """A module of `methods/`.

    Attributes:
        TERMS: names of the loss terms that a step returns, which become columns of `history.csv`.
        LISTENS: whether a step looks at the other network; if not, weights travel once an epoch, for scoring.
        DEPLOYED: networks that may be taken home.
    """

    TERMS: tuple[str, ...]
    LISTENS: bool
    DEPLOYED: tuple[str, ...]

    def remember(self, method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Any:
        """What is remembered of a network from epoch to epoch (`training.memory`), before the first."""

    def turns(self, state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
        """Whatever comes before the steps of an epoch: passes over all rows, messages, plans."""

    def settle(self, state: State, trained: list[Learner], mesh: Mesh) -> None:
        """Bring into line what both networks share, after each round, once weights have travelled."""


def figures_of(own: dict[int, dict[str, float]], mesh: Mesh) -> dict[str, float]:
    """Figures of both networks by their full names, such as `clean/a`, on every process.

    Args:
        own: by network, figures by name: the same names for both, and the same numbers in a whole team.
    """
    names = list(next(iter(own.values())))
    if not names:
        return {}
    values = {network: torch.tensor(list(figures.values()), dtype=torch.float64) for network, figures in own.items()}
    both = values | {1 - network: theirs for network, theirs in mesh.swap(values).items()}
    return {
        metrics.of(name, NETWORKS[network]): float(value)
        for network in sorted(both)
        for name, value in zip(names, both[network], strict=True)
    }


def warm_up(state: State, rows: Rows, mesh: Mesh, epoch: int, terms: tuple[str, ...]) -> Turns:
    """An epoch in which each network is alone (METHOD: section 2); `terms` are the method's."""
    of = {}
    for learner in state.learners:
        seen = learned_in_warm_up(state.method, rows, learner.network)
        of[learner.network] = warmup_turn(state, learner, rows, mesh, epoch, terms, seen)
    return Turns(metrics.WARMUP, of)


def warmup_turn(
    state: State,
    learner: Learner,
    rows: Rows,
    mesh: Mesh,
    epoch: int,
    terms: tuple[str, ...],
    seen: Tensor | None = None,
) -> Turn:
    """One network's epoch of partial cross-entropy on strong views; `seen` as of `whole_plan`."""
    plan = whole_plan(rows, state.seed, learner.network, epoch, state.method.warmup_batch_size, mesh, seen=seen)
    return Turn(plan, partial(warmup_step, terms=len(terms)))
