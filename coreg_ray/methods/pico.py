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
8. The confidence is updated before it is used, as in the authors' code. Labels come from the last epoch, whatever any
   test accuracy was.
9. PiCO+ mixes rows within a replica's batch, ALIM with rows of an independent order, as the authors do.
10. A side without rows costs nothing (the authors' mean over no reliable row is no number).
11. The two networks are two seeds that know nothing of one another; `method.warmup_epochs` is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import confidence, losses, purify, slots
from coreg_ray.training.assess import clean_of
from coreg_ray.training.memory import kept
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn, Turns, figures_of
from coreg_ray.training.networks import Queue, Student, follow, frozen_copy
from coreg_ray.training.plan import parted, whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch, mixing_share, move_prototypes, predict, strong, update, weak

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

TERMS: tuple[str, ...] = ("classification", "mixed", "contrast")
LISTENS = False
DEPLOYED: tuple[str, ...] = NETWORKS
OUTSIDE = 4  # classes outside its set that a row keeps


@dataclass(kw_only=True)
class Memory:
    """What is remembered of one network.

    Attributes:
        confidence: (M,) float16, how sure each candidate is.
        prototypes: (K, D) unit or zero. keys, queue: momentum encoder and this replica's newest keys.
        losses: (N,) float16, of the likeliest candidate when the row was seen last; NaN where it never was.
        margins: (N,) float16, how far a set's best class was ahead of all others. ALIM only.
        outside_classes, outside_values: (r, N), slots of confidence in classes outside the set. ALIM only.
    """

    confidence: Tensor = kept("candidates")
    prototypes: Tensor = kept("team")
    keys: Student | None = kept("network", default=None)
    queue: Queue = kept("ring")
    losses: Tensor | None = kept("rows", unknown=torch.nan, default=None)
    margins: Tensor | None = kept("rows", unknown=1.0, default=None)
    outside_classes: Tensor | None = kept("rows", unknown=-1, default=None)
    outside_values: Tensor | None = kept("rows", default=None)


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Memory:
    """Every candidate as sure as the others of its row; no prototype and no key yet."""
    memory = Memory(
        confidence=torch.repeat_interleave(1 / rows.sizes, rows.sizes).half(),
        prototypes=torch.zeros(rows.num_classes, own.projection, device=mesh.device),
        queue=Queue(method.queue_size // mesh.replicas, own.projection, mesh.device),
    )
    if method.pico.importance != "none":
        memory.losses = torch.full((len(rows),), torch.nan, dtype=torch.float16)
        memory.margins = torch.ones(len(rows), dtype=torch.float16)
        memory.outside_classes, memory.outside_values = slots.empty(OUTSIDE, len(rows), rows.num_classes)
    return memory


@dataclass(frozen=True)
class Trust:
    """How far one network believes candidate sets in an epoch.

    Attributes:
        outside: (N,) float32, how much a class outside its set counts.
        figures: of the history.
    """

    outside: Tensor
    figures: dict[str, float]


def turns(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
    """Every row once; beside it, for ALIM's mixtures, every row in another order."""
    trust = {learner.network: trust_of(state, learner, rows, mesh, epoch) for learner in state.learners}
    planned = {}
    for learner in state.learners:
        if learner.memory.keys is None:
            learner.memory.keys = frozen_copy(learner.student)
        of, size = (rows, state.seed, learner.network, epoch), state.method.batch_size
        plan = parted(whole_plan(*of, size, mesh, "pico"), torch.ones(len(rows), dtype=torch.bool), mesh)
        partners = whole_plan(*of, size, mesh, "partner").labelled
        planned[learner.network] = Turn(plan, partial(step, trust=trust[learner.network], partners=partners))
    figures = figures_of({network: one.figures for network, one in trust.items()}, mesh)
    return Turns("pico", planned, figures)


def trust_of(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> Trust:
    """Sets are believed, but for what ALIM concludes from the losses and margins of the last epoch."""
    memory: Memory = learner.memory
    if memory.losses is None or memory.margins is None:
        return Trust(torch.zeros(len(rows)), {})
    free = ~rows.trusted
    clean, noise = noise_of(state, memory.losses, rows, mesh)
    weight = 0.0
    if noise > 0 and epoch >= state.method.pico.importance_start * state.method.epochs:
        margins = torch.cat(mesh.team_concat(memory.margins[free]))
        weight = min(1.0, confidence.quantile(margins, noise))
    return Trust(weight * free, {metrics.CLEAN: clean, "noise": noise, "importance": weight})


def noise_of(state: State, row_losses: Tensor, rows: Rows, mesh: Mesh) -> tuple[float, float]:
    """The share of the team's rows that are likely sound, and the share of wrong sets among those not trusted.

    Args:
        row_losses: (N,), NaN where a row was never seen, which counts as sound.
    """
    seen = row_losses.float().nan_to_num(nan=0.0)
    low, high = -mesh.team_max(-seen.min()), mesh.team_max(seen.max())
    clean = clean_of(purify.normalise_losses(seen, low, high), state.seed, rows, mesh).double()
    free = ~rows.trusted
    sound = (clean > state.method.clean_threshold).sum()
    sums = mesh.team_sum(torch.stack([sound, torch.tensor(len(rows)), clean[free].sum(), free.sum()]))
    sound, total, clean_free, num_free = sums.tolist()
    return sound / max(total, 1), 1 - clean_free / num_free if num_free else 0.0


def step(state: State, learner: Learner, batch: Batch, mesh: Mesh, trust: Trust, partners: list[Tensor]) -> Tensor:
    """Votes, prototypes and all losses of one step; returns the weighted terms, detached.

    Args:
        partners: for each step the rows that its rows are mixed with.
    """
    settings, memory = state.method.pico, learner.memory
    terms = torch.zeros(len(TERMS), device=mesh.device)
    follow(memory.keys, learner.student, state.method.key_momentum)
    index = batch.labelled
    images = batch.rows.take(index, mesh.device)
    views = weak(state, learner, batch, index, "weak", images)
    probs, features = judged(state, learner, views)
    classes, targets = vote(state, learner, batch, trust, probs, features)
    memory.prototypes = move_prototypes(memory.prototypes, features, classes, settings.prototype_momentum, batch, mesh)
    if len(index):
        with state.autocast():
            logits, queries = learner.student(views)
            with torch.no_grad():
                _, keys = memory.keys(strong(state, learner, batch, index, "strong", images))
        terms[0] = losses.soft_cross_entropy(logits, targets, denominator=batch.team_labelled)
        if settings.importance != "none":
            terms[1] = settings.mixup_weight * mixed_term(state, learner, batch, views, targets, partners[batch.step])
        terms[2] = contrast_term(state, learner, batch, queries, keys, classes)
    terms = update(learner, terms, mesh)
    if len(index):  # after the backward pass, which still needs the queue as it was
        memory.queue.push(keys, classes, torch.ones_like(classes, dtype=torch.bool))
    return terms


def judged(state: State, learner: Learner, views: Tensor) -> tuple[Tensor, Tensor]:
    """What the network makes of views as they are: predictions (B, K), features (B, D). None of no view."""
    if len(views):
        return predict(state, learner.student, views)
    nothing = torch.zeros(0, device=views.device)
    return nothing.view(0, len(state.class_names)), nothing.view(0, learner.student.projection)


@torch.no_grad()
def vote(
    state: State, learner: Learner, batch: Batch, trust: Trust, probs: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Pseudo-classes (B,), and confidences (B, K) after the prototypes' vote, which are kept.

    Args:
        probs, features: (B, K) and (B, D) of the batch's rows.
    """
    method, settings, memory = state.method, state.method.pico, learner.memory
    index, rows = batch.labelled, batch.rows
    candidates = rows.candidates(index, probs.device)
    outside = trust.outside[index].to(probs.device)
    scores = (features @ memory.prototypes.T / settings.temperature).softmax(dim=1)
    if memory.losses is not None:
        memory.losses[index] = purify.candidate_loss(probs, candidates).half().cpu()
        memory.margins[index] = confidence.margin(scores, candidates).half().cpu()
    sure = confidence_of(memory, rows, index, probs.device)
    if batch.epoch >= settings.start * method.epochs:
        fall = settings.final_momentum - settings.momentum
        momentum = settings.momentum + fall * batch.epoch / method.epochs
        counted = confidence.importance(scores, candidates, outside)
        sure = confidence.vote(sure, counted, momentum, soft=settings.importance == "scale")
        position, values = rows.gather(index, sure)
        memory.confidence[position] = values.half()
        if memory.outside_classes is not None:
            kept_classes, amounts = slots.largest(sure.masked_fill(candidates, 0.0), len(memory.outside_classes))
            memory.outside_classes[:, index] = kept_classes.cpu()
            memory.outside_values[:, index] = amounts.half().cpu()
    return confidence.importance(probs, candidates, outside).argmax(dim=1), sure


def confidence_of(memory: Memory, rows: Rows, index: Tensor, device: torch.device) -> Tensor:
    """The kept confidences of rows `index` (B,): (B, K) float32."""
    sure = rows.scatter(index, memory.confidence, device).float()
    if memory.outside_classes is not None and memory.outside_values is not None:
        classes, values = memory.outside_classes[:, index], memory.outside_values[:, index]
        sure = sure + slots.dense(classes.to(device), values.to(device), rows.num_classes)
    return sure


def mixed_term(state: State, learner: Learner, batch: Batch, views: Tensor, targets: Tensor, partner: Tensor) -> Tensor:
    """Cross-entropy of weak views mixed with those of the rows `partner` (B,), targets alike."""
    images = batch.rows.take(partner, views.device)
    others = weak(state, learner, batch, partner, "partner", images)
    other_targets = confidence_of(learner.memory, batch.rows, partner, views.device)
    share = mixing_share(state, learner, batch)
    with state.autocast():
        logits, _ = learner.student(share * views.float() + (1 - share) * others.float())
    mixed = share * targets + (1 - share) * other_targets
    return losses.soft_cross_entropy(logits, mixed, denominator=batch.team_labelled)


def contrast_term(
    state: State, learner: Learner, batch: Batch, queries: Tensor, keys: Tensor, classes: Tensor
) -> Tensor:
    """Contrast by pseudo-classes; before prototypes vote, PiCO's tells only rows from one another. Weighted.

    Args:
        queries: (B, D) of weak views. keys: (B, D) of strong views, by the key encoder. classes: (B,).
    """
    method, settings, queue = state.method, state.method.pico, learner.memory.queue
    entries = torch.cat([queries.float(), keys.float(), queue.keys])  # (E, D)
    own_query = torch.eye(len(queries), len(entries), dtype=torch.bool, device=queries.device)
    own_key = own_query.roll(len(queries), dims=1)
    valid = torch.cat([queue.valid.new_ones(2 * len(queries)), queue.valid]) & ~own_query  # (B, E)
    contrast = partial(
        losses.masked_contrast, queries, entries, temperature=method.contrast_temperature,
        denominator=batch.team_labelled,
    )  # fmt: skip
    if settings.importance == "none" and batch.epoch < settings.start * method.epochs:
        older = torch.arange(len(entries), device=queries.device) >= 2 * len(queries)
        loss = contrast(positive=own_key, counted=own_key | (valid & older))
    else:
        same = classes[:, None] == torch.cat([classes, classes, queue.classes])
        loss = contrast(positive=own_key | (same & valid), counted=valid)
    return (0.5 if settings.contrast_weight is None else settings.contrast_weight) * loss


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Nothing is common to both networks."""
