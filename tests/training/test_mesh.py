"""Alone, communication is the identity; what several processes say to each other is tested in test_worlds.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coreg_ray.errors import UserError
from coreg_ray.training import mesh as mesh_module
from coreg_ray.training.mesh import Mesh


def test_alone_everything_is_what_it_was() -> None:
    mesh = Mesh()
    assert (mesh.networks, mesh.replica, mesh.replicas, mesh.rank, mesh.world) == ((0, 1), 0, 1, 0, 1)
    tensor = torch.tensor([[1.0, -2.0]])
    for operation in (mesh.team_sum, mesh.team_max, mesh.world_sum, mesh.world_max):
        assert torch.equal(operation(tensor), tensor)
    assert torch.equal(mesh.team_stack(tensor), tensor[None])
    (only,) = mesh.team_concat(tensor)
    assert torch.equal(only, tensor)
    mesh.barrier()
    assert mesh.take_seconds() == 0


def test_alone_the_networks_swap_copies() -> None:
    messages = {0: torch.zeros(3), 1: torch.ones(3)}
    swapped = Mesh().swap(messages)
    assert torch.equal(swapped[0], torch.ones(3))
    assert torch.equal(swapped[1], torch.zeros(3))
    messages[1].fill_(5)  # what was handed over does not change with its writer
    assert torch.equal(swapped[0], torch.ones(3))


def test_alone_gradients_stay_as_they_are() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.tensor([1.0, 2.0])
    Mesh().reduce_gradients([used, unused])
    assert torch.equal(used.grad, torch.tensor([1.0, 2.0]))
    assert unused.grad is None


@pytest.mark.parametrize("text", [None, "no rows on this node", "gr\u00f6\u00dfer"])
def test_alone_a_text_is_ones_own(text: str | None) -> None:
    assert Mesh().first_text(text) == text


@pytest.mark.parametrize("world", [3, 5, 7])
def test_an_odd_world_is_refused(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(mesh_module.dist, "get_world_size", lambda: world)
    monkeypatch.setattr(mesh_module.dist, "get_rank", lambda: 0)
    with pytest.raises(UserError, match=f"num_workers={world} cannot hold two equal teams; use 1 or an even number"):
        Mesh()
