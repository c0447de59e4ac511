"""A pretrained network that is trained whole: what stays as it is, for how long, and how fast the rest learns."""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import finetune_toy
import pytest
import torch
import toy
from finetune_toy import SETTINGS, TUNED, problem, statistics, student
from torch import nn
from world import run_world

from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.fit import _average_buffers, fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import Student, build_student, follow, frozen_copy, pack
from coreg_ray.training.optimizer import SGD
from coreg_ray.training.state import State
from coreg_ray.training.timm_models import batch_norms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def file(folder: Path) -> str:
    return finetune_toy.weights(folder)


def images(side: int = toy.SIDE, count: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def learn(network: Student, optimizer: SGD, seen: torch.Tensor) -> None:
    """One step on any loss that has a gradient everywhere."""
    logits, features = network(seen)
    (logits.square().mean() + features[:, 0].mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def learned(before: nn.Module, after: nn.Module) -> set[str]:
    """Names of parameters that differ."""
    own, other = dict(before.named_parameters()), dict(after.named_parameters())
    return {name for name in own if not torch.equal(own[name], other[name])}


# Batch norm.


def test_a_frozen_batch_norm_sees_images_in_training_as_in_evaluation(file: str) -> None:
    """At the resolution of the preset's small twin; weights and biases of the norms learn like all others."""
    network = build_student(student(file, batch_norm="frozen", resolution=64), 3)
    seen, before, kept = images(64), copy.deepcopy(network), statistics(network)
    assert network.training
    assert len(batch_norms(network.encoder)) > 5
    assert any(bool((tensor.abs() - 1).abs().max() > 0.1) for tensor in kept.values())  # those of the file
    with torch.no_grad():
        training, evaluation = network(seen)[0], network.eval()(seen)[0]
        usual = build_student(student(file, resolution=64), 3)
        usual.load_state_dict(network.state_dict())
        assert not torch.equal(usual(seen)[0], evaluation)
    assert torch.equal(training, evaluation)
    learn(network.train(), SGD(network.parameters(), 0.1, 0.9, 0.0), seen)
    assert learned(before, network) == {name for name, _ in network.named_parameters()}
    assert all(torch.equal(tensor, statistics(network)[name]) for name, tensor in kept.items())


def test_networks_that_follow_keep_the_same_statistics(file: str) -> None:
    network = build_student(student(file, batch_norm="frozen"), 3)
    kept, key = statistics(network), frozen_copy(network)
    for momentum in (0.0, 0.3, 0.999):
        follow(key, network, momentum)
    assert all(torch.equal(tensor, statistics(key)[name]) for name, tensor in kept.items())


def test_no_mean_of_a_team_moves_them(file: str) -> None:
    class Three(Mesh):
        """Two more replicas whose networks have the same statistics."""

        replicas = 3

        def __init__(self) -> None:
            pass

        def team_sum(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor + tensor + tensor

    frozen = build_student(student(file, batch_norm="frozen"), 3)
    held, usual = build_student(student(file), 3), build_student(student(file), 3)
    held.hold(True)
    for network in (frozen, held, usual):
        kept = statistics(network)
        _average_buffers(network, Three())
        same = all(torch.equal(tensor, statistics(network)[name]) for name, tensor in kept.items())
        assert same == (network is not usual)  # (3 x) / 3 is not x for every number


def test_a_network_without_batch_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"student.batch_norm=frozen: vit_tiny_patch16_224 has no batch norm; leave"):
        build_student(student(None, name="vit_tiny_patch16_224", resolution=32, batch_norm="frozen"), 3)


# A warm start.


def test_what_is_held_stays_and_what_is_let_go_learns(file: str) -> None:
    network = build_student(student(file), 3)
    optimizer, before, kept = SGD(network.parameters(), 0.1, 0.9, 1e-3), copy.deepcopy(network), statistics(network)
    network.hold(True)
    learn(network, optimizer, images())
    heads = {name for name, _ in network.named_parameters() if not name.startswith("encoder.")}
    assert learned(before, network) == heads
    assert all(torch.equal(tensor, statistics(network)[name]) for name, tensor in kept.items())
    assert len(optimizer.momenta) == len(heads)
    assert network.passes == len(images())  # no way back through the backbone
    network.hold(False)
    learn(network, optimizer, images())
    assert learned(before, network) == {name for name, _ in network.named_parameters()}
    assert not any(torch.equal(tensor, statistics(network)[name]) for name, tensor in kept.items())
    assert network.passes == 4 * len(images())


def test_weights_that_never_learn_are_not_let_go(file: str) -> None:
    network = build_student(student(file), 3)
    first = next(network.encoder.parameters()).requires_grad_(False)
    for held in (True, False, False, True, False):
        network.hold(held)
        assert not first.requires_grad
        assert [weight.requires_grad for weight in network.encoder.parameters()][1:].count(held) == 0


def test_a_run_holds_its_backbones_for_the_first_epochs(file: str) -> None:
    data = problem()
    state, rows = toy.start(data, Mesh(), student=student(file, warm_start=2), **SETTINGS)
    before = copy.deepcopy([learner.student for learner in state.learners])
    moved = []
    for _ in fit(state, rows, data.scored, Mesh(), coreg):
        changes = [learned(old, learner.student) for old, learner in zip(before, state.learners, strict=True)]
        moved.append([any(name.startswith("encoder.") for name in names) for names in changes])
    assert moved == [[False, False], [False, False], [True, True], [True, True]]
    passes = [figures["passes_per_row"] for figures in state.history]
    assert passes[1] < passes[2]


# Learning rates.


def test_the_schedule_keeps_the_ratio_of_both_rates(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[int, list[float]] = defaultdict(list)
    move = SGD._move

    def noting(self: SGD, moved: list[nn.Parameter], learning_rate: float) -> None:
        rates[id(self)].append(learning_rate)
        move(self, moved, learning_rate)

    monkeypatch.setattr(SGD, "_move", noting)
    data, tuned = problem(), student(file, backbone_learning_rate=0.01)
    state, rows = toy.start(data, Mesh(), student=tuned, epochs=3, learning_rate=0.05)
    list(fit(state, rows, data.scored, Mesh(), coreg))
    assert len(rates) == 2
    for one in rates.values():  # of each step first what is new, then the backbone
        assert one[0] == 0.05
        assert one[-2] < 0.02
        assert one[1::2] == pytest.approx([rate / 5 for rate in one[::2]])


# What must be the same however a run is made.


@pytest.fixture(scope="module")
def alone(file: str, folder: Path) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    return finetune_toy.trained(file, str(folder / "alone"))


def test_all_of_it_together_learns_with_statistics_as_they_were(
    alone: tuple[list[dict[str, Any]], list[torch.Tensor]], file: str
) -> None:
    assert alone[0][-1]["contrast/a"] > 0
    kept = pack(build_student(student(file), 3).encoder)
    assert not torch.equal(alone[1][0][: len(kept)], kept)


def test_one_process_and_two_make_the_same_networks(
    alone: tuple[list[dict[str, Any]], list[torch.Tensor]], file: str
) -> None:
    pair = run_world(2, "finetune_toy.trained", file)
    for network, (metrics, weights) in enumerate(pair):
        assert torch.equal(weights[0], alone[1][network])
        toy.same(alone[0], metrics, tolerance=1e-4)


@pytest.mark.parametrize("epoch", [0, 1, 2])  # while the backbone is held, as it is let go, and after that
def test_a_resumed_run_equals_one_that_was_left_alone(
    alone: tuple[list[dict[str, Any]], list[torch.Tensor]], file: str, folder: Path, epoch: int
) -> None:
    state = resumed(student(file, **TUNED), Folder.at(folder / "alone") / f"epoch-{epoch:06d}")
    toy.same(state.history, alone[0])
    assert all(torch.equal(pack(learner.student), alone[1][learner.network]) for learner in state.learners)


def test_checkpoints_of_runs_that_held_nothing_are_gone_on_from(file: str, tmp_path: Path) -> None:
    """As older versions wrote them: momenta of all weights, and no word of these settings."""
    usual: dict[str, Any] = {"backbone_learning_rate": 0.01}
    whole = finetune_toy.trained(file, str(tmp_path), **usual)
    state = resumed(student(file, **usual), Folder.at(tmp_path) / "epoch-000001")
    toy.same(state.history, whole[0])


def resumed(tuned: Any, saved: Folder) -> State:
    """The state at the end of a run that went on from a checkpoint."""
    data = problem()
    state, rows = toy.start(data, Mesh(), student=tuned, **SETTINGS)
    checkpoint.resume(state, saved, Mesh())
    list(fit(state, rows, data.scored, Mesh(), coreg))
    return state
