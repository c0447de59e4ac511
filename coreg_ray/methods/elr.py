"""ELR: what a network learnt early it may not unlearn (Liu et al., NeurIPS 2020).

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
7. The two networks are two seeds that know nothing of one another; `method.warmup_epochs` is not read.
"""

from __future__ import annotations

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
from coreg_ray.training.networks import Student
from coreg_ray.training.plan import whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch, predict, update, weak

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

TERMS: tuple[str, ...] = ("classification", "early")
LISTENS = False
DEPLOYED: tuple[str, ...] = NETWORKS
ROOM = 8  # classes that a row's target keeps


@dataclass(kw_only=True)
class Memory:
    """What is remembered of one network: classes and values (r, N), slots of every row's moving target."""

    classes: Tensor = kept("rows", unknown=-1)
    values: Tensor = kept("rows")


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Memory:
    """No row has a target yet."""
    classes, values = slots.empty(ROOM, len(rows), rows.num_classes, method.elr.momentum)
    return Memory(classes=classes, values=values)


def turns(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
    """Every row once."""
    planned = {}
    for learner in state.learners:
        plan = whole_plan(rows, state.seed, learner.network, epoch, state.method.batch_size, mesh, "elr")
        planned[learner.network] = Turn(plan, step)
    figures = {learner.network: {metrics.CLEAN: clean_share(learner, rows, mesh)} for learner in state.learners}
    return Turns("elr", planned, figures_of(figures, mesh) if epoch else {})


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
        terms[0] = losses.partial_cross_entropy(logits, candidates, denominator=batch.team_labelled)
        early = losses.early_learning(logits, targets, denominator=batch.team_unlabelled)
        terms[1] = state.method.elr.weight * early
    return update(learner, terms, mesh)


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
    """Nothing is common to both networks."""
