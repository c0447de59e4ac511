"""PiCO: class prototypes vote which candidate it is (Wang et al., ICLR 2022); with `method.pico.importance` ALIM (Xu et
al., NeurIPS 2023), with `method.pico.plus` PiCO+ (Wang et al., TPAMI 2024).

docs/methods.md has the equations and constants.

What differs from the papers or their authors' published settings, and why:

1. The share of wrong candidate sets is estimated, never given: one minus the mean clean probability of Co-Reg's mixture
   over the losses that rows had in the last epoch. The authors of ALIM and PiCO+ set it to the noise that they had put
   in themselves.
2. Predictions, votes and distances come from a pass of their own, without gradient and in evaluation mode.
3. Every start is a share of `method.epochs`; before the first prototypes there are (`method.pico.start`) nobody votes.
   The momentum falls in a line from the first epoch; the authors' first epoch has 0.99, a default left over.
4. ALIM's mass outside a row's set is kept in its four largest classes; it decays by the momentum at every visit.
5. Manual labels are certain: classes outside never count for them, and PiCO+ finds them reliable.
6. Empty slots of the queue are masked (the authors' are random numbers, whose class equals none); batch-norm buffers of
   the key encoder follow as its weights do.
7. An anchor's own query is neither a positive nor in its sum, in PiCO+ as well.
8. Networks are taken as the last epoch leaves them; the authors keep those of the best accuracy on the test images.
9. A side without rows costs nothing (the authors' mean over no reliable row is no number).
10. The two networks are two seeds that know nothing of one another; `method.warmup_epochs` is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import confidence, losses, pairs, purify, slots
from coreg_ray.training.assess import soundness
from coreg_ray.training.memory import kept
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn, Turns, figures_of
from coreg_ray.training.networks import Queue, Student, follow, frozen_copy
from coreg_ray.training.plan import parted, whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch, mixing_order, mixing_share, move_prototypes, predict, strong, update, weak

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

TERMS: tuple[str, ...] = ("classification", "unreliable", "mixed", "contrast")
LISTENS = False
DEPLOYED: tuple[str, ...] = NETWORKS
OUTSIDE = 4  # classes outside its set that a row keeps
RELIABLE_ANCHOR, UNRELIABLE_ANCHOR = 0.5, 0.1  # weights in PiCO+'s contrast once unreliable rows have neighbours
ALL_PAIRS = 0.1  # weight in PiCO+ of the contrast by pseudo-classes alone


@dataclass(kw_only=True)
class Memory:
    """What is remembered of one network.

    Attributes:
        confidence: (M,) float16, how sure each candidate is.
        prototypes: (K, D) unit or zero. keys, queue: momentum encoder and this replica's newest keys.
        losses: (N,) float16, of the likeliest candidate when the row was seen last; NaN where it never was. Not PiCO's.
        distances: (N,) float16, to the likeliest candidate's prototype when the row was seen last. PiCO+ only.
        margins: (N,) float16, how far a set's best class was ahead of all others. ALIM only.
        outside_classes, outside_values: (r, N), slots of confidence in classes outside the set. ALIM only.
    """

    confidence: Tensor = kept("candidates")
    prototypes: Tensor = kept("team")
    keys: Student | None = kept("network", default=None)
    queue: Queue = kept("ring")
    losses: Tensor | None = kept("rows", unknown=torch.nan, default=None)
    distances: Tensor | None = kept("rows", default=None)
    margins: Tensor | None = kept("rows", unknown=1.0, default=None)
    outside_classes: Tensor | None = kept("rows", unknown=-1, default=None)
    outside_values: Tensor | None = kept("rows", default=None)


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Memory:
    """Every candidate as sure as the others of its row; no prototype and no key yet."""
    memory = Memory(
        confidence=rows.shares,  # even where all candidates count alike
        prototypes=torch.zeros(rows.num_classes, own.projection, device=mesh.device),
        queue=Queue(method.queue_size // mesh.replicas, own.projection, mesh.device),
    )
    if method.pico.plus or method.pico.importance != "none":
        memory.losses = torch.full((len(rows),), torch.nan, dtype=torch.float16)
    if method.pico.plus:
        memory.distances = torch.zeros(len(rows), dtype=torch.float16)
    if method.pico.importance != "none":
        memory.margins = torch.ones(len(rows), dtype=torch.float16)
        memory.outside_classes, memory.outside_values = slots.empty(OUTSIDE, len(rows), rows.num_classes)
    return memory


@dataclass(frozen=True)
class Trust:
    """How far one network believes candidate sets in an epoch.

    Attributes:
        outside: (N,) float32, how much a class outside its set counts in a row's pseudo-class, and in ALIM's votes.
        reliable: (N,) bool. figures: of the history.
    """

    outside: Tensor
    reliable: Tensor
    figures: dict[str, float]


def turns(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
    """Every row once; beside it, for ALIM's mixtures, every row in another order."""
    trust = {learner.network: trust_of(state, learner, rows, mesh, epoch) for learner in state.learners}
    planned = {}
    for learner in state.learners:
        if learner.memory.keys is None:
            learner.memory.keys = frozen_copy(learner.student)
        of, size = (rows, state.seed, learner.network, epoch), state.method.batch_size
        plan = parted(whole_plan(*of, size, mesh, "pico"), trust[learner.network].reliable, mesh)
        partners = whole_plan(*of, size, mesh, "partner").labelled if state.method.pico.importance != "none" else []
        planned[learner.network] = Turn(plan, partial(step, trust=trust[learner.network], partners=partners))
    figures = figures_of({network: one.figures for network, one in trust.items()}, mesh)
    return Turns("pico", planned, figures)


