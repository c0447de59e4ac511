"""What each network thinks of every row, and handing it to the other (METHOD: section 3, steps 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray import purify
from coreg_ray.draws import key, uniform
from coreg_ray.mesh import Mesh
from coreg_ray.rows import Rows
from coreg_ray.state import Learner, State
from coreg_ray.views import WEAK_DRAWS, weak

ASSESS_BATCH = 1024
# Rows times classes judged at once, so that memory does not follow the number of classes. On a CPU 2 MB a tensor: with
# larger ones the heap fragments and grows with the number of rows (measured at 20,000 classes).
ASSESS_CELLS = {"cpu": 2**19, "cuda": 2**24}


@dataclass(frozen=True)
class Opinion:
    """What one network says about every row; the message to the other.

    Attributes:
        clean: (N,) float32, probability that the candidate set is sound.
        labels: (sum of |S|,) float16, its prediction restricted to S.
    """

    clean: Tensor
    labels: Tensor


@torch.no_grad()
def assess(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> Opinion:
    """Judge every row by one weak view: aligned prediction, max-candidate loss, mixture (METHOD: section 3, step 1)."""
    if learner.mean is None:
        learner.mean = _assess_pass(state, learner, rows, mesh, epoch, labels=None, row_losses=None)
    labels = torch.empty(len(rows.classes), dtype=torch.float16)
    row_losses = torch.empty(len(rows))
    learner.mean = _assess_pass(state, learner, rows, mesh, epoch, labels, row_losses)

    low, high = -mesh.team_max(-row_losses.min()), mesh.team_max(row_losses.max())
    newest = purify.normalise_losses(row_losses, low, high).to(torch.float16)
    learner.losses = torch.cat([learner.losses[1:], newest[None]])
    averaged = learner.losses.float().nanmean(dim=0)
    clean = purify.clean_probability(torch.cat(mesh.team_concat(averaged)), key(state.seed, "mixture") % 2**31)
    before = sum(len(part) for part in mesh.team_concat(averaged)[: mesh.replica])
    clean = clean[before : before + len(rows)].float()
    return Opinion(torch.where(rows.trusted, 1.0, clean), labels)


def _assess_pass(
    state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int, labels: Tensor | None, row_losses: Tensor | None
) -> Tensor:
    """One pass over the rows; fills `labels` and `row_losses` unless None; returns the team's mean prediction (K,)."""
    total = torch.zeros(rows.num_classes, dtype=torch.float64, device=mesh.device)
    purpose = key(state.seed, "assess", learner.network, epoch)
    learner.student.eval()
    batch_size = min(ASSESS_BATCH, max(1, ASSESS_CELLS[mesh.device.type] // rows.num_classes))
    for index in torch.arange(len(rows)).split(batch_size):
        draws = uniform(purpose, rows.numbers[index], WEAK_DRAWS)
        views = weak(rows.take(index, mesh.device), draws, flip=state.flip)
        with state.autocast():
            logits = learner.student.classify(views)
        probs = logits.softmax(dim=1)
        total += probs.sum(0)
        if labels is None or row_losses is None or learner.mean is None:
            continue
        candidates = rows.candidates(index, mesh.device)
        aligned = purify.align(probs, learner.mean, state.prior)
        row_losses[index] = purify.candidate_loss(aligned, candidates).cpu()
        position, values = rows.gather(index, purify.restrict(aligned, candidates))
        labels[position] = values.to(torch.float16)
    learner.student.train()
    sums = mesh.team_sum(torch.cat([total, total.new_tensor([len(rows)])]))
    return (sums[:-1] / sums[-1]).float()


def swap_opinions(own: dict[int, Opinion], mesh: Mesh) -> dict[int, Opinion]:
    """Each network gets the other's opinion: O(sum of |S|) numbers, once an epoch (METHOD: section 3, step 2)."""
    clean = mesh.swap({network: opinion.clean for network, opinion in own.items()})
    labels = mesh.swap({network: opinion.labels for network, opinion in own.items()})
    return {network: Opinion(clean[network], labels[network]) for network in own}


def opinion_metrics(
    own: dict[int, Opinion], others: dict[int, Opinion], threshold: float, rows: Rows, mesh: Mesh
) -> dict[str, float]:
    """clean/a, clean/b: share of rows that each network finds sound; agreement: same best candidate for both."""
    network = min(own)
    pair = (own[network], others[network]) if network == 0 else (others[network], own[network])
    best = [_best_candidates(opinion.labels, rows) for opinion in pair]
    sound = [(opinion.clean > threshold).sum() for opinion in pair]
    counts = [*sound, (best[0] == best[1]).sum(), torch.tensor(len(rows))]
    clean_a, clean_b, same, total = mesh.team_sum(torch.stack(counts).double()).tolist()
    return {"clean/a": clean_a / total, "clean/b": clean_b / total, "agreement": same / total}


def _best_candidates(labels: Tensor, rows: Rows) -> Tensor:
    """Per row the position of its likeliest candidate, the first of equals: labels (sum of |S|,) -> (N,)."""
    owner = torch.repeat_interleave(torch.arange(len(rows)), rows.offsets[1:] - rows.offsets[:-1])
    peak = torch.zeros(len(rows)).scatter_reduce(0, owner, labels.float(), "amax")
    position = torch.where(labels.float() == peak[owner], torch.arange(len(labels)), len(labels))
    return torch.full((len(rows),), len(labels)).scatter_reduce(0, owner, position, "amin")
