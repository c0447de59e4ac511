"""Which candidate sets are sound, by confident learning (`method.clean confident`) in the place of the mixture.

Predictions must come from a network that has not learned the row, so in the warm-up each network sees one half of the
rows, by their numbers, and trusted rows. When it is over, each tells what it thinks of the other half, and what is
found then stays. A row's label is the candidate that is predicted most surely.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreg_ray.pure.confident import wrong_labels
from coreg_ray.pure.soft_labels import largest_shares
from coreg_ray.training.assess import Assessed, Opinion, look
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig


def unasked(method: MethodConfig, rows: Rows) -> Tensor | None:
    """`Assessed.sound` before anybody is asked: (N,) NaN; None where the mixture decides."""
    return torch.full((len(rows),), torch.nan, dtype=torch.float16) if method.clean == "confident" else None


def learned_in_warm_up(method: MethodConfig, rows: Rows, network: int) -> Tensor | None:
    """(N,) bool, the rows that a network sees in the warm-up; None for all."""
    return (rows.numbers % 2 == network) | rows.trusted if method.clean == "confident" else None


def by_confidence(state: State, own: dict[int, Opinion], rows: Rows, mesh: Mesh, epoch: int) -> dict[int, Opinion]:
    """Opinions with what confident learning has found in the place of the mixture's probabilities: 0 or 1.

    Rows that came later, and that nobody was asked about, keep those.
    """
    memories: dict[int, Assessed] = {learner.network: learner.memory for learner in state.learners}
    known = torch.stack([(~_sound(memory).isnan()).sum() for memory in memories.values()]).sum()
    if not int(mesh.world_sum(known)):
        sound = _ask(state, rows, mesh, epoch)
        for memory in memories.values():
            memory.sound = sound.clone()
    return {
        network: replace(opinion, clean=torch.where(_sound(memory).isnan(), opinion.clean, _sound(memory).float()))
        for (network, opinion), memory in zip(own.items(), memories.values(), strict=True)
    }


def _sound(memory: Assessed) -> Tensor:
    assert memory.sound is not None
    return memory.sound


def _ask(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Tensor:
    """What both networks together find of this replica's rows: (N,) float16, 1 where a set is sound, else 0."""
    told = {learner.network: _predictions(state, learner, rows, mesh, epoch) for learner in state.learners}
    of_both = [mesh.swap({network: one[part] for network, one in told.items()}) for part in range(4)]
    network = next(iter(told))  # any one that is held here; the other's is the message to it
    unseen = rows.numbers % 2 != network
    mine, theirs = told[network], [part[network] for part in of_both]
    label, own, classes, probs = (
        torch.where(unseen.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(mine, theirs, strict=True)
    )
    labels = mesh.team_concat(label)
    own, classes, probs = (torch.cat(mesh.team_concat(part)) for part in (own, classes, probs))
    wrong = wrong_labels(torch.cat(labels), own, classes, probs, rows.num_classes)
    before = sum(map(len, labels[: mesh.replica]))
    sound = ~wrong[before : before + len(rows)]
    return (sound | rows.trusted).half()


def _predictions(
    state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One network's view of every row: its surest candidate (N,), how sure (N,), its largest predictions (N, r)."""
    parts = []
    for index, probs in look(state, learner, rows, mesh, epoch, "confident"):
        inside = probs.masked_fill(~rows.candidates(index, mesh.device), -1.0)
        classes, shares = largest_shares(probs.float())
        label = inside.argmax(dim=1, keepdim=True)
        own = probs.gather(1, label)[:, 0].half()  # rounded as the largest are, which it is compared with
        parts.append([tensor.cpu() for tensor in (label[:, 0], own, classes, shares)])
    label, own, classes, shares = (torch.cat(part) for part in zip(*parts, strict=True))
    return label, own, classes, shares
