"""The optimiser is torch's, without its compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coreg_ray.training.optimizer import SGD

TRAINS = """
import sys
from coreg_ray.training.mesh import Mesh
from toy import history, toy
history(toy(80), Mesh(), epochs=3)
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 1e-3), (0.9, 0.0), (0.0, 1e-3)])
def test_steps_are_those_of_torch(momentum: float, weight_decay: float) -> None:
    torch.manual_seed(0)
    own, other = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2))
    other.load_state_dict(own.state_dict())
    mine = SGD(own.parameters(), 0.1, momentum, weight_decay)
    theirs = torch.optim.SGD(other.parameters(), 0.1, momentum=momentum, weight_decay=weight_decay)
    for step in range(4):
        mine.learning_rate = theirs.param_groups[0]["lr"] = 0.1 / (1 + step)
        images = torch.randn(5, 3)
        for network in (own, other):
            hidden = network[0](images)
            output = network[1](hidden) if step else hidden  # the last layer has no gradient at first
            output.square().sum().backward()
        mine.step()
        theirs.step()
        mine.zero_grad()
        theirs.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))
    assert len(mine.momenta) == (4 if momentum else 0)
    assert all(parameter.grad is None for parameter in own.parameters())


def test_an_encoder_may_have_a_learning_rate_of_its_own() -> None:
    torch.manual_seed(0)
    own, other = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2))
    other.load_state_dict(own.state_dict())
    mine = SGD(own.parameters(), 0.1, 0.9, 1e-3, list(own[0].parameters()), ratio=0.2)
    groups: list[dict[str, Any]] = [{"params": other[0].parameters(), "lr": 0.02}, {"params": other[1].parameters()}]
    theirs = torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(3):
        mine.learning_rate = 0.1 / (1 + step)  # a schedule moves both
        theirs.param_groups[0]["lr"], theirs.param_groups[1]["lr"] = 0.02 / (1 + step), 0.1 / (1 + step)
        images = torch.randn(5, 3)
        for network in (own, other):
            network(images).square().sum().backward()
        for optimizer in (mine, theirs):
            optimizer.step()
            optimizer.zero_grad()
        for one, another in zip(own.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, another)


def test_training_does_not_load_torchs_compiler() -> None:
    process = subprocess.run(
        [sys.executable, "-c", TRAINS],
        cwd=Path(__file__).parents[1],  # where toy.py lies
        capture_output=True,
        text=True,
        timeout=1500,
        check=True,
    )
    assert process.stdout.strip() == "False"
