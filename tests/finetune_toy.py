"""The toy problem as a timm model with weights of its own learns it whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import toy
from safetensors.torch import save_file
from torch import Tensor

from coreg_ray.config import StudentConfig
from coreg_ray.methods import coreg
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.evaluate import Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import Student, pack

SETTINGS: dict[str, Any] = {"epochs": 4, "warmup_epochs": 1, "queue_size": 50, "learning_rate": 0.05}
TUNED: dict[str, Any] = {"batch_norm": "frozen", "warm_start": 2, "backbone_learning_rate": 0.01}


def weights(folder: Path, side: int = toy.SIDE) -> str:
    """A file of weights whose batch-norm statistics are not those of a fresh network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = timm.create_model("test_efficientnet", num_classes=0)
        for _ in range(20):
            network(torch.randn(16, 3, side, side) + 0.5)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def student(file: str | None, **settings: Any) -> StudentConfig:
    """A tiny network, trained whole."""
    usual = {"name": "test_efficientnet", "pretrained": file, "projection": 8, "precision": "float32"}
    return StudentConfig.model_validate({**usual, "resolution": toy.SIDE, **settings})


def statistics(network: Student) -> dict[str, Tensor]:
    """Batch-norm statistics of the backbone, by name."""
    return {name: tensor.clone() for name, tensor in network.encoder.state_dict().items() if "running" in name}


def problem() -> toy.Toy:
    """Few rows, and nothing scored but test images."""
    small = toy.toy(count=50)
    return replace(small, scored=Scored(test=small.scored.test))


def trained(file: str, folder: str | None = None, **settings: Any) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """A whole training run: its metrics and this process's networks; checkpoints go into `folder`."""
    mesh, data = Mesh(), problem()
    state, rows = toy.start(data, mesh, student=student(file, **(settings or TUNED)), **SETTINGS)
    taken = []
    for epoch in fit(state, rows, data.scored, mesh, coreg):
        if folder is not None:
            checkpoint.save(state, Folder.at(folder), "toy", mesh)
        taken.append(epoch.metrics)
    return taken, [pack(learner.student) for learner in state.learners]
