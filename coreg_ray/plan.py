"""Which rows a network sees in which step of an epoch, and how many the whole team sees then.

The team's counts are known before the epoch starts, so that every replica divides its losses by the team's rows
without asking in each step, and every replica takes the team's largest number of steps, so that no collective waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray.draws import generator, key
from coreg_ray.mesh import Mesh
from coreg_ray.rows import Rows


@dataclass(frozen=True)
class Plan:
    """One network's epoch on one replica.

    Attributes:
        labelled, unlabelled: for each step the row indices of this replica's share of the batch.
        team_labelled, team_unlabelled: rows of the whole team in each step.
    """

    labelled: list[Tensor]
    unlabelled: list[Tensor]
    team_labelled: list[int]
    team_unlabelled: list[int]

    @property
    def steps(self) -> int:
        return len(self.labelled)

    def rounds(self, count: int) -> list[range]:
        """The steps cut into `count` contiguous rounds whose sizes differ by at most one; some may be empty."""
        edges = [self.steps * i // count for i in range(count + 1)]
        return [range(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def warmup_plan(rows: Rows, seed: int, network: int, epoch: int, batch_size: int, mesh: Mesh) -> Plan:
    """Every row once in random order; `labelled` holds the batches, `team_labelled` counts their informative rows.

    `team_unlabelled` counts all rows: the two terms of the warm-up loss have different denominators.
    """
    order = torch.randperm(len(rows), generator=_order(seed, "warm-up", network, epoch, mesh))
    share = -(-batch_size // mesh.replicas)
    steps = _team_steps(len(order), share, mesh)
    batches = [order[share * s : share * (s + 1)] for s in range(steps)]
    sizes = rows.offsets[1:] - rows.offsets[:-1]
    informative = [int((sizes[batch] < rows.num_classes).sum()) for batch in batches]
    labelled, everything = _team_counts(informative, [len(batch) for batch in batches], mesh)
    return Plan(batches, [order[:0]] * steps, labelled, everything)


def coreg_plan(
    rows: Rows,
    clean: Tensor,
    threshold: float,
    trusted_share: float,
    seed: int,
    network: int,
    epoch: int,
    batch_size: int,
    mesh: Mesh,
) -> Plan:
    """ceil(labelled / B) steps of B labelled rows without replacement and B unlabelled ones from a cycled permutation.

    Trusted rows (manual labels) fill `trusted_share` of each labelled batch from a cycled permutation of their own. The
    plan has no step where nobody in the team has a labelled row (METHOD: section 3, step 3, and section 7).

    Args:
        clean: (N,) clean probabilities in the other network's opinion.
    """
    random = _order(seed, "co-regularise", network, epoch, mesh)
    is_clean = clean > threshold
    labelled = _shuffled(is_clean & ~rows.trusted, random)
    trusted = _shuffled(rows.trusted, random)
    unlabelled = _shuffled(~is_clean & ~rows.trusted, random)
    share = -(-batch_size // mesh.replicas)
    of_trusted = min(round(trusted_share * share), len(trusted))
    if len(trusted) and not of_trusted:
        of_trusted = 1
    if not len(labelled):  # nothing but manual labels on the labelled side: one pass over them
        labelled, trusted, of_trusted = trusted, trusted[:0], 0
    of_labelled = max(share - of_trusted, 1)
    steps = _team_steps(len(labelled), of_labelled, mesh)
    first = [
        torch.cat([labelled[of_labelled * s : of_labelled * (s + 1)], _cycled(trusted, of_trusted, s)])
        for s in range(steps)
    ]
    second = [_cycled(unlabelled, share, s) for s in range(steps)]
    counts = _team_counts([len(batch) for batch in first], [len(batch) for batch in second], mesh)
    return Plan(first, second, *counts)


def _order(seed: int, purpose: str, network: int, epoch: int, mesh: Mesh) -> torch.Generator:
    return generator(key(seed, purpose, network, epoch, mesh.replica))


def _shuffled(mask: Tensor, random: torch.Generator) -> Tensor:
    index = torch.nonzero(mask)[:, 0]
    return index[torch.randperm(len(index), generator=random)]


def _cycled(index: Tensor, count: int, step: int) -> Tensor:
    """Batch number `step` of `count` rows from an endless repetition of `index`, never a row twice in one batch."""
    if len(index) <= count:
        return index
    return index[(torch.arange(count) + step * count) % len(index)]


def _team_steps(rows: int, share: int, mesh: Mesh) -> int:
    return int(mesh.team_max(torch.tensor(-(-rows // share))))


def _team_counts(first: list[int], second: list[int], mesh: Mesh) -> tuple[list[int], list[int]]:
    counts = mesh.team_sum(torch.tensor([first, second], dtype=torch.int64))
    labelled, unlabelled = counts.tolist()
    return labelled, unlabelled
