"""Which rows a network sees in which step of an epoch, and how many the whole team sees then.

The team's counts are known before the epoch starts: every replica divides its losses by the team's rows without asking
in each step. Every replica takes ceil(the team's rows / B) steps, so that no collective waits and the number of steps
does not depend on the world size, and its part of a batch is in proportion to the rows that it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from coreg_ray.pure.rng import generator, stream
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Rows


@dataclass(frozen=True)
class Plan:
    """One network's epoch on one replica.

    Attributes:
        labelled, unlabelled: for each step the row indices of this replica's part of the batch.
        team_labelled, team_unlabelled: rows of the whole team in each step.
        room: most labelled rows that any replica has in any step.
    """

    labelled: list[Tensor]
    unlabelled: list[Tensor]
    team_labelled: list[int]
    team_unlabelled: list[int]
    room: int

    @property
    def steps(self) -> int:
        return len(self.labelled)

    def rounds(self, count: int) -> list[range]:
        """The steps cut into `count` contiguous rounds whose sizes differ by at most one; some may be empty."""
        edges = [self.steps * i // count for i in range(count + 1)]
        return [range(start, stop) for start, stop in pairwise(edges)]


def whole_plan(
    rows: Rows,
    seed: int,
    network: int,
    epoch: int,
    batch_size: int,
    mesh: Mesh,
    purpose: str = "warm-up",
    seen: Tensor | None = None,
) -> Plan:
    """Every row once in random order; `labelled` holds the batches, `team_labelled` counts their informative rows.

    `team_unlabelled` counts all rows: the two terms of the warm-up loss have different denominators.

    Args:
        purpose: of the random order. seen: (N,) bool, of these rows alone; None: of all.
    """
    order = torch.randperm(len(rows), generator=_order(seed, purpose, network, epoch, mesh))
    order = order if seen is None else order[seen[order]]
    (total,) = _team_totals([len(order)], mesh)
    batches = _dealt(order, batch_size, total)
    says_something = rows.informative
    informative = [int(says_something[batch].sum()) for batch in batches]
    counts = _team_counts(informative, [len(batch) for batch in batches], mesh)
    return Plan(batches, [order[:0]] * len(batches), *counts)


def parted(plan: Plan, mask: Tensor, mesh: Mesh) -> Plan:
    """The same steps of a `whole_plan`: rows of `mask` (N,) bool on the labelled side, all others on the unlabelled."""
    first = [batch[mask[batch]] for batch in plan.labelled]
    second = [batch[~mask[batch]] for batch in plan.labelled]
    return Plan(first, second, *_team_counts([len(batch) for batch in first], [len(batch) for batch in second], mesh))


def split_plan(
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

    Trusted rows (manual labels) fill `trusted_share` of each labelled batch from a cycled permutation of their own, and
    an epoch is long enough for all of them: where they need more steps than the other labelled rows, those are cycled
    too. The plan has no step where nobody in the team has a labelled row (METHOD: section 3, step 3, and section 7).

    Args:
        clean: (N,) clean probabilities in the other network's opinion.
    """
    random = _order(seed, "co-regularise", network, epoch, mesh)
    is_clean = clean > threshold
    labelled = _shuffled(is_clean & ~rows.trusted, random)
    trusted = _shuffled(rows.trusted, random)
    unlabelled = _shuffled(~is_clean & ~rows.trusted, random)
    num_labelled, num_trusted, num_unlabelled = _team_totals([len(labelled), len(trusted), len(unlabelled)], mesh)
    of_trusted = min(max(round(trusted_share * batch_size), 1), max(batch_size - 1, 1), num_trusted)
    if not num_labelled:  # nothing but manual labels on the labelled side: one pass over them
        labelled, num_labelled, trusted, num_trusted, of_trusted = trusted, num_trusted, trusted[:0], 0, 0
    others = max(batch_size - of_trusted, 1)
    labelled_part = _part(others, len(labelled), num_labelled)
    trusted_part = _part(of_trusted, len(trusted), num_trusted)
    unlabelled_part = _part(batch_size, len(unlabelled), num_unlabelled)
    batches = _dealt(labelled, others, num_labelled)
    steps = -(-num_trusted // max(of_trusted, 1))
    if steps > len(batches):  # or the last of the manual labels would not enter this epoch
        batches = [_cycled(labelled, labelled_part, step) for step in range(steps)]
    first = [torch.cat([batch, _cycled(trusted, trusted_part, step)]) for step, batch in enumerate(batches)]
    second = [_cycled(unlabelled, unlabelled_part, step) for step in range(len(first))]
    return Plan(first, second, *_team_counts([len(batch) for batch in first], [len(batch) for batch in second], mesh))


def _order(seed: int, purpose: str, network: int, epoch: int, mesh: Mesh) -> torch.Generator:
    return generator(stream(seed, purpose, network, epoch, mesh.replica))


def _shuffled(mask: Tensor, random: torch.Generator) -> Tensor:
    index = torch.nonzero(mask)[:, 0]
    return index[torch.randperm(len(index), generator=random)]


def _cycled(index: Tensor, count: int, step: int) -> Tensor:
    """Batch number `step` of `count` rows from an endless repetition of `index`, never a row twice in one batch."""
    if len(index) <= count:
        return index
    return index[(torch.arange(count) + step * count) % len(index)]


def _part(amount: int, mine: int, total: int) -> int:
    """What one replica that has `mine` of the team's `total` rows gives to `amount`; at least one if it has any."""
    return -(-amount * mine // max(total, 1))


def _dealt(index: Tensor, batch_size: int, total: int) -> list[Tensor]:
    """This replica's consecutive parts of `index` for each of the ceil(total / batch_size) batches of its team.

    A replica that has any row has one in the first step: there it learns which parameters get a gradient.
    """
    steps = -(-total // batch_size)
    edges = [min(_part(step * batch_size, len(index), total), len(index)) for step in range(steps + 1)]
    return [index[start:stop] for start, stop in pairwise(edges)]


def _team_totals(counts: list[int], mesh: Mesh) -> list[int]:
    return [int(total) for total in mesh.team_sum(torch.tensor(counts))]


def _team_counts(first: list[int], second: list[int], mesh: Mesh) -> tuple[list[int], list[int], int]:
    """Rows of the team in each step on both sides, and the most that any replica has on the first."""
    labelled, unlabelled = mesh.team_sum(torch.tensor([first, second], dtype=torch.int64)).tolist()
    room = mesh.team_max(torch.tensor(max(first, default=0)))
    return labelled, unlabelled, int(room)
