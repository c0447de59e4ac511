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
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.training.assess import Opinion, assess, opinion_metrics, swap_opinions
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turn, Turns
from coreg_ray.training.plan import coreg_plan, warmup_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.side_by_side import side_by_side
from coreg_ray.training.state import Learner, State
from coreg_ray.training.steps import TERMS, coreg_step, warmup_step

__all__ = ["DEPLOYED", "TERMS", "settle", "turns"]

log = logging.getLogger(__name__)

DEPLOYED: tuple[str, ...] = NETWORKS


def turns(
    state: State,
    rows: Rows,
    mesh: Mesh,
    epoch: int,
    *,
    assess: Callable[..., Opinion] = assess,
    step: Callable[..., Tensor] = coreg_step,
) -> Turns:
    """What both networks do in an epoch: warm up (METHOD: section 2), then co-regularise (METHOD: section 3).

    Args:
        assess, step: as of `training.assess` and `training.steps`; others for studies of what they gain.
    """
    if epoch < state.method.warmup_epochs:
        return Turns("warmup", 1, {m.network: _warmup_turn(state, m, rows, mesh, epoch) for m in state.learners})
    start = time.perf_counter()
    own = side_by_side(state.learners, lambda learner: assess(state, learner, rows, mesh, epoch), mesh)
    others = swap_opinions(own, mesh)
    figures = opinion_metrics(state, own, others, rows, mesh)
    figures[metrics.ASSESS_S] = time.perf_counter() - start
    planned = {}
    for learner in state.learners:
        opinion = others[learner.network]
        plan = coreg_plan(
            rows, opinion.clean, state.method.clean_threshold, state.method.trusted_share,
            state.seed, learner.network, epoch, state.method.batch_size, mesh,
        )  # fmt: skip
        planned[learner.network] = Turn(plan, partial(step, opinion=opinion))
        if not plan.steps:
            log.warning("epoch %d, network %s: no clean row; it warms up once more", epoch, learner.name)
            planned[learner.network] = _warmup_turn(state, learner, rows, mesh, epoch)
    return Turns("coreg", state.method.exchanges, planned, figures)


def settle(state: State, trained: list[Learner], mesh: Mesh) -> None:
    """Make the prototypes common: the mean of both networks', normalised (METHOD: section 6).

    Where only one of a process's two networks has trained (the sequential order), the prototypes are simply its own.
    """
    prototypes = mesh.swap({learner.network: learner.prototypes for learner in state.learners})
    for learner in state.learners:
        if len(trained) == len(state.learners):
            learner.prototypes = F.normalize(learner.prototypes + prototypes[learner.network], dim=1)
        else:
            learner.prototypes = trained[0].prototypes.clone()


def _warmup_turn(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> Turn:
    """One epoch of partial cross-entropy on strong views, the network alone (METHOD: section 2)."""
    plan = warmup_plan(rows, state.seed, learner.network, epoch, state.method.warmup_batch_size, mesh)
    return Turn(plan, warmup_step)
