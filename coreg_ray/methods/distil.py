"""Distilling the annotator: a network learns its probabilities as they are. The floor of every table, and a control.

KD is one prompt's probabilities (`method.distil.prompt` names it), KD* the mean of all prompts'. Where an annotator
gave none, soft labels are the label model's posterior (`candidates.mode label_model`), else shares of the votes. With
`method.labels single` it is cross-entropy on the likeliest class.

| `method.distil.loss` | what it minimises |
|---|---|
| cross_entropy | -sum_k m_k log p_k |
| candidates | -log sum_k m_k p_k + sum_k p_k log p_k: soft labels in the place of sets, as the authors of Co-Reg did |

What differs from what was published, and why:

1. Which of the two losses made the rows KD and KD* of Co-Reg's table is not known, so both are here.
2. Inside the logarithm nothing is added: with soft labels of which every class has a share its argument is no zero.
3. The view is the run's weak one, at temperature 1, every epoch alike; there is no warm-up.
4. `method.distil.confidence` is weak-to-strong's (Burns et al. 2023) for many classes: c of the target goes to the
   class that the student itself finds likeliest, once its shares of classes are aligned to the labels'; c ramps up over
   the first tenth of the steps. Theirs has two classes.
5. No weight decay may be better with soft labels (MEAL V2): set `method.weight_decay 0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import losses, purify
from coreg_ray.training.memory import kept
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn, Turns
from coreg_ray.training.networks import Student
from coreg_ray.training.plan import whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch, update, weak

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

TERMS: tuple[str, ...] = ("label", "entropy")
LISTENS = False
DEPLOYED: tuple[str, ...] = NETWORKS
RAMP = 0.1  # of all steps, until the student decides as much as it may


@dataclass
class Memory:
    """What is remembered: mean (K,), the share of each class in the team's labels."""

    mean: Tensor = kept("team")


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Memory:
    """The mean of all labels."""
    if rows.soft is not None:
        total = rows.soft.total(rows.num_classes)
    else:
        total = torch.zeros(rows.num_classes, dtype=torch.float64)
        total.index_add_(0, rows.indices.long(), rows.shares.double())
    total = mesh.team_sum(total.to(mesh.device))
    return Memory((total / total.sum().clamp(min=1e-12)).float())


def turns(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
    """Every row once, from the first epoch on."""
    batch_size = state.method.batch_size
    plans = {
        learner.network: whole_plan(rows, state.seed, learner.network, epoch, batch_size, mesh, "distil")
        for learner in state.learners
    }
    return Turns("distil", {network: Turn(plan, step) for network, plan in plans.items()})


def step(state: State, learner: Learner, batch: Batch, mesh: Mesh) -> Tensor:
    """One weak view against the labels; returns the terms, detached."""
    terms, index, team = torch.zeros(len(TERMS), device=mesh.device), batch.labelled, batch.team_unlabelled
    targets = labels_of(batch, mesh)
    logits = targets
    if len(index):
        with state.autocast():
            logits, _ = learner.student(
                weak(state, learner, batch, index, "weak 1", batch.rows.take(index, mesh.device))
            )
    targets = with_confidence(state, learner, batch, logits.detach(), targets, mesh)
    if len(index) and state.method.distil.loss == "cross_entropy":
        terms[0] = losses.soft_cross_entropy(logits, targets, denominator=team)
    elif len(index):
        terms[0] = losses.shared_mass(logits, targets, denominator=team)
        terms[1] = losses.negative_entropy(logits, denominator=team)
    return update(learner, terms, mesh)


def labels_of(batch: Batch, mesh: Mesh) -> Tensor:
    """The labels (b, K) of a batch's rows: soft ones where there are some, else even over the sets, or as weighted."""
    rows, index = batch.rows, batch.labelled
    if rows.soft is not None:
        return rows.soft.dense(index, rows.num_classes, mesh.device)
    candidates = rows.candidates(index, mesh.device)
    return purify.restrict(candidates.float(), candidates, weights=rows.weights_of(index, mesh.device))


@torch.no_grad()
def with_confidence(
    state: State, learner: Learner, batch: Batch, logits: Tensor, targets: Tensor, mesh: Mesh
) -> Tensor:
    """Targets (b, K) of which the student's own aligned choice has its share; those of trusted rows stay."""
    share = state.method.distil.confidence
    if not share:
        return targets
    probs = logits.softmax(dim=1)
    mean = mesh.team_sum(probs.sum(0)) / max(batch.team_unlabelled, 1)
    chosen = purify.align(probs, mean, learner.memory.mean).argmax(dim=1)
    ramp = min(batch.position / (RAMP * state.method.epochs), 1.0)
    free = ~batch.rows.trusted[batch.labelled].to(mesh.device)[:, None]
    mixed = (1 - share * ramp) * targets + share * ramp * F.one_hot(chosen, targets.shape[1])
    return torch.where(free, mixed, targets)


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Both networks are alone."""