def voting(state: State, epoch: int) -> bool:
    """Whether prototypes vote by now."""
    return epoch >= state.method.pico.start * state.method.epochs


def trust_of(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> Trust:
    """Sets are believed, but for what ALIM and PiCO+ conclude from what the last epoch left behind."""
    settings, memory = state.method.pico, learner.memory
    none, everyone = torch.zeros(len(rows)), torch.ones(len(rows), dtype=torch.bool)
    if memory.losses is None:
        return Trust(none, everyone, {})
    free = ~rows.trusted
    clean, noise = soundness(state, memory.losses, rows, mesh)
    figures = {metrics.CLEAN: clean, "noise": noise}
    if settings.plus:
        distances = torch.cat(mesh.team_concat(memory.distances[free])).sort().values
        near = distances[: int((1 - noise) * len(distances))]
        near_enough = memory.distances <= (near[-1] if len(near) else -torch.inf)
        reliable = rows.trusted | near_enough if voting(state, epoch) else everyone
        share = mesh.team_sum(torch.stack([reliable.sum(), everyone.sum()])).tolist()
        return Trust((~reliable).float(), reliable, figures | {"reliable": share[0] / max(share[1], 1)})
    weight = 0.0
    if noise > 0 and epoch >= settings.importance_start * state.method.epochs:
        margins = torch.cat(mesh.team_concat(memory.margins[free]))
        weight = min(1.0, confidence.quantile(margins, noise))
    return Trust(weight * free, everyone, figures | {"importance": weight})


def step(state: State, learner: Learner, batch: Batch, mesh: Mesh, trust: Trust, partners: list[Tensor]) -> Tensor:
    """Votes, prototypes and all losses of one step; returns the weighted terms, detached.

    In every tensor the reliable rows come first (b of them, the labelled side), then the others (u of them).

    Args:
        partners: for each step the rows that ALIM mixes its rows with.
    """
    settings, memory, b = state.method.pico, learner.memory, len(batch.labelled)
    plus = settings.plus and voting(state, batch.epoch)
    terms = torch.zeros(len(TERMS), device=mesh.device)
    follow(memory.keys, learner.student, state.method.key_momentum)
    index = torch.cat([batch.labelled, batch.unlabelled])
    images = batch.rows.take(index, mesh.device)
    views = weak(state, learner, batch, index, "weak", images)
    probs, features = predict(state, learner.student, views)
    classes, targets = vote(state, learner, batch, index, trust, probs, features)
    memory.prototypes = move_prototypes(
        memory.prototypes, features[:b], classes[:b], settings.prototype_momentum, batch, mesh
    )
    if len(index):
        with state.autocast():
            logits, queries = learner.student(views)
            with torch.no_grad():
                _, keys = memory.keys(strong(state, learner, batch, index, "strong", images))
        sure = losses.soft_cross_entropy(logits[:b], targets[:b], denominator=batch.team_labelled)
        terms[0] = settings.reliable_weight * sure if plus else sure
        if plus:
            unsure = losses.soft_cross_entropy(logits[b:], targets[b:], denominator=batch.team_unlabelled)
            terms[1] = settings.unreliable_weight * unsure
            order = mixing_order(state, learner, batch, mesh, len(index)).to(mesh.device)
            terms[2] = mixed_term(state, learner, batch, views, views[order], targets, targets[order])
        elif settings.importance != "none":
            partner = partners[batch.step]
            others = weak(state, learner, batch, partner, "partner", batch.rows.take(partner, mesh.device))
            other_targets = confidence_of(memory, batch.rows, partner, mesh.device)
            terms[2] = mixed_term(state, learner, batch, views, others, targets, other_targets)
        terms[3] = contrast_term(state, learner, batch, queries, keys, classes)
    terms = update(learner, terms, mesh)
    if len(index):  # after the backward pass, which still needs the queue as it was
        memory.queue.push(keys, classes, torch.arange(len(index), device=mesh.device) < b)
    return terms


@torch.no_grad()
def vote(
    state: State, learner: Learner, batch: Batch, index: Tensor, trust: Trust, probs: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Pseudo-classes (b + u,) and targets (b + u, K): confidences after the prototypes' vote, which are kept.

    PiCO+'s targets of unreliable rows are the prototypes' likeness alone.

    Args:
        index: (b + u,), of the rows whose predictions and features (b + u, K or D) these are.
    """
    settings, memory, rows = state.method.pico, learner.memory, batch.rows
    candidates = rows.candidates(index, probs.device)
    outside = trust.outside[index].to(probs.device)
    similarity = features @ memory.prototypes.T  # (b + u, K)
    scores = (similarity / settings.temperature).softmax(dim=1)
    if memory.losses is not None:
        memory.losses[index] = purify.candidate_loss(probs, candidates).half().cpu()
    if memory.margins is not None:
        memory.margins[index] = confidence.margin(scores, candidates).half().cpu()
    if memory.distances is not None:
        best = confidence.importance(probs, candidates, 0.0).argmax(dim=1, keepdim=True)
        memory.distances[index] = -similarity.gather(1, best)[:, 0].half().cpu()
    sure = confidence_of(memory, rows, index, probs.device)
    if voting(state, batch.epoch):
        gone = batch.epoch / state.method.epochs
        momentum = (1 - gone) * settings.momentum + gone * settings.final_momentum
        counted = confidence.importance(scores, candidates, 0.0 if settings.plus else outside)
        sure = confidence.vote(sure, counted, momentum, soft=settings.importance == "scale")
        position, values = rows.gather(index, sure)
        memory.confidence[position] = values.half()
        if memory.outside_classes is not None:
            kept_classes, amounts = slots.largest(sure.masked_fill(candidates, 0.0), len(memory.outside_classes))
            memory.outside_classes[:, index] = kept_classes.cpu()
            memory.outside_values[:, index] = amounts.half().cpu()
    b = len(batch.labelled)
    classes = confidence.importance(probs, candidates, outside).argmax(dim=1)
    return classes, torch.cat([sure[:b], scores[b:]])


def confidence_of(memory: Memory, rows: Rows, index: Tensor, device: torch.device) -> Tensor:
    """The kept confidences of rows `index` (B,): (B, K) float32."""
    sure = rows.scatter(index, memory.confidence, device).float()
    if memory.outside_classes is not None and memory.outside_values is not None:
        classes, values = memory.outside_classes[:, index], memory.outside_values[:, index]
        sure = sure + slots.dense(classes.to(device), values.to(device), rows.num_classes)
    return sure


def mixed_term(
    state: State, learner: Learner, batch: Batch, views: Tensor, others: Tensor, targets: Tensor, other_targets: Tensor
) -> Tensor:
    """Cross-entropy of weak views mixed with others, row by row, targets (b + u, K) alike. Weighted."""
    share = mixing_share(state, learner, batch)
    with state.autocast():
        logits, _ = learner.student(share * views.float() + (1 - share) * others.float())
    mixed = share * targets + (1 - share) * other_targets
    rows = batch.team_labelled + batch.team_unlabelled
    return state.method.pico.mixup_weight * losses.soft_cross_entropy(logits, mixed, denominator=rows)


def contrast_term(
    state: State, learner: Learner, batch: Batch, queries: Tensor, keys: Tensor, classes: Tensor
) -> Tensor:
    """Contrast by pseudo-classes; before prototypes vote, PiCO's tells only rows from one another. Weighted.

    Args:
        queries: (b + u, D) of weak views. keys: (b + u, D) of strong views, by the key encoder. classes: (b + u,).
    """
    method, settings, queue, anchors = state.method, state.method.pico, learner.memory.queue, len(queries)
    entries = torch.cat([queries.float(), keys.float(), queue.keys])  # (E, D)
    own_key, counted = pairs.own_keys(anchors, queue.valid), pairs.all_but_itself(anchors, queue.valid)
    contrast = partial(
        losses.masked_contrast, queries, entries, temperature=method.contrast_temperature,
        denominator=batch.team_labelled + batch.team_unlabelled,
    )  # fmt: skip
    if settings.importance == "none" and not voting(state, batch.epoch):
        return settings.contrast_weight * contrast(
            positive=own_key, counted=own_key | pairs.older(anchors, queue.valid)
        )
    same = counted & (classes[:, None] == torch.cat([classes, classes, queue.classes]))
    by_class = contrast(positive=own_key | same, counted=counted)
    if not settings.plus:
        return settings.contrast_weight * by_class
    reliable = torch.arange(anchors, device=queries.device) < len(batch.labelled)
    both = reliable[:, None] & torch.cat([reliable, reliable, queue.confident])
    positive, weights = own_key | (same & both), None
    if batch.epoch >= settings.neighbours_start * method.epochs:
        near = pairs.nearest(queries, entries, counted, settings.neighbours)
        positive = positive | (near & ~reliable[:, None])
        weights = torch.where(reliable, RELIABLE_ANCHOR, UNRELIABLE_ANCHOR)
    among_reliable = contrast(positive=positive, counted=counted, weights=weights)
    return settings.reliable_contrast_weight * (among_reliable + ALL_PAIRS * by_class)


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Nothing is common to both networks."""
