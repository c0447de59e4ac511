"""ILL: labels are what a class is taken for, by a matrix that is learnt (Chen et al., ICML 2024).

docs/methods.md has the equations and constants. It is written from the first author's later code base, since the
paper's own repository could not be had.

What differs from the paper or its authors' published settings, and why:

1. How sure the matrix can get grows with the number of classes (`pure.transition.scale_for`). The authors' fixed scale
   of 2 cannot put more than 0.07 on the diagonal at 100 classes, so every label counts as wrong.
2. A set of all classes, or of none, says nothing, rather than whatever the product over it comes to.
3. Manual labels are certain: their target is one-hot, and the matrix does not learn from them.
4. Predictions behind targets come from a pass of their own, in evaluation mode.
5. The balancing term draws the mean prediction of the whole team to `method.prior`, not always to equal shares.
6. Unlabelled rows, and the moving average of weights that the authors evaluate, have no counterpart here.
7. The two networks are two seeds with a matrix each; `method.warmup_epochs` is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreg_ray.errors import UserError
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import losses, transition
from coreg_ray.training.memory import kept
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn, Turns, figures_of
from coreg_ray.training.networks import Student
from coreg_ray.training.plan import whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch, predict, strong, update, weak

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

TERMS: tuple[str, ...] = ("transfer", "classification", "balance")
LISTENS = False
DEPLOYED: tuple[str, ...] = NETWORKS
MOST_CLASSES = 2000  # a matrix of 16 MB


@dataclass(kw_only=True)
class Memory:
    """What is remembered of one network: weights (K, K), classes by labels, which are learnt beside it."""

    weights: Tensor = kept("team")


def refuse_classes(num_classes: int) -> None:
    """Raises UserError: there are too many classes."""
    if num_classes > MOST_CLASSES:
        raise UserError(
            f"method.kind=ill learns a matrix of classes by classes: {num_classes} classes exceed its limit of "
            f"{MOST_CLASSES}; choose another method.kind, for example pico, or fewer classes"
        )


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Memory:
    """Every label is taken for what it says.

    Raises:
        UserError: too many classes.
    """
    refuse_classes(rows.num_classes)
    return Memory(weights=torch.eye(rows.num_classes, device=mesh.device))


def turns(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
    """Every row once."""
    planned, figures = {}, {}
    for learner in state.learners:
        learner.memory.weights.requires_grad_()  # which no checkpoint says
        plan = whole_plan(rows, state.seed, learner.network, epoch, state.method.batch_size, mesh, "ill")
        planned[learner.network] = Turn(plan, step)
        _, log_confusion = readings(state, learner)
        figures[learner.network] = {"diagonal": float(log_confusion.detach().exp().diagonal().mean())}
    return Turns("ill", planned, figures_of(figures, mesh))


def readings(state: State, learner: Learner) -> tuple[Tensor, Tensor]:
    """R and log C, (K, K) both, of `transition.matrices`."""
    weights = learner.memory.weights
    return transition.matrices(weights, state.method.ill.scale or transition.scale_for(len(weights)))


def step(state: State, learner: Learner, batch: Batch, mesh: Mesh) -> Tensor:
    """The network learns the posterior of its classes, the matrix which labels were not given; returns the terms."""
    terms = torch.zeros(len(TERMS), device=mesh.device)
    index, rows, weights = batch.labelled, batch.team_unlabelled, learner.memory.weights
    probs = torch.zeros(0, batch.rows.num_classes, device=mesh.device)
    if len(index):
        images = batch.rows.take(index, mesh.device)
        views = weak(state, learner, batch, index, "weak", images)
        forward, log_confusion = readings(state, learner)
        targets = targets_of(state, learner, batch, views, log_confusion.detach())
        with state.autocast():
            logits, _ = learner.student(
                torch.cat([views.float(), strong(state, learner, batch, index, "strong", images).float()])
            )
        weak_logits, strong_logits = logits.chunk(2)
        probs = weak_logits.softmax(dim=1)
        excluded = ~batch.rows.candidates(index, mesh.device) & ~batch.rows.trusted[index].to(mesh.device)[:, None]
        terms[0] = losses.transferred(probs, forward, excluded, denominator=rows)
        terms[1] = losses.soft_cross_entropy(strong_logits, targets, denominator=rows)
    mean = mesh.team_sum(probs.detach().sum(0)) / max(rows, 1)
    terms[2] = state.method.ill.balance * losses.kl_to_prior(probs, state.prior, mean, denominator=rows)
    terms = update(learner, terms, mesh, weights)
    descend(weights, learner.optimizer.learning_rate)
    return terms


@torch.no_grad()
def targets_of(state: State, learner: Learner, batch: Batch, views: Tensor, log_confusion: Tensor) -> Tensor:
    """Posteriors (B, K) of the batch's rows; one-hot those of manual labels."""
    probs, _ = predict(state, learner.student, views)
    candidates = batch.rows.candidates(batch.labelled, views.device)
    trusted = batch.rows.trusted[batch.labelled].to(views.device)
    return torch.where(trusted[:, None], candidates.float(), transition.posterior(probs, candidates, log_confusion))


@torch.no_grad()
def descend(weights: Tensor, learning_rate: float) -> None:
    """A plain step down the gradient of `weights`, in place, where there is one."""
    if weights.grad is not None:
        weights.sub_(learning_rate * weights.grad)
        weights.grad = None


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Nothing is common to both networks."""
