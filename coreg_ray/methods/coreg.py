"""Co-Reg: two networks that judge candidate sets for one another (Wang et al., arXiv 2406.18550).

METHOD, here and in every other file, is docs/method.md.

What differs from the paper or its authors' published settings, and why:

1. No true label of a training image comes near this file; labels of test images only score.
2. Every schedule follows the configured number of epochs.
3. The networks train concurrently, each against a copy of the other that is renewed `method.exchanges` times an epoch,
   so that one worker or two give the same result; `method.order sequential` is the authors' order.
4. Per-row state is ragged or a few numbers a row; nothing has the size N x K.
5. The key encoder is a true moving average from the first contrast epoch on, batch-norm buffers included.
6. Empty queue slots are masked; nothing random stands in for keys.
7. Every pass without gradient runs in evaluation mode, so pseudo-labels do not move batch-norm statistics.
8. A side without rows (labelled or unlabelled) is an epoch with what there is, not a crash; no loss divides by zero.
9. The class prior of alignment is a setting. Manual labels may enter (METHOD: section 7).
10. Every random number is a function of seed, purpose, network, epoch, step and row number, never of placement.
11. For pseudo-labels each network looks at one weak view of a row, not two (`method.weak_views`): as accurate where it
    was measured, in 23 instead of 26 forward passes' time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import losses, purify
from coreg_ray.training.assess import Assessed, Opinion, assess, opinion_metrics, swap_opinions, unassessed
from coreg_ray.training.confident import by_confidence, unasked
from coreg_ray.training.memory import kept
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn, Turns, warm_up, warmup_turn
from coreg_ray.training.neighbours import voice
from coreg_ray.training.networks import Queue, Student, follow, frozen_copy
from coreg_ray.training.plan import split_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.side_by_side import side_by_side
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import (
    WARMUP_TERMS,
    Batch,
    mixed_terms,
    move_prototypes,
    strong,
    update,
    weak,
)

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

__all__ = ["DEPLOYED", "LISTENS", "TERMS", "Memory", "remember", "settle", "turns"]

log = logging.getLogger(__name__)

TERMS: tuple[str, ...] = (*WARMUP_TERMS, "label", "consistency", "prototype", "contrast")
LISTENS = True
DEPLOYED: tuple[str, ...] = NETWORKS


@dataclass(kw_only=True)
class Memory(Assessed):
    """What Co-Reg remembers of one network, beside its assessments.

    Attributes:
        prototypes: (K, D) unit or zero; common to both networks after every exchange.
        keys: momentum encoder, from the first epoch with contrast on.
        queue: this replica's part of the newest keys.
    """

    prototypes: Tensor = kept("team")
    keys: Student | None = kept("network", default=None)
    queue: Queue = kept("ring")


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Memory:
    """No prototype, no key and no assessment yet."""
    row_losses, choices = unassessed(method.loss_history, rows)
    return Memory(
        losses=row_losses,
        choices=choices,
        sound=unasked(method, rows),
        prototypes=torch.zeros(rows.num_classes, own.projection, device=mesh.device),
        queue=Queue(method.queue_size // mesh.replicas, own.projection, mesh.device),
    )


def turns(
    state: State,
    rows: Rows,
    mesh: Mesh,
    epoch: int,
    *,
    assess: Callable[..., Opinion] = assess,
    step: Callable[..., Tensor] | None = None,
) -> Turns:
    """What both networks do in an epoch: warm up (METHOD: section 2), then co-regularise (METHOD: section 3).

    Args:
        assess, step: as of `training.assess` and below; others for studies of what they gain.
    """
    if epoch < state.method.warmup_epochs:
        return warm_up(state, rows, mesh, epoch, TERMS)
    return by_the_other(state, rows, mesh, epoch, "coreg", TERMS, assess, step or coreg_step)


def by_the_other(
    state: State,
    rows: Rows,
    mesh: Mesh,
    epoch: int,
    kind: str,
    terms: tuple[str, ...],
    assess: Callable[..., Opinion],
    step: Callable[..., Tensor],
) -> Turns:
    """Each network judges all rows, and each learns by the other's opinion of them (METHOD: section 3, steps 1 to 3).

    Args:
        kind, terms: of the method. step: takes an `opinion` beside what every step takes.
    """
    start = time.perf_counter()
    own = side_by_side(state.learners, lambda learner: assess(state, learner, rows, mesh, epoch), mesh)
    if state.method.clean == "confident":
        own = by_confidence(state, own, rows, mesh, epoch)
    others = swap_opinions(own, mesh)
    figures = opinion_metrics(state, own, others, rows, mesh)
    figures[metrics.ASSESS_S] = time.perf_counter() - start
    planned = {}
    for learner in state.learners:
        opinion = others[learner.network]
        plan = split_plan(
            rows, opinion.clean, state.method.clean_threshold, state.method.trusted_share,
            state.seed, learner.network, epoch, state.method.batch_size, mesh,
        )  # fmt: skip
        planned[learner.network] = Turn(plan, partial(step, opinion=opinion))
        if not plan.steps:
            log.warning("epoch %d, network %s: no clean row; it warms up once more", epoch, learner.name)
            planned[learner.network] = warmup_turn(state, learner, rows, mesh, epoch, terms)
    return Turns(kind, planned, figures)


def coreg_step(
    state: State,
    learner: Learner,
    batch: Batch,
    mesh: Mesh,
    opinion: Opinion,
    *,
    views: Callable[..., Tensor] | None = None,
    regularised: bool = True,
    evaluation_mode: bool = True,
) -> Tensor:
    """Co-pseudo-labels, prototypes, mixup and all losses of one step; returns the weighted terms, detached.

    In every tensor the labelled rows come first (b of them, with targets by the other network's `opinion`), then the
    unlabelled rows (u of them, with targets by both networks).

    Args:
        views: two views of each row that are trained on, one after the other; None: strong ones.
        regularised: whether prototypes and contrast take part once their time has come.
        evaluation_mode: whether pseudo-labels are made in it; False as the authors' code does, for studies.
    """
    method, memory = state.method, learner.memory
    contrast_on = regularised and batch.epoch > method.warmup_epochs + method.contrast_delay
    if contrast_on and memory.keys is None:
        memory.keys = frozen_copy(learner.student)
    terms = torch.zeros(len(TERMS), device=mesh.device)
    index = torch.cat([batch.labelled, batch.unlabelled])
    images = batch.rows.take(index, mesh.device)
    targets, features = pseudo_labels(state, learner, batch, opinion, images, evaluation_mode)
    classes = targets.argmax(dim=1)
    memory.prototypes = move_prototypes(
        memory.prototypes, features, classes[: len(features)], method.prototype_momentum, batch, mesh
    )
    if len(index):
        shown = (views or strong_pair)(state, learner, batch, index, images)
        prototypes = memory.prototypes if contrast_on else None
        terms[2:5], _ = mixed_terms(state, learner, batch, shown, targets, mesh, prototypes)
        if contrast_on:
            first, second = shown.chunk(2)
            terms[5], keys, confident = contrast_term(state, learner, batch, first, second, classes)
    terms = update(learner, terms, mesh)
    if contrast_on and len(index):  # after the backward pass, which still needs the queue as it was
        memory.queue.push(keys, classes, confident)
    if memory.keys is not None:
        follow(memory.keys, learner.student, method.key_momentum)
    return terms


def strong_pair(state: State, learner: Learner, batch: Batch, index: Tensor, images: Tensor) -> Tensor:
    """Two strong views of rows `index` (B,), one after the other: (2 B, ...)."""
    return torch.cat([strong(state, learner, batch, index, f"strong {number}", images) for number in (1, 2)])


@torch.no_grad()
def pseudo_labels(
    state: State, learner: Learner, batch: Batch, opinion: Opinion, images: Tensor, evaluation_mode: bool = True
) -> tuple[Tensor, Tensor]:
    """Targets (b + u, K) of a step, and the features (b, D) of the labelled rows' first weak views (section 3, step 3).

    One pass through each network: the own one sees a weak view of all rows, the peer another of the
    unlabelled rows. With the paper's two weak views a network (`method.weak_views 2`) each sees both. Where neighbours
    have a say (`method.neighbours`) they are a third voice about the unlabelled rows, beside both networks.
    """
    b, device = len(batch.labelled), images.device
    if not len(images):
        nothing = torch.zeros(0, device=device)
        return nothing.view(0, batch.rows.num_classes), nothing.view(0, learner.student.projection)
    index = torch.cat([batch.labelled, batch.unlabelled])
    one = state.method.weak_views == 1
    first = weak(state, learner, batch, index, "weak 1", images)
    second = weak(state, learner, batch, index[b:] if one else index, "weak 2", images[b:] if one else images)
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
    if opinion.predictions is not None and state.neighbours is not None:
        near = state.neighbours[batch.unlabelled]
        heard = voice(near, opinion.predictions, batch.rows.num_classes, device)
        guessed = purify.guess(guessed, guessed, heard.to(guessed.dtype))  # a third of it
    return purify.sharpen(torch.cat([refined, guessed]), state.method.temperature), features[:b]


def contrast_term(
    state: State, learner: Learner, batch: Batch, first: Tensor, second: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise-tolerant supervised contrast of unmixed strong views, weighted (section 4).

    Returns the loss, and what the queue takes in: keys (b + u, D) and whether each is confident (b + u,).

    Args:
        first, second: (b + u, ...) strong views, as networks take them. classes: (b + u,) pseudo-classes.
    """
    method, queue = state.method, learner.memory.queue
    confident = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    confident[: len(batch.labelled)] = True
    with state.autocast():
        _, queries = learner.student(first)
        with torch.no_grad():
            _, keys = learner.memory.keys(second)
    loss = losses.noise_tolerant_contrast(
        queries, keys, classes, confident, queue.keys, queue.classes, queue.confident, queue.valid,
        method.contrast_temperature, denominator=batch.team_labelled + batch.team_unlabelled,
    )  # fmt: skip
    return method.contrast_weight * loss, keys, confident


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Make the prototypes common: the mean of both networks', normalised (METHOD: section 6).

    Where only one of a process's two networks has trained (the sequential order), the prototypes are simply its own.
    """
    prototypes = mesh.swap({learner.network: learner.memory.prototypes for learner in state.learners})
    for learner in state.learners:
        if len(trained) == len(state.learners):
            learner.memory.prototypes = F.normalize(learner.memory.prototypes + prototypes[learner.network], dim=1)
        else:
            learner.memory.prototypes = trained[0].memory.prototypes.clone()
