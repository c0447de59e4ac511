"""What each network thinks of every row, and handing it to the other (METHOD: section 3, steps 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure import purify
from coreg_ray.pure.rng import stream
from coreg_ray.pure.soft_labels import largest_shares
from coreg_ray.training.memory import kept
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Rows
from coreg_ray.training.soft import Soft
from coreg_ray.training.state import Learner, State
from coreg_ray.training.views import weak_view

ASSESS_BATCH = 1024
# Rows times classes judged at once, so that memory does not follow the number of classes. On a CPU 2 MB a tensor: with
# larger ones the heap fragments and grows with the number of rows (measured at 20,000 classes).
ASSESS_CELLS = {"cpu": 2**19}
ACCELERATOR_CELLS = 2**24


@dataclass
class Assessed:
    """What assessments leave behind, of one network; memories of methods that assess begin with it.

    Attributes:
        losses: (loss_history, N) float16, normalised losses of the last assessments, newest last, NaN where none was.
        choices: (N,) int32, where in its candidate set each row's label of the last assessment lies, -1 where none was.
        mean: (K,) mean unaligned prediction of the previous assessment, over the team; None before it, or where
            predictions are not aligned.
        sound: (N,) float16, what confident learning has found of each row's set, NaN where nobody was asked; None where
            the mixture decides.
    """

    losses: Tensor = kept("rows", unknown=torch.nan)
    choices: Tensor = kept("rows", unknown=-1)
    mean: Tensor | None = kept("team", default=None)
    sound: Tensor | None = kept("rows", unknown=torch.nan, default=None)


def unassessed(loss_history: int, rows: Rows) -> tuple[Tensor, Tensor]:
    """`losses` and `choices` of `Assessed` before the first assessment."""
    losses = torch.full((loss_history, len(rows)), torch.nan, dtype=torch.float16)
    return losses, torch.full((len(rows),), -1, dtype=torch.int32)


@dataclass(frozen=True)
class Opinion:
    """What one network says about every row; the message to the other.

    Attributes:
        clean: (N,) float32, probability that the candidate set is sound.
        soft_labels: (sum of |S|,) float16, its prediction restricted to S.
        predictions: of all classes, its largest; None where neighbours have no say. Of this replica's rows, but of the
            whole team's once it has been handed over: neighbours may be anywhere.
    """

    clean: Tensor
    soft_labels: Tensor
    predictions: Soft | None = None


@torch.no_grad()
def look(
    state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int, purpose: str = "assess"
) -> Iterator[tuple[Tensor, Tensor]]:
    """One weak view of every row in evaluation mode: row positions (B,) and predictions (B, K), batch by batch.

    The network is back in training mode after the last batch; memory does not follow the number of classes.
    """
    drawn = stream(state.seed, purpose, learner.network, epoch)
    learner.student.eval()
    batch_size = min(ASSESS_BATCH, max(1, ASSESS_CELLS.get(mesh.device.type, ACCELERATOR_CELLS) // rows.num_classes))
    for index in torch.arange(len(rows)).split(batch_size):
        views = weak_view(state, rows.take(index, mesh.device), drawn, rows.numbers[index])
        with state.autocast():
            logits = learner.student.classify(views)
        yield index, logits.softmax(dim=1)
    learner.student.train()


@torch.no_grad()
def assess(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int, *, aligned: bool = True) -> Opinion:
    """Judge every row by one weak view: aligned prediction, max-candidate loss, mixture (METHOD: section 3, step 1).

    Args:
        aligned: whether predictions are moved towards the class prior before they are judged.
    """
    memory: Assessed = learner.memory
    if aligned and memory.mean is None:
        memory.mean = _mean(state, learner, rows, mesh, epoch)
    soft_labels = torch.empty(len(rows.indices), dtype=torch.float16)
    row_losses = torch.empty(len(rows))
    total, shares = _Total(rows, mesh), []
    for index, probs in look(state, learner, rows, mesh, epoch):
        total.add(probs)
        if state.neighbours is not None:
            shares.append([part.cpu() for part in largest_shares(probs.float())])
        candidates = rows.candidates(index, mesh.device)
        judged = probs if memory.mean is None else purify.align(probs, memory.mean, state.prior)
        weights = rows.weights_of(index, mesh.device)
        row_losses[index] = purify.candidate_loss(judged, candidates, weights=weights).cpu()
        position, values = rows.gather(index, purify.restrict(judged, candidates, weights=weights))
        soft_labels[position] = values.to(torch.float16)
    if aligned:
        memory.mean = total.mean()

    low, high = -mesh.team_max(-row_losses.min()), mesh.team_max(row_losses.max())
    newest = purify.normalise_losses(row_losses, low, high).to(torch.float16)
    memory.losses = torch.cat([memory.losses[1:], newest[None]])
    averaged = memory.losses.float().nanmean(dim=0)
    predictions = Soft(*map(torch.cat, zip(*shares, strict=True))) if shares else None
    return Opinion(clean_of(averaged, state.seed, rows, mesh), soft_labels, predictions)


def clean_of(row_losses: Tensor, seed: int, rows: Rows, mesh: Mesh) -> Tensor:
    """The mixture's clean probability of this replica's rows (N,) from the whole team's losses; 1 of trusted rows."""
    parts = mesh.team_concat(row_losses)
    clean = purify.clean_probability(torch.cat(parts), stream(seed, "mixture") % 2**31)
    before = sum(map(len, parts[: mesh.replica]))
    return torch.where(rows.trusted, 1.0, clean[before : before + len(rows)].float())


