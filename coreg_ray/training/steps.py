"""What steps of all methods are made of: the batch, its views, mixed terms, the update; and the warm-up's step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coreg_ray.pure import losses
from coreg_ray.pure.prototypes import update_prototypes
from coreg_ray.pure.rng import generator, stream
from coreg_ray.pure.views.augment import mixup
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import Student
from coreg_ray.training.plan import Plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.views import strong_view, weak_view

WARMUP_TERMS: tuple[str, ...] = ("partial", "entropy")  # which the terms of methods with a warm-up begin with


@dataclass(frozen=True)
class Batch:
    """The rows of one step on this replica, and where in the schedule it stands."""

    rows: Rows
    plan: Plan
    step: int
    epoch: int

    @property
    def labelled(self) -> Tensor:
        return self.plan.labelled[self.step]

    @property
    def unlabelled(self) -> Tensor:
        return self.plan.unlabelled[self.step]

    @property
    def team_labelled(self) -> int:
        return self.plan.team_labelled[self.step]

    @property
    def team_unlabelled(self) -> int:
        return self.plan.team_unlabelled[self.step]

    @property
    def position(self) -> float:
        """Epochs since training began, fractional by step."""
        return self.epoch + self.step / self.plan.steps


def warmup_step(state: State, learner: Learner, batch: Batch, mesh: Mesh, *, terms: int) -> Tensor:
    """Partial cross-entropy and negative entropy on one strong view (METHOD: section 2).

    Args:
        terms: how many the method has, of which the warm-up's are the first two.

    Returns:
        All terms, detached.
    """
    index = batch.labelled
    taken = torch.zeros(terms, device=mesh.device)
    if len(index):
        views = strong(state, learner, batch, index, "warm-up", batch.rows.take(index, mesh.device))
        with state.autocast():
            logits, _ = learner.student(views)
        candidates = batch.rows.candidates(index, mesh.device)
        weights = batch.rows.weights_of(index, mesh.device)
        taken[0] = losses.partial_cross_entropy(logits, candidates, weights=weights, denominator=batch.team_labelled)
        taken[1] = losses.negative_entropy(logits, denominator=batch.team_unlabelled)
    return update(learner, taken, mesh)


@torch.no_grad()
def move_prototypes(
    prototypes: Tensor, features: Tensor, classes: Tensor, momentum: float, batch: Batch, mesh: Mesh
) -> Tensor:
    """Prototypes (K, D) moved by the whole team's labelled rows, in replica order (METHOD: section 3, step 5).

    Args:
        features, classes: (b, D) and (b,) of this replica's labelled rows.
    """
    if mesh.replicas > 1:
        # One message shape for all, whatever a replica holds.
        message = torch.full((batch.plan.room, features.shape[1] + 1), -1.0, device=features.device)
        message[: len(features), :-1] = features
        message[: len(features), -1] = classes
        gathered = mesh.team_stack(message).flatten(0, 1)
        features, classes = gathered[:, :-1], gathered[:, -1].long()
    return update_prototypes(prototypes, features, classes, momentum)


def mixed_terms(
    state: State,
    learner: Learner,
    batch: Batch,
    views: Tensor,
    targets: Tensor,
    mesh: Mesh,
    prototypes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The three terms on mixed views (METHOD: section 3, step 4).

    Args:
        views: (2 (b + u), ...) what networks take, first views and then second ones. targets: (b + u, K).
        prototypes: (K, D) where their term counts.

    Returns:
        Label, consistency, prototype: (3,), weighted; and the logits (2 (b + u), K) of the mixed views.
    """
    method, b, u = state.method, len(batch.labelled), len(batch.unlabelled)
    x1, u1, x2, u2 = views.float().split([b, u, b, u])
    permutation = mixing_order(state, learner, batch, mesh, len(views))
    target_x, target_u = targets.split([b, u])
    mixed, mixed_targets = mixup(
        torch.cat([x1, x2, u1, u2]),
        torch.cat([target_x, target_x, target_u, target_u]),
        mixing_share(state, learner, batch),
        permutation.to(views.device, non_blocking=True),
    )
    with state.autocast():
        logits, features = learner.student(mixed)
    labelled, unlabelled = 2 * batch.team_labelled, 2 * batch.team_unlabelled
    elapsed = batch.position - method.warmup_epochs
    ramp = min(elapsed / method.ramp_epochs, 1.0) if method.ramp_epochs else 1.0

    def two_terms(scores: Tensor) -> tuple[Tensor, Tensor]:
        cross_entropy = losses.soft_cross_entropy(scores[: 2 * b], mixed_targets[: 2 * b], denominator=labelled)
        return cross_entropy, losses.consistency(scores[2 * b :], mixed_targets[2 * b :], denominator=unlabelled)

    label, spread = two_terms(logits)
    terms = [label, ramp * method.lambda_u * spread, torch.zeros_like(label)]
    if prototypes is not None:
        near, near_spread = two_terms(features @ prototypes.T / method.prototype_temperature)
        terms[2] = method.prototype_weight * (near + method.lambda_u * near_spread)
    return torch.stack(terms), logits


def mixing_share(state: State, learner: Learner, batch: Batch) -> float:
    """How much of a step's mixed rows is the row's own, at least a half; the same in a whole team."""
    purpose = (state.seed, "mixup", learner.network, batch.epoch, batch.step)
    share = np.random.default_rng(stream(*purpose)).beta(state.method.mixup_alpha, state.method.mixup_alpha)
    return max(share, 1 - share)


def mixing_order(state: State, learner: Learner, batch: Batch, mesh: Mesh, count: int) -> Tensor:
    """Which row of this replica's `count` each of them is mixed with: (count,), on the host."""
    purpose = (state.seed, "mixup", learner.network, batch.epoch, batch.step)
    return torch.randperm(count, generator=generator(stream(*purpose, mesh.replica)))


def update(learner: Learner, terms: Tensor, mesh: Mesh, *others: Tensor) -> Tensor:
    """Back-propagate the sum of the terms (T,), add up the team's gradients and take an optimiser step.

    Args:
        others: leaves beside the network's parameters whose gradients are added up and left to the method.
    """
    if terms.requires_grad:
        terms.sum().backward()
    mesh.reduce_gradients([*learner.student.parameters(), *others])
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return terms.detach()


@torch.no_grad()
def predict(state: State, network: Student, views: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions (B, K) and features (B, D) of views, in evaluation mode; the mode is afterwards what it was."""
    if not len(views):
        nothing = torch.zeros(0, device=views.device)
        return nothing.view(0, network.classifier.out_features), nothing.view(0, network.projection)
    training = network.training
    network.eval()
    with state.autocast():
        logits, features = network(views)
    network.train(training)
    return logits.softmax(dim=1), features


def weak(state: State, learner: Learner, batch: Batch, index: Tensor, purpose: str, images: Tensor) -> Tensor:
    """A weak view of rows `index` (B,) whose `images` are given; the same for the same purpose in a step."""
    one = stream(state.seed, purpose, learner.network, batch.epoch, batch.step)
    return weak_view(state, images, one, batch.rows.numbers[index])


def strong(state: State, learner: Learner, batch: Batch, index: Tensor, purpose: str, images: Tensor) -> Tensor:
    """As `weak`, a strong view."""
    one = stream(state.seed, purpose, learner.network, batch.epoch, batch.step)
    return strong_view(state, images, one, batch.rows.numbers[index])
