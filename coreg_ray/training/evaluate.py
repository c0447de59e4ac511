"""Scoring both networks: by criteria on images without labels, and by accuracy on test images with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.pure.label_free import VIEWS, count, criteria, no_counts
from coreg_ray.pure.rng import stream
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import Student
from coreg_ray.training.rows import Images, Rows
from coreg_ray.training.side_by_side import side_by_side
from coreg_ray.training.state import State
from coreg_ray.training.views import plain, weak_view

# Images that pass together. On a CPU a small network's intermediate results stay in the cache: with 64 to 256 images
# the passes are 1.7 times as fast as with 1,024.
EVALUATE_BATCH = {"cpu": 128}
ACCELERATOR_BATCH = 1024
SETTLED = 3  # last epochs, after which all criteria are looked at; the mean of so many is what runs are compared by


@dataclass(frozen=True)
class Scored:
    """Images that networks are scored on after every epoch; any may be empty.

    Views of images cost as much as a third of the training. So those criteria that look at views are left out before
    the last epochs, unless somebody compares runs meanwhile; accuracy and agreement are in every epoch.

    Attributes:
        held_out: annotated images that are not trained on, for the criteria; as `Rows` they have their candidate sets.
        test: labelled images, which are not trained on either.
        shown: images that are trained on, for the criteria where few are held out.
        compared: whether runs are compared by criteria after every epoch.
    """

    held_out: Images | None = None
    test: Images | None = None
    shown: Images | None = None
    compared: bool = True


@torch.no_grad()
def evaluate(state: State, scored: Scored, mesh: Mesh) -> dict[str, float]:
    """Accuracy of the sum of both networks' logits and of each alone, and the criteria.

    Every process scores its part of the images with both networks (its own and the peer, which are equal to the other
    process's right after an exchange), so only a handful of counts travels (METHOD: section 3, step 6).
    """
    learner = state.learners[0]
    pair = (learner.student, learner.peer) if learner.network == 0 else (learner.peer, learner.student)
    for own in state.learners:
        own.student.eval()
    views = VIEWS if scored.compared or state.epoch >= state.method.epochs - SETTLED else 0
    hits = torch.zeros(4, dtype=torch.float64, device=mesh.device)  # ensemble, a, b, scored
    for images, index in _part(scored.test, mesh):
        labels = torch.full((len(index),), -1) if images.labels is None else images.labels[index]
        labels = labels.to(mesh.device)
        logits_a, logits_b = _logits(state, pair, plain(images.take(index, mesh.device)), mesh)
        for slot, logits in enumerate((logits_a + logits_b, logits_a, logits_b)):
            hits[slot] += (logits.argmax(1) == labels).sum()
        hits[3] += (labels >= 0).sum()
    counts = [no_counts(len(state.class_names), mesh.device) for _ in range(2)]
    for mine, looked_at in zip(counts, (scored.held_out, scored.shown if views else None), strict=True):
        for images, index in _part(looked_at, mesh):
            predicted, probs = _predicted(state, pair, images, index, views, mesh)
            candidates = images.candidates(index, mesh.device) if isinstance(images, Rows) else None
            mine += count(predicted, candidates, len(state.class_names), probs)
    for own in state.learners:
        own.student.train()
    sums = mesh.world_sum(torch.cat([hits, *counts])).cpu()
    both, a, b, tested = sums[:4].tolist()
    held_out, shown = sums[4:].chunk(2)
    figures: dict[str, float] = {}
    if tested:
        figures |= {metrics.ACCURACY: both / tested, metrics.ACCURACY_A: a / tested, metrics.ACCURACY_B: b / tested}
    return figures | {metrics.CRITERION + name: value for name, value in criteria(held_out, shown, views).items()}


def _part(images: Images | None, mesh: Mesh) -> Iterator[tuple[Images, Tensor]]:
    """This process's part of the images, in batches of row positions (B,)."""
    if images is None:
        return
    at_once = EVALUATE_BATCH.get(mesh.device.type, ACCELERATOR_BATCH)
    for index in torch.arange(len(images))[mesh.rank :: mesh.world].split(at_once):
        if len(index):
            yield images, index


def _predicted(
    state: State, pair: tuple[Student, Student], images: Images, index: Tensor, views: int, mesh: Mesh
) -> tuple[Tensor, Tensor]:
    """Both networks' classes (2, 1 + views, B) of images and weak views of them, and their predictions of the images.

    The predictions are (2, B, K). The views depend on the image alone, so that runs are compared by the same ones.
    """
    taken, numbers = images.take(index, mesh.device), images.numbers[index]
    own = torch.stack(_logits(state, pair, plain(taken), mesh))
    classes = [own.argmax(2)]
    for view in range(1, 1 + views):
        shown = weak_view(state, taken, stream(0, "stability", view), numbers)
        classes.append(torch.stack(_logits(state, pair, shown, mesh)).argmax(2))
    return torch.stack(classes, dim=1), own.softmax(2)


def _logits(state: State, pair: tuple[Student, Student], shown: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Both networks' logits (B, K); two networks that are trained side by side are asked side by side too."""

    def classify(network: int) -> Tensor:
        with torch.no_grad(), state.autocast():  # both hold for one thread alone
            return pair[network].classify(shown)

    if len(state.learners) == 1:
        return classify(0), classify(1)
    logits = side_by_side(state.learners, lambda learner: classify(learner.network), mesh)
    return logits[0], logits[1]