def soundness(state: State, row_losses: Tensor, rows: Rows, mesh: Mesh) -> tuple[float, float]:
    """The share of the team's rows that are found sound, and the expected share of wrong sets among untrusted rows.

    Args:
        row_losses: (N,), of any scale; NaN where a row was never seen, which counts as sound.
    """
    seen = row_losses.float().nan_to_num(nan=0.0)
    low, high = -mesh.team_max(-seen.min()), mesh.team_max(seen.max())
    clean = clean_of(purify.normalise_losses(seen, low, high), state.seed, rows, mesh).double()
    free = ~rows.trusted
    sound = (clean > state.method.clean_threshold).sum()
    sums = mesh.team_sum(torch.stack([sound, torch.tensor(len(rows)), clean[free].sum(), free.sum()]))
    sound_rows, total, clean_free, num_free = sums.tolist()
    return sound_rows / max(total, 1), 1 - clean_free / num_free if num_free else 0.0


class _Total:
    """A sum of predictions on the way to the team's mean."""

    def __init__(self, rows: Rows, mesh: Mesh) -> None:
        self.sum = torch.zeros(rows.num_classes, dtype=torch.float64, device=mesh.device)
        self.rows, self.mesh = len(rows), mesh

    def add(self, probs: Tensor) -> None:
        self.sum += probs.sum(0)

    def mean(self) -> Tensor:
        """(K,) float32 over all rows of the team."""
        sums = self.mesh.team_sum(torch.cat([self.sum, self.sum.new_tensor([self.rows])]))
        return (sums[:-1] / sums[-1]).float()


def _mean(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> Tensor:
    """The team's mean unaligned prediction (K,), by a pass of its own."""
    total = _Total(rows, mesh)
    for _, probs in look(state, learner, rows, mesh, epoch):
        total.add(probs)
    return total.mean()


def swap_opinions(own: dict[int, Opinion], mesh: Mesh) -> dict[int, Opinion]:
    """Each network gets the other's opinion: O(sum of |S|) numbers, once an epoch (METHOD: section 3, step 2)."""
    clean = mesh.swap({network: opinion.clean for network, opinion in own.items()})
    soft_labels = mesh.swap({network: opinion.soft_labels for network, opinion in own.items()})
    predictions = _of_the_team(own, mesh)
    return {network: Opinion(clean[network], soft_labels[network], predictions.get(network)) for network in own}


def _of_the_team(own: dict[int, Opinion], mesh: Mesh) -> dict[int, Soft]:
    """For each network what the other predicts of all rows of the team; empty where neighbours have no say."""
    of_both = {network: one.predictions for network, one in own.items() if one.predictions is not None}
    if not of_both:
        return {}
    classes = mesh.swap({network: one.classes for network, one in of_both.items()})
    shares = mesh.swap({network: one.shares for network, one in of_both.items()})
    return {
        network: Soft(*(torch.cat(mesh.team_concat(part[network])) for part in (classes, shares)))
        for network in of_both
    }


def opinion_metrics(
    state: State, own: dict[int, Opinion], others: dict[int, Opinion], rows: Rows, mesh: Mesh
) -> dict[str, float]:
    """What both networks think of the rows, in shares of them; renews `Assessed.choices`.

    `clean/a`, `clean/b`: found sound; `agreement`: of one label; `churn/a`, `churn/b`: of another label than in the
    assessment before, absent in the first.
    """
    counts: dict[int, Tensor] = {}
    for learner in state.learners:
        labels = _choices(own[learner.network].soft_labels, rows)
        same = (labels == _choices(others[learner.network].soft_labels, rows)).sum()
        sound = (own[learner.network].clean > state.method.clean_threshold).sum()
        memory: Assessed = learner.memory
        known = memory.choices >= 0
        changed = (known & (labels != memory.choices)).sum()
        row_counts = [sound, same, changed, known.sum(), torch.tensor(len(rows))]
        counts[learner.network] = mesh.team_sum(torch.stack(row_counts))
        memory.choices = labels
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
