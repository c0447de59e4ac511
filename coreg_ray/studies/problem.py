"""What is timed: synthetic rows, the method's state over them, and one step of it with the contrastive branch on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from coreg_ray.methods import coreg
from coreg_ray.pure.candidates import synthetic_candidates
from coreg_ray.pure.rng import generator
from coreg_ray.training.assess import Opinion
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import frozen_copy
from coreg_ray.training.plan import split_plan
from coreg_ray.training.rows import Rows, make_rows
from coreg_ray.training.state import Learner, State, build_state
from coreg_ray.training.steps import Batch

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig, StudentConfig

CLASSES = 10
PARTIAL_RATE, NOISE_RATE = 0.043, 0.048  # 1.39 candidates and 4.8 % without the truth: CLIP on CIFAR-10
CLEAN_SHARE = 0.9  # of the rows of a made-up opinion
EPOCH = 1  # the contrastive branch is on: there is no warm-up and no delay

# The configuration's own classes need pydantic, which a machine with torch alone lacks. Tests compare the two.
METHOD: dict[str, Any] = {
    "epochs": 100, "warmup_epochs": 0, "contrast_delay": 0, "batch_size": 256, "warmup_batch_size": 512,
    "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "clean_threshold": 0.5, "temperature": 0.5,
    "weak_views": 1, "lambda_u": 1.0, "ramp_epochs": 16, "mixup_alpha": 4.0, "loss_history": 5, "prototype_weight": 0.1,
    "prototype_momentum": 0.999, "prototype_temperature": 0.3, "contrast_weight": 0.1, "contrast_temperature": 0.07,
    "key_momentum": 0.999, "queue_size": 8192, "prior": "uniform", "order": "concurrent", "exchanges": 4,
    "trusted_share": 0.25, "clean": "mixture", "neighbours": 0,
}  # fmt: skip
STUDENT: dict[str, Any] = {
    "name": "preact_resnet18", "pretrained": None, "resolution": 32, "width": 64, "projection": 128, "views": "auto",
    "flip": None, "precision": "auto", "compile": False, "frozen": False, "frozen_views": 8, "dropout": 0.2,
    "backbone_learning_rate": None, "batch_norm": "trained", "warm_start": 0,
}  # fmt: skip


def method_settings(**changes: Any) -> MethodConfig:
    """The method's defaults, without a warm-up unless `changes` says otherwise."""
    return cast("MethodConfig", SimpleNamespace(**{**METHOD, **changes}))


def student_settings(**changes: Any) -> StudentConfig:
    """The student's defaults."""
    return cast("StudentConfig", SimpleNamespace(**{**STUDENT, **changes}, on_features=False))


def synthetic_rows(count: int, side: int = 32, seed: int = 0) -> Rows:
    """`count` images in CLASSES classes, each a coarse pattern of its class under noise, with noisy candidate sets."""
    random = generator(seed)
    labels = torch.randint(CLASSES, (count,), generator=random)
    patterns = torch.randint(0, 160, (CLASSES, 4, 4, 3), generator=random, dtype=torch.uint8)
    repeats = math.ceil(side / 4)
    patterns = patterns.repeat_interleave(repeats, 1).repeat_interleave(repeats, 2)[:, :side, :side]
    pixels = torch.empty(count, side, side, 3, dtype=torch.uint8)
    noise = torch.randint(0, 96, (4096, side, side, 3), generator=random, dtype=torch.uint8)
    for first in range(0, count, len(noise)):
        block = patterns[labels[first : first + len(noise)]]
        pixels[first : first + len(noise)] = block + noise[: len(block)]
    candidates = synthetic_candidates(labels, CLASSES, PARTIAL_RATE, NOISE_RATE, random)
    return make_rows(torch.arange(count) * (2**62 // count) + 1, pixels, candidates)


@dataclass
class Problem:
    """Everything that one training step needs, and the step."""

    state: State
    rows: Rows
    mesh: Mesh
    opinion: Opinion
    batches: list[Batch]
    taken: int = 0

    @property
    def learner(self) -> Learner:
        return self.state.learners[0]

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    def batch(self) -> Batch:
        """Another full batch each time."""
        self.taken += 1
        return self.batches[self.taken % len(self.batches)]

    def step(self) -> Tensor:
        """One training step of network a."""
        return coreg.coreg_step(self.state, self.learner, self.batch(), self.mesh, self.opinion)


def build_problem(
    rows: Rows,
    batch_size: int,
    width: int,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    most_batches: int = 64,
    **method: Any,
) -> Problem:
    """A state in the middle of training, its queue full; equal arguments give equal states."""
    mesh = Mesh(device)
    settings = method_settings(batch_size=batch_size, **method)
    student = student_settings(width=width, resolution=rows.pixels.shape[1], precision=precision)
    state = build_state(
        settings, student, 0, [f"class {k}" for k in range(rows.num_classes)], rows, mesh, coreg.remember
    )
    if device != "cpu":
        rows.pixels = rows.pixels.to(mesh.device)
    opinion = made_up_opinion(rows)
    plan = split_plan(
        rows, opinion.clean, settings.clean_threshold, settings.trusted_share, 0, 0, EPOCH, batch_size, mesh
    )
    full = [step for step in range(plan.steps) if len(plan.labelled[step]) == batch_size]
    if not full:
        raise ValueError(f"{len(rows)} rows make no full batch of {batch_size}; use more rows or a smaller batch")
    learner = state.learners[0]
    learner.memory.keys = frozen_copy(learner.student)
    fill(learner, rows.num_classes)
    return Problem(state, rows, mesh, opinion, [Batch(rows, plan, step, EPOCH) for step in full[:most_batches]])


def made_up_opinion(rows: Rows, seed: int = 1) -> Opinion:
    """The other network's view of the rows: CLEAN_SHARE of them clean, its mass spread evenly over each set."""
    random = generator(seed)
    sure = torch.rand(len(rows), generator=random) < CLEAN_SHARE
    clean = torch.rand(len(rows), generator=random) * 0.4 + torch.where(sure, 0.55, 0.05)
    counts = rows.sizes
    labels = torch.repeat_interleave(1 / counts.clamp(min=1), counts).to(torch.float16)
    return Opinion(clean, labels)


def fill(learner: Learner, classes: int, seed: int = 2) -> None:
    """Fill the queue with made-up keys, so that the contrastive loss costs what it costs later on."""
    size, random = len(learner.memory.queue), generator(seed)
    keys = torch.nn.functional.normalize(torch.randn(*learner.memory.queue.keys.shape, generator=random), dim=1)
    learner.memory.queue.push(
        keys.to(learner.memory.queue.keys.device),
        torch.randint(classes, (size,), generator=random).to(learner.memory.queue.keys.device),
        (torch.rand(size, generator=random) < CLEAN_SHARE).to(learner.memory.queue.keys.device),
    )
