"""What each network thinks of every row, and handing it to the other (METHOD: section 3, steps 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import purify
from coreg_ray.pure.rng import stream
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.views import weak_view

ASSESS_BATCH = 1024
# Rows times classes judged at once, so that memory does not follow the number of classes. On a CPU 2 MB a tensor: with
# larger ones the heap fragments and grows with the number of rows (measured at 20,000 classes).
ASSESS_CELLS = {"cpu": 2**19}
ACCELERATOR_CELLS = 2**24


@dataclass(frozen=True)
class Opinion:
    """What one network says about every row; the message to the other.

    Attributes:
        clean: (N,) float32, probability that the candidate set is sound.
        soft_labels: (sum of |S|,) float16, its prediction restricted to S.
    """

    clean: Tensor
    soft_labels: Tensor


@torch.no_grad()
def assess(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> Opinion:
    """Judge every row by one weak view: aligned prediction, max-candidate loss, mixture (METHOD: section 3, step 1)."""
    if learner.mean is None:
        learner.mean = _assess_pass(state, learner, rows, mesh, epoch, soft_labels=None, row_losses=None)
    soft_labels = torch.empty(len(rows.indices), dtype=torch.float16)
    row_losses = torch.empty(len(rows))
    learner.mean = _assess_pass(state, learner, rows, mesh, epoch, soft_labels, row_losses)

    low, high = -mesh.team_max(-row_losses.min()), mesh.team_max(row_losses.max())
    newest = purify.normalise_losses(row_losses, low, high).to(torch.float16)
    learner.losses = torch.cat([learner.losses[1:], newest[None]])
    averaged = learner.losses.float().nanmean(dim=0)
    parts = mesh.team_concat(averaged)
    clean = purify.clean_probability(torch.cat(parts), stream(state.seed, "mixture") % 2**31)
    before = sum(map(len, parts[: mesh.replica]))
    clean = clean[before : before + len(rows)].float()
    return Opinion(torch.where(rows.trusted, 1.0, clean), soft_labels)


def _assess_pass(
    state: State,
    learner: Learner,
    rows: Rows,
    mesh: Mesh,
    epoch: int,
    soft_labels: Tensor | None,
    row_losses: Tensor | None,
) -> Tensor:
    """One pass over the rows; fills `soft_labels` and `row_losses` unless None; returns the team's mean prediction."""
    total = torch.zeros(rows.num_classes, dtype=torch.float64, device=mesh.device)
    purpose = stream(state.seed, "assess", learner.network, epoch)
    learner.student.eval()
    batch_size = min(ASSESS_BATCH, max(1, ASSESS_CELLS.get(mesh.device.type, ACCELERATOR_CELLS) // rows.num_classes))
    for index in torch.arange(len(rows)).split(batch_size):
        views = weak_view(state, rows.take(index, mesh.device), purpose, rows.numbers[index])
        with state.autocast():
            logits = learner.student.classify(views)
        probs = logits.softmax(dim=1)
        total += probs.sum(0)
        if soft_labels is None or row_losses is None or learner.mean is None:
            continue
        candidates = rows.candidates(index, mesh.device)
        aligned = purify.align(probs, learner.mean, state.prior)
        weights = rows.weights_of(index, mesh.device)
        row_losses[index] = purify.candidate_loss(aligned, candidates, weights=weights).cpu()
        position, values = rows.gather(index, purify.restrict(aligned, candidates, weights=weights))
        soft_labels[position] = values.to(torch.float16)
    learner.student.train()
    sums = mesh.team_sum(torch.cat([total, total.new_tensor([len(rows)])]))
    return (sums[:-1] / sums[-1]).float()


def swap_opinions(own: dict[int, Opinion], mesh: Mesh) -> dict[int, Opinion]:
    """Each network gets the other's opinion: O(sum of |S|) numbers, once an epoch (METHOD: section 3, step 2)."""
    clean = mesh.swap({network: opinion.clean for network, opinion in own.items()})
    soft_labels = mesh.swap({network: opinion.soft_labels for network, opinion in own.items()})
    return {network: Opinion(clean[network], soft_labels[network]) for network in own}


def opinion_metrics(
    state: State, own: dict[int, Opinion], others: dict[int, Opinion], rows: Rows, mesh: Mesh
) -> dict[str, float]:
    """What both networks think of the rows, in shares of them; renews `Learner.choices`.

    `clean/a`, `clean/b`: found sound; `agreement`: of one label; `churn/a`, `churn/b`: of another label than in the
    assessment before, absent in the first.
    """
    counts: dict[int, Tensor] = {}
    for learner in state.learners:
        labels = _choices(own[learner.network].soft_labels, rows)
        same = (labels == _choices(others[learner.network].soft_labels, rows)).sum()
        sound = (own[learner.network].clean > state.method.clean_threshold).sum()
        known = learner.choices >= 0
        changed = (known & (labels != learner.choices)).sum()
        row_counts = [sound, same, changed, known.sum(), torch.tensor(len(rows))]
        counts[learner.network] = mesh.team_sum(torch.stack(row_counts))
        learner.choices = labels
    both = counts | {1 - network: theirs for network, theirs in mesh.swap(counts).items()}
    figures: dict[str, float] = {}
    for network, name in enumerate(NETWORKS):
        sound, same, changed, known, total = both[network].tolist()
        figures[metrics.of(metrics.CLEAN, name)] = sound / total
        figures[metrics.AGREEMENT] = same / total
        if known:
            figures[metrics.of(metrics.CHURN, name)] = changed / known
    return figures


def _choices(soft_labels: Tensor, rows: Rows) -> Tensor:
    """Where in each row's set its likeliest candidate lies, the first of equals: (sum of |S|,) -> (N,) int32."""
    owner = torch.repeat_interleave(torch.arange(len(rows)), rows.sizes)
    peak = torch.zeros(len(rows)).scatter_reduce(0, owner, soft_labels.float(), "amax")
    place = torch.arange(len(soft_labels)) - rows.indptr[owner]
    place = torch.where(soft_labels.float() == peak[owner], place, rows.num_classes)
    return torch.full((len(rows),), rows.num_classes).scatter_reduce(0, owner, place, "amin").int()
