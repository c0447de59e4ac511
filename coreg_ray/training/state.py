"""All that a run remembers from one epoch to the next, and how it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coreg_ray.metrics import NETWORKS
from coreg_ray.pure.rng import stream
from coreg_ray.pure.views.augment import Policy
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import Student, build_student, compiled, frozen_copy
from coreg_ray.training.optimizer import SGD
from coreg_ray.training.rows import Rows, feature_statistics, feature_sums, pixel_statistics, pixel_sums

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig, StudentConfig

Remember = Callable[["MethodConfig", Student, Rows, Mesh], Any]  # what a method remembers of a network before training


@dataclass
class Learner:
    """One of the two networks, with all that is its own.

    Attributes:
        network: 0 (a) or 1 (b).
        student: the network in training.
        peer: the other network as of the last exchange; takes no gradient.
        memory: the method's own, a dataclass of `training.memory.kept` fields; never shared between networks.
    """

    network: int
    student: Student
    peer: Student
    optimizer: SGD
    memory: Any

    @property
    def name(self) -> str:
        return NETWORKS[self.network]


@dataclass
class State:
    """What a process holds of the method's state.

    Attributes:
        learners: both networks in a world of one, else this process's one.
        prior: (K,) class prior of distribution alignment.
        class_names: K. numbers: (N,) int64, the row numbers that the per-row state belongs to. sizes: (N,) int64, how
            many candidates each row has.
        neighbours: (N, k) int32, which rows of the team are nearest to each (`training.neighbours`); None where they
            have no say.
        epoch: the next epoch to train.
        history: one dictionary of metrics per finished epoch.
    """

    method: MethodConfig
    student: StudentConfig
    seed: int
    class_names: list[str]
    learners: list[Learner]
    prior: Tensor
    numbers: Tensor
    sizes: Tensor
    neighbours: Tensor | None = None
    epoch: int = 0
    history: list[dict] = field(default_factory=list)

    @property
    def precision(self) -> torch.dtype:
        """What networks compute in."""
        return working_precision(self.student, self.prior.device)

    def autocast(self) -> torch.autocast:
        """The precision that every pass through a network runs in.

        Its cache of converted weights is common to all threads and emptied by whichever is done first, and no pass uses
        a weight twice, so it stays off.
        """
        enabled = self.precision == torch.bfloat16
        return torch.autocast(self.prior.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    @property
    def flip(self) -> bool:
        return self.student.flip is not False

    @property
    def policy(self) -> Policy:
        return "randaugment" if self.student.views == "auto" else self.student.views


def working_precision(student: StudentConfig, device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, unless the configuration decides."""
    precision = student.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" or _cpu_multiplies_bf16() else "float32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


@cache
def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for it; elsewhere bf16 is emulated and slower than float32."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def build_state(
    method: MethodConfig,
    student: StudentConfig,
    seed: int,
    class_names: list[str],
    rows: Rows,
    mesh: Mesh,
    remember: Remember,
    prior: Tensor | None = None,
    neighbours: Tensor | None = None,
) -> State:
    """The state before the first epoch: two networks that differ by their random initialisation only.

    Args:
        class_names: K. rows: this replica's rows. remember: the method's. prior: (K,), None for uniform.
        neighbours: as `State` has them.

    Statistics of pixels or features are those of the whole team's images.
    """
    num_classes = len(class_names)
    if rows.features is None:
        inputs, statistics = None, pixel_statistics(mesh.team_sum(pixel_sums(rows.pixels)))
    else:
        inputs = rows.features.shape[2]
        statistics = feature_statistics(mesh.team_sum(feature_sums(rows.features[:, 0])))
    networks = []
    for network in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(seed, "initialise", network))
            fresh = build_student(student, num_classes, inputs)
        fresh.normalise_by(*statistics)
        fresh = fresh.to(mesh.device)
        networks.append(compiled(fresh) if student.compile else fresh)
    if prior is None:
        prior = torch.full((num_classes,), 1 / num_classes)
    return State(
        method=method,
        student=student,
        seed=seed,
        class_names=class_names,
        learners=[_learner(m, networks, method, student, rows, mesh, remember) for m in mesh.networks],
        prior=(prior / prior.sum()).float().to(mesh.device),
        numbers=rows.numbers,
        sizes=rows.sizes,
        neighbours=neighbours,
    )


def optimizer_of(network: Student, method: MethodConfig, student: StudentConfig) -> SGD:
    """The optimiser of a network; its backbone may have a learning rate of its own."""
    rate = method.learning_rate
    ratio = (student.backbone_learning_rate or rate) / rate
    encoder = list(network.encoder.parameters()) if ratio != 1 else []
    return SGD(network.parameters(), rate, method.momentum, method.weight_decay, encoder, ratio)


def _learner(
    network: int,
    networks: list[Student],
    method: MethodConfig,
    student: StudentConfig,
    rows: Rows,
    mesh: Mesh,
    remember: Remember,
) -> Learner:
    own = networks[network]
    return Learner(
        network=network,
        student=own,
        peer=frozen_copy(networks[1 - network]),
        optimizer=optimizer_of(own, method, student),
        memory=remember(method, own, rows, mesh),
    )
