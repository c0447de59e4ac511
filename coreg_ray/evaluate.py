"""Scoring both networks: on held-out images without labels, and on test images with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray.mesh import Mesh
from coreg_ray.networks import Student
from coreg_ray.rows import Images
from coreg_ray.state import State

EVALUATE_BATCH = 1024


@dataclass(frozen=True)
class Scored:
    """Images that are looked at but never trained on; either may be empty.

    Attributes:
        held_out: annotated images without labels, for the label-free criterion.
        test: labelled images.
    """

    held_out: Images | None = None
    test: Images | None = None


@torch.no_grad()
def evaluate(state: State, scored: Scored, mesh: Mesh) -> dict[str, float]:
    """Accuracy of the sum of both networks' logits and of each alone, and their agreement on held-out images.

    Every process scores its share of the images with both networks (its own and the peer, which are equal to the other
    process's right after an exchange), so only a handful of counts travels (METHOD: section 3, step 6).
    """
    learner = state.learners[0]
    pair = (learner.student, learner.peer) if learner.network == 0 else (learner.peer, learner.student)
    learner.student.eval()
    hits = torch.zeros(4, dtype=torch.float64, device=mesh.device)  # ensemble, a, b, scored
    for labels, logits_a, logits_b in _scores(state, pair, scored.test, mesh):
        for slot, logits in enumerate((logits_a + logits_b, logits_a, logits_b)):
            hits[slot] += (logits.argmax(1) == labels).sum()
        hits[3] += (labels >= 0).sum()
    agreed = torch.zeros(2, dtype=torch.float64, device=mesh.device)  # same class, scored
    for labels, logits_a, logits_b in _scores(state, pair, scored.held_out, mesh):
        agreed[0] += (logits_a.argmax(1) == logits_b.argmax(1)).sum()
        agreed[1] += len(labels)
    learner.student.train()
    both, a, b, tested, same, held_out = mesh.world_sum(torch.cat([hits, agreed])).tolist()
    metrics: dict[str, float] = {}
    if tested:
        metrics |= {"test/accuracy": both / tested, "test/accuracy_a": a / tested, "test/accuracy_b": b / tested}
    if held_out:
        metrics["criterion/label_free"] = same / held_out
    return metrics


def _scores(
    state: State, pair: tuple[Student, Student], images: Images | None, mesh: Mesh
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's share of the images in batches: labels (B,), -1 where unknown, and both logits (B, K)."""
    if images is None:
        return
    labels = torch.full((len(images),), -1) if images.labels is None else images.labels
    for index in torch.arange(len(images))[mesh.rank :: mesh.world].split(EVALUATE_BATCH):
        if not len(index):
            continue
        pixels = images.take(index, mesh.device)
        with state.autocast():
            yield labels[index].to(mesh.device), pair[0].classify(pixels), pair[1].classify(pixels)
