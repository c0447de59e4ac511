"""Voters seen from outside: how often they vote, who repeats whom, and what is to be said of each. PURE: torch only.

Nothing here knows the truth. Counts of blocks add up, so that a survey of many blocks is made where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray.pure.label_model import LabelModel, checked_votes

COPY = 0.99  # chance-corrected agreement from which two voters are counted as one
ALIKE = 0.95  # and from which it is mentioned
_SHARED_VOTES = 20  # and half of the votes of the one who votes less: fewer tell nothing about copying
ONE_CLASS, TWICE = 0.8, 2.0  # of a voter's votes for one class, and that many times the class's share
CHANCE = 0.05  # agreement with the model beyond chance up to which a voter is no better than it


@dataclass(frozen=True, eq=False)
class Survey:
    """Votes of V voters over K classes, counted; `merge` adds blocks.

    votes (V, K), both (V, V) rows on which two voters voted, same (V, V) on which they agreed, all int64.
    """

    votes: Tensor
    both: Tensor
    same: Tensor
    rows: int
    voted_rows: int  # with at least one vote

    def merge(self, other: Survey) -> Survey:
        """The counts of both; raises ValueError when voters or classes differ in number."""
        if self.votes.shape != other.votes.shape:
            mine, theirs = tuple(self.votes.shape), tuple(other.votes.shape)
            raise ValueError(f"(voters, classes) {mine} and {theirs} cannot be added; survey the same voters")
        return Survey(
            self.votes + other.votes,
            self.both + other.both,
            self.same + other.same,
            self.rows + other.rows,
            self.voted_rows + other.voted_rows,
        )

    def agreement(self) -> Tensor:
        """(V, V) agreement of two voters beyond chance (Cohen's kappa), 0 where they share no row.

        Two who only ever name the same one class agree wholly.
        """
        habits = self.votes.to(torch.float64) / self.votes.sum(dim=1, keepdim=True).clamp_min(1)  # (V, K)
        chance = habits @ habits.T
        seen = self.same.to(torch.float64) / self.both.clamp_min(1)
        beyond = (seen - chance) / (1 - chance).clamp_min(1e-12)
        beyond = torch.where(chance > 1 - 1e-12, (seen == 1).to(torch.float64), beyond)
        return torch.where(self.both > 0, beyond, 0.0)

    def repeats(self, threshold: float) -> Tensor:
        """(V, V) bool: two voters whose agreement reaches the threshold on rows enough to tell; each repeats itself."""
        cast = self.votes.sum(dim=1)
        enough = self.both >= torch.minimum(cast[:, None], cast).div(2).clamp_min(_SHARED_VOTES)
        return (enough & (self.agreement() >= threshold)) | torch.eye(len(cast), dtype=torch.bool)

    def shares(self) -> Tensor:
        """How much of each voter counts: 1 over the number of voters who say what it says, itself included (V,).

        Copies of one voter so count as that voter. Nothing is lost where two say the same because both are right.
        """
        return 1 / self.repeats(COPY).sum(dim=1).to(torch.float64)


def survey_votes(votes: Tensor, num_classes: int) -> Survey:
    """The survey of a block: votes (N, V) int, -1 for "no vote".

    Raises:
        ValueError: no voter, fewer than two classes, or a vote outside -1 .. num_classes - 1.
    """
    if num_classes < 2:
        raise ValueError(f"{num_classes} class leaves nothing to tell apart; give 2 or more")
    if votes.ndim != 2 or not votes.shape[1]:
        raise ValueError(f"votes has shape {tuple(votes.shape)}; give (rows, voters >= 1)")
    votes = checked_votes(votes, votes.shape[1], num_classes)
    voted = votes >= 0
    cast = [(column + 1).bincount(minlength=num_classes + 1)[1:] for column in votes.T]
    both, same = [], []
    for vote, cast_here in zip(votes.T, voted.T, strict=True):
        shared = voted & cast_here[:, None]
        both.append(shared.sum(dim=0))
        same.append((shared & (votes == vote[:, None])).sum(dim=0))
    return Survey(torch.stack(cast), torch.stack(both), torch.stack(same), len(votes), int(voted.any(dim=1).sum()))


@dataclass(frozen=True)
class Voter:
    """What the label model says of a voter: number of votes, estimated accuracy, weight (all sum to 1), a note."""

    votes: int
    accuracy: float | None  # None without a vote
    weight: float
    note: str = ""


def voters(survey: Survey, model: LabelModel, names: list[str], class_names: list[str] | None = None) -> list[Voter]:
    """One line for each voter, for `voters.csv` and the warnings.

    The weight is what a vote tells about the class (mutual information by the fitted model), times the voter's share;
    where the votes stay as they are, the share alone. Raises ValueError for another number of names.

    Args:
        class_names: K, for the notes; None: classes are numbers there.
    """
    if len(names) != len(model.shares):
        raise ValueError(f"{len(names)} names for {len(model.shares)} voters; give one each")
    cast = survey.votes.sum(dim=1)
    told = model.information() if model.trusted else torch.ones_like(model.shares)
    weight = told * model.shares * (cast > 0)
    weight = weight / weight.sum() if float(weight.sum()) > 0 else torch.zeros_like(weight)
    accuracy = model.accuracy
    lines = []
    for voter in range(len(names)):
        votes = int(cast[voter])
        notes = _notes(voter, survey, model, float(accuracy[voter]), names, class_names) if votes else ["has not voted"]
        estimate = float(accuracy[voter]) if votes else None
        lines.append(Voter(votes, estimate, float(weight[voter]), "; ".join(notes)))
    return lines


def _notes(
    voter: int, survey: Survey, model: LabelModel, accuracy: float, names: list[str], class_names: list[str] | None
) -> list[str]:
    notes = []
    habits = survey.votes[voter].to(torch.float64) / survey.votes[voter].sum()
    chance = float(habits @ model.prior)
    favourite = int(habits.argmax())
    if accuracy < chance:
        notes.append("worse than chance")
    elif accuracy - chance <= CHANCE * (1 - chance):
        notes.append("no better than chance")
    if float(habits[favourite]) >= max(ONE_CLASS, TWICE * float(model.prior[favourite])):
        shown = repr(class_names[favourite]) if class_names else f"class {favourite}"
        notes.append(f"sure of one class: {float(habits[favourite]):.0%} of its votes are for {shown}")
    agreement = survey.agreement()[voter]
    for other in survey.repeats(ALIKE)[voter].nonzero().flatten().tolist():
        if other != voter and float(agreement[other]) >= COPY:
            notes.append(f"a copy of {names[other]}: they are counted as one")
        elif other != voter:
            notes.append(f"nearly a copy of {names[other]}")
    if not model.trusted:
        notes.append(f"the label model {model.reason.partition(':')[0]}")
    return notes
