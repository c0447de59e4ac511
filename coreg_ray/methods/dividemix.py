"""DivideMix: two networks that split labels into sound and unsound ones for each other (Li et al., ICLR 2020).

Co-Reg grew out of it: without alignment, prototypes, contrast and strong views Co-Reg's step is this one, but for the
penalty. docs/methods.md has the equations and constants.

What differs from the paper or its authors' published settings, and why:

1. It takes candidate sets as well as single labels (`method.labels single` is the paper's case): with one candidate a
   row the largest-candidate loss is cross-entropy and the restricted prediction is the label itself.
2. Rows are judged by one weak view, not by the image as it is; the loss is the mean of the last `method.loss_history`
   assessments (the authors: of one, at 90 % noise of five).
3. Both networks train at once, each against a copy of the other that is renewed `method.exchanges` times an epoch; the
   authors' second network listens to a first one that has been updated already.
4. Warm-up trains on strong views, as that of every kind here does.
5. `method.lambda_u` multiplies a mean over rows and classes, as the authors' does; theirs was chosen by noise rate from
   0, 25, 50 and 150 on a validation set of true labels, which nobody has here: the preset's 25 is their middle one.
6. The penalty draws the mean prediction to `method.prior`, not always to equal shares, and the mean is the whole
   team's.
7. A side without rows is an epoch with what there is; pseudo-labels are made in evaluation mode; the mixture is seeded.
8. The learning rate follows the cosine of every kind, not a step in the middle.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreg_ray.methods.coreg import by_the_other, pseudo_labels
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import losses
from coreg_ray.training.assess import Assessed, Opinion, assess, unassessed
from coreg_ray.training.confident import unasked
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turns, warm_up
from coreg_ray.training.networks import Student
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import WARMUP_TERMS, Batch, mixed_terms, update, weak

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

TERMS: tuple[str, ...] = (*WARMUP_TERMS, "label", "consistency", "penalty")
LISTENS = True
DEPLOYED: tuple[str, ...] = NETWORKS


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Assessed:
    """Nothing but assessments."""
    return Assessed(*unassessed(method.loss_history, rows), sound=unasked(method, rows))


def turns(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
    """Warm up, then learn by the other network's opinion of every label."""
    if epoch < state.method.warmup_epochs:
        return warm_up(state, rows, mesh, epoch, TERMS)
    return by_the_other(state, rows, mesh, epoch, "dividemix", TERMS, partial(assess, aligned=False), step)


def step(state: State, learner: Learner, batch: Batch, mesh: Mesh, opinion: Opinion) -> Tensor:
    """Mixed weak views, the same ones that the targets were made from; returns the weighted terms, detached."""
    terms = torch.zeros(len(TERMS), device=mesh.device)
    index = torch.cat([batch.labelled, batch.unlabelled])
    images = batch.rows.take(index, mesh.device)
    targets, _ = pseudo_labels(state, learner, batch, opinion, images)
    logits = targets
    if len(index):
        views = weak_pair(state, learner, batch, index, images)
        mixed, logits = mixed_terms(state, learner, batch, views, targets, mesh)
        terms[2:4] = mixed[:2]
    probs = logits.softmax(dim=1)
    rows = 2 * (batch.team_labelled + batch.team_unlabelled)
    mean = mesh.team_sum(probs.detach().sum(0)) / max(rows, 1)
    terms[4] = state.method.dividemix.penalty * losses.kl_to_prior(probs, state.prior, mean, denominator=rows)
    return update(learner, terms, mesh)


def weak_pair(state: State, learner: Learner, batch: Batch, index: Tensor, images: Tensor) -> Tensor:
    """Two weak views of rows `index` (B,), one after the other: (2 B, ...)."""
    return torch.cat([weak(state, learner, batch, index, f"weak {number}", images) for number in (1, 2)])


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Nothing is common to both networks."""
