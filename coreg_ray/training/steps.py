"""One training step of one network: the warm-up's and Co-Reg's (METHOD: sections 2 and 3, steps 3 to 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coreg_ray.pure import losses, purify
from coreg_ray.pure.rng import generator, stream
from coreg_ray.pure.views.augment import mixup
from coreg_ray.training.assess import Opinion
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import follow, frozen_copy, update_prototypes
from coreg_ray.training.plan import Plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.views import strong_view, weak_view

TERMS: tuple[str, ...] = ("partial", "entropy", "label", "consistency", "prototype", "contrast")


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


def warmup_step(state: State, learner: Learner, batch: Batch, mesh: Mesh) -> Tensor:
    """Partial cross-entropy and negative entropy on one strong view; returns the (6,) terms, detached."""
    index = batch.labelled
    terms = torch.zeros(len(TERMS), device=mesh.device)
    if len(index):
        views = _strong(state, learner, batch, index, "warm-up", batch.rows.take(index, mesh.device))
        with state.autocast():
            logits, _ = learner.student(views)
        candidates = batch.rows.candidates(index, mesh.device)
        weights = batch.rows.weights_of(index, mesh.device)
        terms[0] = losses.partial_cross_entropy(logits, candidates, weights=weights, denominator=batch.team_labelled)
        terms[1] = losses.negative_entropy(logits, denominator=batch.team_unlabelled)
    return _update(learner, terms, mesh)


def coreg_step(
    state: State, learner: Learner, batch: Batch, mesh: Mesh, opinion: Opinion, evaluation_mode: bool = True
) -> Tensor:
    """Co-pseudo-labels, prototypes, mixup and all losses of one step; returns the (6,) weighted terms, detached.

    In every tensor the labelled rows come first (b of them, with targets by the other network's `opinion`), then the
    unlabelled rows (u of them, with targets by both networks).

    Args:
        evaluation_mode: whether pseudo-labels are made in it; False as the authors' code does, for studies.
    """
    method = state.method
    contrast_on = batch.epoch > method.warmup_epochs + method.contrast_delay
    if contrast_on and learner.keys is None:
        learner.keys = frozen_copy(learner.student)
    terms = torch.zeros(len(TERMS), device=mesh.device)
    index = torch.cat([batch.labelled, batch.unlabelled])
    images = batch.rows.take(index, mesh.device)
    targets, features = pseudo_labels(state, learner, batch, opinion, images, evaluation_mode)
    classes = targets.argmax(dim=1)
    remember_prototypes(state, learner, batch, features, classes[: len(features)], mesh)
    if len(index):
        first = _strong(state, learner, batch, index, "strong 1", images)
        second = _strong(state, learner, batch, index, "strong 2", images)
        terms[2:5] = mixed_terms(state, learner, batch, torch.cat([first, second]), targets, contrast_on, mesh)
        if contrast_on:
            terms[5], keys, confident = contrast_term(state, learner, batch, first, second, classes)
    terms = _update(learner, terms, mesh)
    if contrast_on and len(index):  # after the backward pass, which still needs the queue as it was
        learner.queue.push(keys, classes, confident)
    if learner.keys is not None:
        follow(learner.keys, learner.student, method.key_momentum)
    return terms


@torch.no_grad()
def pseudo_labels(
    state: State, learner: Learner, batch: Batch, opinion: Opinion, images: Tensor, evaluation_mode: bool = True
) -> tuple[Tensor, Tensor]:
    """Targets (b + u, K) of a step, and the features (b, D) of the labelled rows' first weak views (section 3, step 3).

    One pass through each network: the own one sees a weak view of all rows, the peer another of the
    unlabelled rows. With the paper's two weak views a network (`method.weak_views 2`) each sees both.
    """
    b, device = len(batch.labelled), images.device
    if not len(images):
        return torch.zeros(0, batch.rows.num_classes, device=device), learner.prototypes[:0]
    index = torch.cat([batch.labelled, batch.unlabelled])
    one = state.method.weak_views == 1
    first = _weak(state, learner, batch, index, "weak 1", images)
    second = _weak(state, learner, batch, index[b:] if one else index, "weak 2", images[b:] if one else images)
    own_views = first if one else torch.cat([first, second])
    peer_views = second if one else torch.cat([first[b:], second[b:]])
    learner.student.train(not evaluation_mode)
    with state.autocast():
        logits, features = learner.student(own_views)
        peer_logits = learner.peer.classify(peer_views) if b < len(images) else logits[:0]
    learner.student.train()
    own = logits.softmax(1).split(len(images))
    peer = peer_logits.softmax(1).split(max(len(images) - b, 1))
    soft_labels = batch.rows.scatter(batch.labelled, opinion.soft_labels, device).float()
    clean = opinion.clean[batch.labelled].to(device, non_blocking=True)
    refined = purify.refine(soft_labels, purify.guess(*(view[:b] for view in own)), clean)
    guessed = purify.guess(*(view[b:] for view in own), *peer)
    return purify.sharpen(torch.cat([refined, guessed]), state.method.temperature), features[:b]


@torch.no_grad()
def remember_prototypes(
    state: State, learner: Learner, batch: Batch, features: Tensor, classes: Tensor, mesh: Mesh
) -> None:
    """Move the prototypes by the whole team's labelled rows, in replica order (section 3, step 5)."""
    if mesh.replicas > 1:
        # One message shape for all, whatever a replica holds.
        message = torch.full((batch.plan.room, features.shape[1] + 1), -1.0, device=features.device)
        message[: len(features), :-1] = features
        message[: len(features), -1] = classes
        gathered = mesh.team_stack(message).flatten(0, 1)
        features, classes = gathered[:, :-1], gathered[:, -1].long()
    learner.prototypes = update_prototypes(learner.prototypes, features, classes, state.method.prototype_momentum)


def mixed_terms(
    state: State, learner: Learner, batch: Batch, views: Tensor, targets: Tensor, prototypes_on: bool, mesh: Mesh
) -> Tensor:
    """The three terms on mixed views, weighted: label, consistency, prototype -> (3,) (section 3, step 4).

    Args:
        views: (2 (b + u), ...) what networks take, first strong views and then second ones. targets: (b + u, K).
    """
    method, b, u = state.method, len(batch.labelled), len(batch.unlabelled)
    x1, u1, x2, u2 = views.float().split([b, u, b, u])
    purpose = (state.seed, "mixup", learner.network, batch.epoch, batch.step)
    share = np.random.default_rng(stream(*purpose)).beta(method.mixup_alpha, method.mixup_alpha)
    permutation = torch.randperm(len(views), generator=generator(stream(*purpose, mesh.replica)))
    target_x, target_u = targets.split([b, u])
    mixed, mixed_targets = mixup(
        torch.cat([x1, x2, u1, u2]),
        torch.cat([target_x, target_x, target_u, target_u]),
        max(share, 1 - share),
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
    if prototypes_on:
        near, near_spread = two_terms(features @ learner.prototypes.T / method.prototype_temperature)
        terms[2] = method.prototype_weight * (near + method.lambda_u * near_spread)
    return torch.stack(terms)


def contrast_term(
    state: State, learner: Learner, batch: Batch, first: Tensor, second: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise-tolerant supervised contrast of unmixed strong views, weighted (section 4).

    Returns the loss, and what the queue takes in: keys (b + u, D) and whether each is confident (b + u,).

    Args:
        first, second: (b + u, ...) strong views, as networks take them. classes: (b + u,) pseudo-classes.
    """
    method, queue = state.method, learner.queue
    assert learner.keys is not None
    confident = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    confident[: len(batch.labelled)] = True
    with state.autocast():
        _, queries = learner.student(first)
        with torch.no_grad():
            _, keys = learner.keys(second)
    loss = losses.noise_tolerant_contrast(
        queries, keys, classes, confident, queue.keys, queue.classes, queue.confident, queue.valid,
        method.contrast_temperature, denominator=batch.team_labelled + batch.team_unlabelled,
    )  # fmt: skip
    return method.contrast_weight * loss, keys, confident


def _update(learner: Learner, terms: Tensor, mesh: Mesh) -> Tensor:
    """Back-propagate the sum of the (6,) terms, add up the team's gradients and take an optimiser step."""
    if terms.requires_grad:
        terms.sum().backward()
    mesh.reduce_gradients(learner.student.parameters())
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return terms.detach()


def _weak(state: State, learner: Learner, batch: Batch, index: Tensor, purpose: str, images: Tensor) -> Tensor:
    one = stream(state.seed, purpose, learner.network, batch.epoch, batch.step)
    return weak_view(state, images, one, batch.rows.numbers[index])


def _strong(state: State, learner: Learner, batch: Batch, index: Tensor, purpose: str, images: Tensor) -> Tensor:
    one = stream(state.seed, purpose, learner.network, batch.epoch, batch.step)
    return strong_view(state, images, one, batch.rows.numbers[index])
