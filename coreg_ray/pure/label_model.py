"""Who is worth listening to, without truth: a label model over voters (prompts, models, people). PURE: torch only.

Dawid and Skene ("Maximum likelihood estimation of observer error-rates using the EM algorithm", 1979): a confusion
matrix for every voter and the classes' shares, by EM over sums that add up block by block. What differs, and why:

1. In the rounds a voter's confusions are half its own and half what its one accuracy says. Counted in full, latent
   classes drift to where voters agree for other reasons, and a good voter among many bad ones is not found.
2. A quarter of the prior is uniform while it is estimated: a class that everybody overuses else swallows the others.
3. Voters err together. Rounds run as if they did not (a temper inside EM collapses); then confusions are counted once
   more, in full, against two thirds of the *tempered* posterior and one third of the bare votes, and read out
   tempered: evidence of n votes counts like that of n / (1 + (n - 1) / 3), the design effect of correlation 1/3. The
   prior is said once, so it is not tempered.
4. A voter who says practically what another says is counted once with it (`voters.py`).
5. A class that nobody voted for in a row is no candidate there, as in the union.
6. The model may be refused (`judged` in `label_fit.py`), by how many rows it takes from the most votes and how much
   agreement it leaves unexplained. The answer then is the plain votes.

On Ray the driver holds models and sums, O(V K^2); blocks of rows are counted where they lie (`block_sums`) and added.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from coreg_ray.pure.candidates import NO_VOTE, candidate_sets

DEPENDENCE = 1 / 3  # correlation of the evidence of two voters, assumed
MASS = 0.95  # of a candidate set
TINY = 1e-9  # weighted votes closer than this are a tie

Stage = Literal["votes", "rounds", "settled", "done"]


@dataclass(frozen=True, eq=False)
class LabelModel:
    """What is believed of V voters over K classes; `posterior` reads it.

    `table` (V, K, K) float64 is P(vote | class), class before vote; where that is too much, (V, K): P(vote = class).
    `prior` (K,) sums to 1, `shares` (V,) is how much of a voter each counts, `accuracy` (V,) how often it
    votes for the model's own answer; where the votes stay as they are, the mean share of the votes for its vote.
    A model that is not `trusted` leaves the votes as they are, for the `reason` given.
    """

    stage: Stage
    shares: Tensor
    prior: Tensor
    table: Tensor
    accuracy: Tensor
    trusted: bool = True
    reason: str = ""

    def information(self) -> Tensor:
        """(V,) nats that a vote tells about the class: mutual information by the model, never negative."""
        table = self.table
        if table.ndim == 2:  # the wrong answers of a class are alike: what they have in common is enough
            wrong = (1 - table) / (len(self.prior) - 1)
            habits = self.prior * table + (self.prior * wrong).sum(1, keepdim=True) - self.prior * wrong  # (V, K)
            told = self.prior * (torch.xlogy(table, table) + torch.xlogy(1 - table, wrong))
            return (told.sum(1) - torch.xlogy(habits, habits).sum(1)).clamp_min(0.0)
        habits = (self.prior[:, None] * table).sum(dim=1)
        told = self.prior * torch.xlogy(table, table).sum(dim=2)
        return (told.sum(1) - torch.xlogy(habits, habits).sum(1)).clamp_min(0.0)

    def agreement(self) -> Tensor:
        """(V, V) how often two voters agree by the model, given that they err independently within a class."""
        if self.table.ndim == 3:
            cells = self.table.flatten(start_dim=1)
            return (cells * self.prior.repeat_interleave(len(self.prior))) @ cells.T
        others = len(self.prior) - 1
        right = (self.prior * self.table) @ self.table.T
        return right + (self.prior * (1 - self.table)) @ (1 - self.table).T / others


@dataclass(frozen=True, eq=False)
class Sums:
    """What a round needs of the rows; sums of blocks are the sums of all rows (`merge`).

    `counts` is (V, K, K) as the model's table, or (V, K, 2) hits and misses. `believed` and `cast` are about each
    voter's votes; agreement is about pairs of votes in a row: its share, summed, and squared and summed, over `paired`
    rows. All float64.
    """

    counts: Tensor
    believed: Tensor  # (V,) votes for the model's own answer
    cast: Tensor  # (V,) votes
    classes: Tensor  # (K,) belief in each class, rows with votes
    rows: Tensor  # () with votes
    moved: Tensor  # () whose best class has not the most votes
    paired: Tensor  # () with two votes or more
    agreed: Tensor  # ()
    agreed_squared: Tensor  # ()

    def merge(self, other: Sums) -> Sums:
        """The sums of both blocks."""
        return Sums(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


def block_sums(votes: Tensor, model: LabelModel) -> Sums:
    """The sums of a block: votes (N, V) int, -1 for "no vote", against what the model's stage holds for the truth."""
    votes = checked_votes(votes, len(model.shares), len(model.prior))
    votes = votes[(votes != NO_VOTE).any(dim=1)]
    tally = _tally(votes, model)
    bare = tally / tally.sum(dim=1, keepdim=True).clamp_min(TINY)
    if model.stage == "votes" or not model.trusted:
        own = bare
    elif model.stage == "rounds":
        own = (_evidence(votes, model) + model.prior.log()).softmax(dim=1)
    else:
        own = _tempered(votes, model, DEPENDENCE)
    belief = (2 * own + bare) / 3 if model.stage == "settled" else own
    voted = votes != NO_VOTE
    best = own.argmax(dim=1, keepdim=True)
    agrees = bare
    if model.trusted:
        answer = torch.where(tally > 0, own, -1.0).argmax(dim=1)
        agrees = torch.nn.functional.one_hot(answer, len(model.prior)).to(torch.float64)
    most = tally.amax(dim=1, keepdim=True) - TINY
    agreed = _agreement(votes, tally, model)
    number = torch.tensor(len(votes), dtype=torch.float64)
    return Sums(
        counts=_counts(votes, belief, dense=model.table.ndim == 3),
        believed=torch.where(voted, agrees.gather(1, votes.clamp_min(0)), 0.0).sum(dim=0),
        cast=voted.sum(dim=0, dtype=torch.float64),
        classes=belief.sum(dim=0),
        rows=number,
        moved=(tally.gather(1, best) < most).sum(dtype=torch.float64),
        paired=torch.tensor(len(agreed), dtype=torch.float64),
        agreed=agreed.sum(),
        agreed_squared=agreed.square().sum(),
    )


