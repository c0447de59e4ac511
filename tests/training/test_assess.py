"""Judging all rows: what travels for it, and how often."""

from __future__ import annotations

from typing import Any

import torch
import toy
from torch import Tensor

from coreg_ray.methods import coreg
from coreg_ray.training.assess import assess
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh

WARMUP, EPOCHS = 1, 3
SETTINGS: dict[str, Any] = {"epochs": EPOCHS, "warmup_epochs": WARMUP}


class Counting(Mesh):
    """Alone, and remembers what it was asked to gather from its team."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered: list[Tensor] = []

    def team_concat(self, tensor: Tensor) -> list[Tensor]:
        self.gathered.append(tensor)
        return super().team_concat(tensor)


def test_losses_are_gathered_once_an_epoch_and_network() -> None:
    """They are a number for every row of the pool: the one message of an epoch whose size follows the team's rows."""
    data, mesh = toy.toy(count=40), Counting()
    state, rows = toy.start(data, mesh, **SETTINGS)
    counts = []
    for _ in fit(state, rows, data.scored, mesh, coreg):
        counts.append(len(mesh.gathered))
        mesh.gathered.clear()
    assert counts == [0] * WARMUP + [2] * (EPOCHS - WARMUP)


def test_what_is_gathered_are_the_mean_losses_of_the_last_assessments() -> None:
    mesh = Counting()
    state, rows = toy.start(toy.toy(count=40), mesh, **SETTINGS)
    learner = state.learners[0]
    for epoch in range(2):
        assess(state, learner, rows, mesh, epoch)
    assert len(mesh.gathered) == 2
    assert learner.memory.losses[:-2].isnan().all()
    torch.testing.assert_close(mesh.gathered[1], learner.memory.losses[-2:].float().mean(0))


class First(Counting):
    """The first replica of two, whose team mate holds some more rows with small and large losses."""

    def team_concat(self, tensor: Tensor) -> list[Tensor]:
        (own,) = super().team_concat(tensor)
        return [own, own.flip(0)[:7]]


class Second(Counting):
    """The second replica of two."""

    def team_concat(self, tensor: Tensor) -> list[Tensor]:
        (own,) = super().team_concat(tensor)
        return [own.flip(0)[:7], own]


def test_each_replica_takes_its_own_rows_out_of_the_teams() -> None:
    opinions = []
    for mesh, replica in ((First(), 0), (Second(), 1)):
        state, rows = toy.start(toy.toy(count=40), mesh, **SETTINGS)
        mesh.replica = replica  # it holds all rows, so that both judge the same
        opinions.append(assess(state, state.learners[0], rows, mesh, 0))
        assert len(mesh.gathered) == 1
        assert len(opinions[-1].clean) == len(rows)
    torch.testing.assert_close(opinions[0].clean, opinions[1].clean, atol=1e-5, rtol=0)
    assert opinions[0].clean.unique().numel() > 20
