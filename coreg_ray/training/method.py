"""What a method is to the loop: a module with these names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from coreg_ray.training.mesh import Mesh
from coreg_ray.training.plan import Plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch

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
        phase: `warmup`, or the method's kind. rounds: after how many rounds of steps weights travel.
        of: a turn for each network that the process holds. figures: of the epoch so far, by name.
    """

    phase: str
    rounds: int
    of: dict[int, Turn]
    figures: dict[str, float] = field(default_factory=dict)


class Method(Protocol):
    """A module of `methods/`.

    Attributes:
        TERMS: names of the loss terms that a step returns, which become columns of `history.csv`.
        DEPLOYED: networks that may be taken home.
    """

    TERMS: tuple[str, ...]
    DEPLOYED: tuple[str, ...]

    def turns(self, state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
        """Whatever comes before the steps of an epoch: passes over all rows, messages, plans."""

    def settle(self, state: State, trained: list[Learner], mesh: Mesh) -> None:
        """Bring into line what both networks share, after each round, once weights have travelled."""