def posterior(votes: Tensor, model: LabelModel, dependence: float = DEPENDENCE) -> Tensor:
    """The belief in each class: votes (N, V) int, -1 for "no vote" -> (N, K) float64, rows sum to 1.

    Only classes with a vote have any, except in rows without vote, which get the prior. A model that is not trusted
    gives vote shares, half of what guessing would give each class taken off: a vote that nobody seconds is weak.
    `dependence` is the correlation of two voters' evidence: 0 believes them independent, 1 counts all as one.

    Raises:
        ValueError: `dependence` outside 0 .. 1, votes outside the classes or another number of voters.
    """
    if not 0 <= dependence <= 1:
        raise ValueError(f"dependence={dependence} is no correlation of voters; use a number from 0 to 1")
    votes = checked_votes(votes, len(model.shares), len(model.prior))
    tally = _tally(votes, model)
    if model.trusted:
        belief = _tempered(votes, model, dependence)
    else:
        belief = (tally - tally.sum(dim=1, keepdim=True) / (2 * len(model.prior))).clamp_min(0.0)
    belief = torch.where(tally > 0, belief, 0.0)
    whole = belief.sum(dim=1, keepdim=True)
    return torch.where(whole > 0, belief / whole.clamp_min(torch.finfo(torch.float64).tiny), model.prior)


def sets_by_mass(belief: Tensor, votes: Tensor, mass: float = MASS) -> Tensor:
    """Candidate sets, the fewest classes that reach `mass`: belief (N, K), votes (N, V) -> (N, K) bool, none empty.

    A row without any vote gets all classes, as `combine_votes` gives it. Raises ValueError for a mass outside 0 .. 1.
    """
    sets = candidate_sets(belief[:, None, :], "cumulative", mass=mass)
    return sets | (votes == NO_VOTE).all(dim=1, keepdim=True)


