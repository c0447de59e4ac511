"""The partial-label family: one network learns from candidate sets that are taken to hold the truth.

| `method.partial.loss` | what it minimises | source |
|---|---|---|
| cc | -log of the mass on S | Feng et al. 2020; MCL-LOG of complementary labels |
| proden | cross-entropy to confidences on S, which follow the network | Lv et al. 2020; RC |
| crdpll | divergence of three views from confidences on S; -log(1 - p) of all that is not in S | Wu et al. 2022 |

They explain failures: where the truth is not in S, CR-DPLL's second term drives it out of the answer whatever the image
shows. `method.partial.robust` weights that term by the clean probability of Co-Reg's mixture.

What differs from the papers or their authors' published settings, and why:

1. -log(1 - p) is taken from the logits of the other classes; the authors add a small number inside the logarithm, which
   is off by that number over 1 - p and saturates where it matters.
2. CR-DPLL's consistency ramps up over the first half of the epochs, not over 100 epochs whatever the schedule is.
3. The views are those of every kind here: one weak, two strong ones. Theirs are cropped, cut out and auto-augmented.
4. PRODEN's confidences come from a second pass in evaluation mode; CR-DPLL's from the same passes as its loss, as
   published.
5. There is no warm-up: the first epoch's confidences are even, or as the candidates' weights have them. The learning
   rate follows the cosine of every kind.
6. Confidences are ragged, two bytes a candidate, never N x K. LWS, which needs N x K, is left out.
7. The robust variant is ours; with sound sets it is CR-DPLL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import losses, purify
from coreg_ray.training.assess import Assessed, assess, unassessed
from coreg_ray.training.memory import kept
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn, Turns
from coreg_ray.training.networks import Student
from coreg_ray.training.plan import whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.side_by_side import side_by_side
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import Batch, strong, update, weak

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig

TERMS: tuple[str, ...] = ("inside", "outside")
LISTENS = False
DEPLOYED: tuple[str, ...] = NETWORKS


@dataclass(kw_only=True)
class Memory(Assessed):
    """What is remembered of one network.

    Attributes:
        confidence: (sum of |S|,) float16, how likely each candidate is; adds up to one in every row. None for `cc`.
    """

    confidence: Tensor | None = kept("candidates")


def remember(method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> Memory:
    """Confidences as the candidates' weights have them: even where all count alike."""
    row_losses, choices = unassessed(method.loss_history, rows)
    return Memory(losses=row_losses, choices=choices, confidence=None if method.partial.loss == "cc" else rows.shares)


def turns(state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
    """Every row once, from the first epoch on; the robust variant judges the sets before."""
    clean: dict[int, Tensor] = {}
    if state.method.partial.robust and epoch:
        judged = side_by_side(
            state.learners, lambda learner: assess(state, learner, rows, mesh, epoch, aligned=False), mesh
        )
        clean = {network: opinion.clean for network, opinion in judged.items()}
    step = STEPS[state.method.partial.loss]
    planned = {}
    for learner in state.learners:
        plan = whole_plan(rows, state.seed, learner.network, epoch, state.method.batch_size, mesh, "partial")
        planned[learner.network] = Turn(plan, partial(step, clean=clean.get(learner.network)))
    return Turns("partial", planned)


def cc_step(state: State, learner: Learner, batch: Batch, mesh: Mesh, clean: Tensor | None) -> Tensor:
    """-log of the mass on S, of one weak view; returns the terms, detached."""
    terms, index = torch.zeros(len(TERMS), device=mesh.device), batch.labelled
    if len(index):
        logits = _logits(state, learner, weak(state, learner, batch, index, "weak 1", _images(batch, mesh)))
        candidates = batch.rows.candidates(index, mesh.device)
        weights = batch.rows.weights_of(index, mesh.device)
        terms[0] = losses.partial_cross_entropy(logits, candidates, weights=weights, denominator=batch.team_labelled)
    return update(learner, terms, mesh)


def proden_step(state: State, learner: Learner, batch: Batch, mesh: Mesh, clean: Tensor | None) -> Tensor:
    """Cross-entropy to the confidences, which then become the network's prediction on S."""
    terms, index = torch.zeros(len(TERMS), device=mesh.device), batch.labelled
    if len(index):
        view = weak(state, learner, batch, index, "weak 1", _images(batch, mesh))
        logits = _logits(state, learner, view)
        terms[0] = losses.soft_cross_entropy(logits, _confidence(learner, batch), denominator=batch.team_unlabelled)
    terms = update(learner, terms, mesh)
    if len(index):
        learner.student.eval()
        with torch.no_grad():
            probs = _logits(state, learner, view).softmax(1)
        learner.student.train()
        candidates, weights = batch.rows.candidates(index, mesh.device), batch.rows.weights_of(index, mesh.device)
        _believe(learner, batch, purify.restrict(probs, candidates, weights=weights))
    return terms


def crdpll_step(state: State, learner: Learner, batch: Batch, mesh: Mesh, clean: Tensor | None) -> Tensor:
    """Three views that agree with the confidences, and leave what is not in S; the views then make the confidences."""
    method, index = state.method, batch.labelled
    terms = torch.zeros(len(TERMS), device=mesh.device)
    if not len(index):
        return update(learner, terms, mesh)
    images, candidates = _images(batch, mesh), batch.rows.candidates(index, mesh.device)
    views = [weak(state, learner, batch, index, "weak 1", images)]
    views += [strong(state, learner, batch, index, f"strong {number}", images) for number in (1, 2)]
    logits = _logits(state, learner, torch.cat(views)).split(len(index))
    confidence, team = _confidence(learner, batch), batch.team_unlabelled
    ramp = min(batch.position / (method.epochs / 2), 1.0) * method.partial.weight
    terms[0] = ramp * sum(losses.divergence(view, confidence, denominator=team) for view in logits)
    sound = None if clean is None else clean[index].to(mesh.device)
    terms[1] = losses.negative(logits[0], ~candidates, weights=sound, denominator=team)
    seen, weights = (view.detach().softmax(1) for view in logits), batch.rows.weights_of(index, mesh.device)
    _believe(learner, batch, purify.geometric(*seen, candidates=candidates, weights=weights))
    return update(learner, terms, mesh)


STEPS = {"cc": cc_step, "proden": proden_step, "crdpll": crdpll_step}


def _images(batch: Batch, mesh: Mesh) -> Tensor:
    return batch.rows.take(batch.labelled, mesh.device)


def _logits(state: State, learner: Learner, views: Tensor) -> Tensor:
    with state.autocast():
        return learner.student(views)[0]


def _confidence(learner: Learner, batch: Batch) -> Tensor:
    """Of the rows of a batch, dense: (b, K)."""
    return batch.rows.scatter(batch.labelled, learner.memory.confidence, learner.student.device).float()


def _believe(learner: Learner, batch: Batch, confidence: Tensor) -> None:
    """Remember (b, K) as the confidences of a batch's rows."""
    position, values = batch.rows.gather(batch.labelled, confidence)
    learner.memory.confidence[position] = values.half()


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Both networks are alone."""
