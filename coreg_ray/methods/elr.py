"""ELR: what a network learnt early it may not unlearn (Liu et al., NeurIPS 2020); with `method.elr.plus` ELR+, where
either network's targets come from a moving average of the other's weights.

docs/methods.md has the equations and constants.

What differs from the paper or its authors' published settings, and why:

1. It takes candidate sets as well as single labels: partial cross-entropy stands where cross-entropy does, and with one
   candidate a row it is cross-entropy.
2. Of every row's moving target the eight largest classes are kept, not all K.
3. Targets come from a pass of their own, in evaluation mode, so that no row's target depends on its batch.
4. Manual labels have no target: they are learnt by cross-entropy alone, and nothing early holds against them.
5. The learning rate follows the cosine of every kind; the authors' restarts and steps are not there.
6. The momentum and weight are one pair of constants, the authors' for symmetric noise on CIFAR-10; theirs were chosen
   for each noise on labelled validation images.
7. Without `plus` the two networks are two seeds that know nothing of one another; `method.warmup_epochs` is not read.
8. ELR+: averages start as copies of the networks (the authors' as other random networks), judge in evaluation mode, and
   their batch-norm buffers follow; the other's is as of the last exchange (`method.exchanges`).
9. ELR+: ramps are shares of `method.epochs`, not 40,000 steps; labels are never multiplied by targets, as the authors'
   loss does where there are 100 classes. Of two mixed rows each one's set counts by its share in the mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import losses, slots
from coreg_ray.training.memory import kept
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn, Turns, figures_of
from coreg_ray.training.networks import Student, follow, frozen_copy, pack, unpack
from coreg_ray.training.plan import whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch, mixing_order, mixing_share, predict, update, weak

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

TERMS: tuple[str, ...] = ("classification", "early")
LISTENS = True
DEPLOYED: tuple[str, ...] = NETWORKS
ROOM = 8  # classes that a row's target keeps


@dataclass(kw_only=True)
class Memory:
    """What is remembered of one network.

    Attributes:
        classes, values: (r, N), slots of every row's moving target.
        average: moving average of the network's own weights. teacher: the other's, as of the last exchange. ELR+ only.
    """

    classes: Tensor = kept("rows", unknown=-1)
    values: Tensor = kept("rows")
    average: Student | None = kept("network", default=None)
    teacher: Student | None = kept("network", default=None)


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Memory:
    """No row has a target yet."""
    classes, values = slots.empty(ROOM, len(rows), rows.num_classes, method.elr.momentum)
    return Memory(classes=classes, values=values)


def turns(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
    """Every row once."""
    plus = state.method.elr.plus
    planned = {}
    for learner in state.learners:
        if plus and learner.memory.average is None:
            learner.memory.average, learner.memory.teacher = frozen_copy(learner.student), frozen_copy(learner.peer)
        plan = whole_plan(rows, state.seed, learner.network, epoch, state.method.batch_size, mesh, "elr")
        planned[learner.network] = Turn(plan, mixed_step if plus else step)
    figures = {learner.network: {metrics.CLEAN: clean_share(learner, rows, mesh)} for learner in state.learners}
    return Turns("elr", planned, figures_of(figures, mesh) if epoch else {}, alone=not plus)


def step(state: State, learner: Learner, batch: Batch, mesh: Mesh) -> Tensor:
    """Moves the rows' targets and learns labels and targets; returns the weighted terms, detached."""
    terms = torch.zeros(len(TERMS), device=mesh.device)
    index = batch.labelled
    if len(index):
        views = weak(state, learner, batch, index, "weak", batch.rows.take(index, mesh.device))
        probs, _ = predict(state, learner.student, views)
        targets = move_targets(state, learner, batch, probs)
        with state.autocast():
            logits, _ = learner.student(views)
        candidates = batch.rows.candidates(index, mesh.device)
        weights = batch.rows.weights_of(index, mesh.device)
        terms[0] = losses.partial_cross_entropy(logits, candidates, weights=weights, denominator=batch.team_labelled)
        early = losses.early_learning(logits, targets, denominator=batch.team_unlabelled)
        terms[1] = state.method.elr.weight * early
    return update(learner, terms, mesh)


def mixed_step(state: State, learner: Learner, batch: Batch, mesh: Mesh) -> Tensor:
    """As `step`, of ELR+: the other network's average moves the targets, and views, labels and targets are mixed."""
    settings, memory = state.method.elr, learner.memory
    terms = torch.zeros(len(TERMS), device=mesh.device)
    index = batch.labelled
    if len(index):
        views = weak(state, learner, batch, index, "weak", batch.rows.take(index, mesh.device)).float()
        probs, _ = predict(state, memory.teacher, views)
        targets = move_targets(state, learner, batch, probs)
        share = mixing_share(state, learner, batch)
        other = mixing_order(state, learner, batch, mesh, len(index)).to(mesh.device)
        with state.autocast():
            logits, _ = learner.student(share * views + (1 - share) * views[other])
        candidates = batch.rows.candidates(index, mesh.device)
        own, others = (
            losses.partial_cross_entropy(logits, sets, denominator=batch.team_labelled)
            for sets in (candidates, candidates[other])
        )
        terms[0] = share * own + (1 - share) * others
        mixed = share * targets + (1 - share) * targets[other]
        early = losses.early_learning(logits, mixed, denominator=batch.team_unlabelled)
        terms[1] = settings.weight * ramp(batch.position, settings.ramp * state.method.epochs) * early
    terms = update(learner, terms, mesh)
    momentum = settings.average * ramp(batch.position, settings.average_ramp * state.method.epochs)
    follow(memory.average, learner.student, momentum)
    return terms


def ramp(position: float, length: float) -> float:
    """exp(-5 (1 - t / r)^2) up to t = r, then 1."""
    return math.exp(-5 * (1 - min(position / length, 1.0)) ** 2) if length else 1.0


@torch.no_grad()
def move_targets(state: State, learner: Learner, batch: Batch, probs: Tensor) -> Tensor:
    """t <- beta t + (1 - beta) p of the batch's rows, p (B, K) held in and normalised; none for manual labels."""
    memory, index, beta = learner.memory, batch.labelled, state.method.elr.momentum
    clamped = probs.float().clamp(1e-4, 1 - 1e-4)
    added = (1 - beta) * clamped / clamped.sum(dim=1, keepdim=True)
    added[batch.rows.trusted[index].to(added.device)] = 0.0
    return slots.blend(memory.classes, memory.values, index, beta, added)


def clean_share(learner: Learner, rows: Rows, mesh: Mesh) -> float:
    """The share of the team's rows whose target's largest class is among their candidates, or that are trusted."""
    memory: Memory = learner.memory
    best = memory.classes.gather(0, memory.values.argmax(dim=0, keepdim=True))[0]  # (N,)
    owner = torch.repeat_interleave(torch.arange(len(rows)), rows.sizes)
    hits = torch.zeros(len(rows), dtype=torch.int64).index_add_(0, owner, (rows.indices == best[owner]).long())
    sound = rows.trusted | (hits > 0)
    clean, total = mesh.team_sum(torch.stack([sound.sum(), torch.tensor(len(rows))])).tolist()
    return clean / max(total, 1)


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Hand each network the other's average, where there is one."""
    if state.method.elr.plus:
        averages = mesh.swap({learner.network: pack(learner.memory.average) for learner in state.learners})
        for learner in state.learners:
            unpack(averages[learner.network], learner.memory.teacher)