def checked_votes(votes: Tensor, voters: int, classes: int) -> Tensor:
    """The votes as int64, when they are (rows, voters) of -1 .. classes - 1; raises ValueError that says what not."""
    if votes.ndim != 2 or votes.shape[1] != voters:
        raise ValueError(f"votes has shape {tuple(votes.shape)}; give (rows, {voters} voters)")
    if votes.numel() and not (int(votes.min()) >= NO_VOTE and int(votes.max()) < classes):
        span = f"{int(votes.min())} .. {int(votes.max())}"
        raise ValueError(f"votes run over {span}; with {classes} classes they lie in -1 (no vote) .. {classes - 1}")
    return votes.to(torch.int64)


def _tally(votes: Tensor, model: LabelModel) -> Tensor:
    """Votes a class, each counted by its voter's share: (N, V) -> (N, K)."""
    tally = torch.zeros(len(votes), len(model.prior) + 1, dtype=torch.float64)  # column 0 collects the missing votes
    return tally.scatter_add_(1, votes + 1, model.shares.expand(len(votes), -1))[:, 1:]


def _evidence(votes: Tensor, model: LabelModel) -> Tensor:
    """Sum over a row's votes of log P(vote | class): (N, V) -> (N, K)."""
    classes = len(model.prior)
    evidence = torch.zeros(len(votes), classes, dtype=torch.float64)
    for voter, share in enumerate(model.shares.tolist()):
        vote = votes[:, voter]
        if model.table.ndim == 3:
            answers = torch.cat([model.table[voter].T.log(), torch.zeros(1, classes, dtype=torch.float64)])  # -1: last
            evidence += share * answers[vote]
        else:
            right, wrong = model.table[voter].log(), ((1 - model.table[voter]) / (classes - 1)).log()
            voted = vote != NO_VOTE
            evidence += share * voted[:, None] * wrong
            gain = torch.where(voted, share * (right - wrong)[vote], 0.0)
            evidence.scatter_add_(1, vote.clamp_min(0)[:, None], gain[:, None])
    return evidence


def _tempered(votes: Tensor, model: LabelModel, dependence: float) -> Tensor:
    number = ((votes != NO_VOTE) * model.shares).sum(dim=1, keepdim=True)  # (N, 1)
    temper = 1 / (1 + dependence * (number - 1).clamp_min(0.0))
    return (temper * _evidence(votes, model) + model.prior.log()).softmax(dim=1)


def _counts(votes: Tensor, belief: Tensor, dense: bool) -> Tensor:
    """Belief in a class by what each voter said: (V, K, K), class before vote, or (V, K, 2) hits and misses."""
    classes = belief.shape[1]
    tables = []
    for vote in votes.T:
        if dense:
            answers = torch.zeros(classes + 1, classes, dtype=torch.float64)
            tables.append(answers.index_add_(0, vote + 1, belief)[1:].T)
            continue
        voted = vote != NO_VOTE
        right = torch.where(voted, belief.gather(1, vote.clamp_min(0)[:, None])[:, 0], 0.0)
        hits = torch.zeros(classes, dtype=torch.float64).index_add_(0, vote.clamp_min(0), right)
        tables.append(torch.stack([hits, (belief * voted[:, None]).sum(dim=0) - hits], dim=1))
    return torch.stack(tables)


def _agreement(votes: Tensor, tally: Tensor, model: LabelModel) -> Tensor:
    """Share of agreeing pairs in each row that has a pair, pairs weighted by both voters' shares: (paired,)."""
    counted = (votes != NO_VOTE) * model.shares
    alone = counted.square().sum(dim=1)
    pairs = counted.sum(dim=1).square() - alone
    paired = pairs > TINY
    return ((tally.square().sum(dim=1) - alone)[paired] / pairs[paired]).clamp(0.0, 1.0)
