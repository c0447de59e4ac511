"""Candidate sets: from prompt probabilities or votes to the few classes a row may belong to (METHOD section 1).

What differs from the paper: figures about the votes need no labels; a chat model's "no vote" is a value, -1; sets
travel ragged, never as N x K.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

MODES = ("union", "single", "top_k", "threshold", "ratio", "cumulative")
NO_VOTE = -1
_MASS_TOLERANCE = 1e-6  # a float32 sum of K probabilities misses its true value by about this much


def candidate_sets(
    probs: Tensor,
    mode: str = "union",
    *,
    k: int = 5,
    threshold: float = 0.1,
    ratio: float = 0.5,
    mass: float = 0.9,
) -> Tensor:
    """The candidate set of every row (METHOD section 1).

    `union` takes the best class of each prompt. The other modes work on the mean over prompts: `single` its best class,
    `top_k` its k best, `threshold` all that reach `threshold` and always the best, `ratio` all that reach `ratio` times
    the best but at most k, `cumulative` the fewest classes that reach `mass` (within 1e-6). Of equals the lower class
    number comes first.

    Args:
        probs: (N, P, K) float, one distribution over K classes for each of P prompts.

    Returns:
        (N, K) bool; no row is empty.

    Raises:
        ValueError: unknown mode, a setting outside its range, or `probs` without three dimensions, prompts and classes.
    """
    _check_settings(mode, k, threshold, ratio, mass)
    if probs.ndim != 3 or 0 in probs.shape[1:]:
        raise ValueError(f"probs has shape {tuple(probs.shape)}; give (rows, prompts >= 1, classes >= 1)")
    chosen = torch.zeros(probs.shape[0], probs.shape[2], dtype=torch.bool, device=probs.device)
    if mode == "union":
        return chosen.scatter_(1, probs.argmax(dim=2), True)

    mean = probs.to(torch.promote_types(probs.dtype, torch.float32)).mean(dim=1)  # (N, K)
    value, order = mean.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(mean.shape[1], device=mean.device)  # (K,)
    if mode == "single":
        kept = (rank < 1).expand_as(value)
    elif mode == "top_k":
        kept = (rank < k).expand_as(value)
    elif mode == "threshold":
        kept = (value >= threshold) | (rank < 1)
    elif mode == "ratio":
        kept = (value >= ratio * value[:, :1]) & (rank < k)
    else:  # a class is needed while those before it do not reach the mass
        kept = (value.cumsum(dim=1) - value < mass - _MASS_TOLERANCE) | (rank < 1)
    return chosen.scatter_(1, order, kept)


def _check_settings(mode: str, k: int, threshold: float, ratio: float, mass: float) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} makes no candidate sets; use one of {', '.join(MODES)}")
    if k < 1:
        raise ValueError(f"k={k} leaves candidate sets empty; use 1 or more")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} is no probability; use a number from 0 to 1")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio} is no share of the best probability; use a number from 0 to 1")
    if not 0 < mass <= 1:
        raise ValueError(f"mass={mass} is no share of the whole; use a number above 0, at most 1")


def synthetic_candidates(
    labels: Tensor, classes: int, partial_rate: float, noise_rate: float, generator: torch.Generator
) -> Tensor:
    """Candidate sets for benchmarks with known truth (METHOD section 1, last point).

    Every wrong class enters with probability `partial_rate`; then with probability `noise_rate` the truth leaves and
    one class that was not in the set, any with equal chance, takes its place. A set of all classes is left alone.

    Args:
        labels: (N,) int, 0 .. classes - 1.
        generator: draws on its own device; the result lies on the device of `labels`.

    Returns:
        (N, classes) bool; no row is empty.

    Raises:
        ValueError: a rate outside 0 .. 1, no class, or a label outside the classes.
    """
    for name, rate in (("partial_rate", partial_rate), ("noise_rate", noise_rate)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name}={rate} is no probability; use a number from 0 to 1")
    if classes < 1:
        raise ValueError(f"classes={classes} leaves nothing to choose from; use 1 or more")
    _check_range("labels", labels, 0, classes)

    rows, device = labels.shape[0], generator.device
    truth = labels.to(device, torch.int64)[:, None]  # (N, 1)
    chosen = torch.rand(rows, classes, generator=generator, device=device) < partial_rate
    chosen.scatter_(1, truth, True)
    swapped = torch.rand(rows, 1, generator=generator, device=device) < noise_rate
    swapped &= ~chosen.all(dim=1, keepdim=True)
    lots = torch.rand(rows, classes, generator=generator, device=device).masked_fill_(chosen, -1.0)
    newcomer = lots.argmax(dim=1, keepdim=True)  # the highest lot among the classes outside the set
    # In a row that is left alone the "newcomer" is a member or stays out; `swapped` keeps the set as it is either way.
    chosen.scatter_(1, newcomer, chosen.gather(1, newcomer) | swapped)
    chosen.scatter_(1, truth, ~swapped)
    return chosen.to(labels.device)


def to_ragged(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) bool -> classes (sum of |S|,) int32 row after row in rising order, and counts |S| (B,) int64."""
    return candidates.nonzero()[:, 1].to(torch.int32), candidates.sum(dim=1)


def from_ragged(classes: Tensor, counts: Tensor, num_classes: int) -> Tensor:
    """The inverse of `to_ragged`: classes (M,) int, counts (B,) int summing to M -> (B, num_classes) bool.

    Raises:
        ValueError: counts that do not sum to M, or a class outside 0 .. num_classes - 1. Checked on the CPU only,
            because a GPU would have to wait for the answer inside a training step.
    """
    if classes.device.type == "cpu":
        if int(counts.sum()) != classes.shape[0]:
            raise ValueError(f"counts sum to {int(counts.sum())}, not to the {classes.shape[0]} classes given")
        _check_range("classes", classes, 0, num_classes)
    row = torch.arange(counts.shape[0], device=classes.device)
    row = row.repeat_interleave(counts, output_size=classes.shape[0])
    chosen = torch.zeros(counts.shape[0] * num_classes, dtype=torch.bool, device=classes.device)
    chosen.scatter_(0, row * num_classes + classes, True)
    return chosen.view(counts.shape[0], num_classes)


def combine_votes(votes: Tensor, num_classes: int) -> Tensor:
    """The union of a row's votes (METHOD section 1): votes (N, P) int, -1 for "no vote" -> (N, num_classes) bool.

    Votes of several annotators stand side by side along P. A row without any vote gets all classes: it excludes
    nothing, and the warm-up loss leaves it out (|S| < K).

    Raises:
        ValueError: a vote outside -1 .. num_classes - 1.
    """
    _check_range("votes", votes, NO_VOTE, num_classes)
    chosen = torch.zeros(votes.shape[0], num_classes + 1, dtype=torch.bool, device=votes.device)
    chosen.scatter_(1, votes.to(torch.int64) + 1, True)  # column 0 collects the missing votes
    union = chosen[:, 1:]
    return union | ~union.any(dim=1, keepdim=True)


def votes_per_class(votes: Tensor, num_classes: int) -> Tensor:
    """How often each class was voted for: votes (N, P) int, -1 for "no vote" -> (num_classes,) int64.

    Raises:
        ValueError: a vote outside -1 .. num_classes - 1.
    """
    _check_range("votes", votes, NO_VOTE, num_classes)
    return torch.bincount(votes.flatten().to(torch.int64) + 1, minlength=num_classes + 1)[1:]


def quality(votes: Tensor, num_classes: int, labels: Tensor | None = None) -> dict[str, Any]:
    """The figures of `Quality.summary` for votes (N, P) int held in one piece; labels (N,) int are never needed."""
    figures = Quality(num_classes, votes.shape[1])
    figures.update(votes, labels)
    return figures.summary()


@dataclass(eq=False)
class Quality:
    """Counts behind the quality figures of an annotation (METHOD section 1); blocks are counted apart, then added."""

    num_classes: int
    num_prompts: int
    rows: int = field(default=0, init=False)
    voted_rows: int = field(default=0, init=False)  # with at least one vote; the figures on sets are about these
    candidates: int = field(default=0, init=False)  # sum of |S|
    singletons: int = field(default=0, init=False)
    pairs: int = field(default=0, init=False)  # two prompts that both voted on one row
    agreeing_pairs: int = field(default=0, init=False)
    class_votes: Tensor = field(init=False)  # (K,) int64
    labelled_rows: int = field(default=0, init=False)
    judged_rows: int = field(default=0, init=False)  # labelled and voted on
    covered_rows: int = field(default=0, init=False)  # labelled and the truth in S
    prompt_hits: Tensor = field(init=False)  # (P,) int64

    def __post_init__(self) -> None:
        self.class_votes = torch.zeros(self.num_classes, dtype=torch.int64)
        self.prompt_hits = torch.zeros(self.num_prompts, dtype=torch.int64)

    def update(self, votes: Tensor, labels: Tensor | None = None) -> None:
        """Count a block: votes (N, P) int, -1 for "no vote"; labels (N,) int, -1 for unknown.

        Raises:
            ValueError: another number of prompts, a vote or label outside the classes, or not one label a row.
        """
        if votes.ndim != 2 or votes.shape[1] != self.num_prompts:
            raise ValueError(f"votes has shape {tuple(votes.shape)}; give (rows, {self.num_prompts} prompts)")
        if labels is not None:
            if labels.shape != votes.shape[:1]:
                raise ValueError(f"labels has shape {tuple(labels.shape)}; give ({votes.shape[0]},), -1 where unknown")
            _check_range("labels", labels, -1, self.num_classes)
        self.class_votes += votes_per_class(votes, self.num_classes).cpu()
        voted = votes != NO_VOTE
        any_vote = voted.any(dim=1)
        ordered = votes.sort(dim=1).values
        first = ordered != NO_VOTE  # the first of each run of equal votes
        first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        size = first.sum(dim=1)  # |S|
        self.rows += votes.shape[0]
        self.voted_rows += int(any_vote.sum())
        self.candidates += int(size.sum())
        self.singletons += int((size == 1).sum())
        for distance in range(1, self.num_prompts):
            both = voted[:, distance:] & voted[:, :-distance]
            self.pairs += int(both.sum())
            self.agreeing_pairs += int((both & (votes[:, distance:] == votes[:, :-distance])).sum())
        if labels is not None:
            known = labels >= 0
            hit = (votes == labels[:, None]) & known[:, None]
            self.labelled_rows += int(known.sum())
            self.judged_rows += int((known & any_vote).sum())
            self.covered_rows += int(hit.any(dim=1).sum())
            self.prompt_hits += hit.sum(dim=0).cpu()

    def __add__(self, other: Quality) -> Quality:
        """The counts of both; raises ValueError when classes or prompts differ in number."""
        mine, theirs = (self.num_classes, self.num_prompts), (other.num_classes, other.num_prompts)
        if mine != theirs:
            raise ValueError(f"(classes, prompts) {mine} and {theirs} cannot be added; count each annotator apart")
        total = Quality(*mine)
        for count in fields(self):
            if not count.init:  # all but the two sizes
                setattr(total, count.name, getattr(self, count.name) + getattr(other, count.name))
        return total

    def summary(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON; None where nothing was there to divide by.

        `mean_candidates` and `singletons` (a share) are about rows with a vote; `agreement` is the share of agreeing
        pairs among all pairs of prompts that both voted on a row. With labels also `prompt_accuracy` (a missing vote is
        wrong), `coverage` (truth in S, rows with a vote) and `eta` = 1 - coverage.
        """
        figures: dict[str, Any] = {
            "rows": self.rows,
            "rows_without_vote": self.rows - self.voted_rows,
            "mean_candidates": _share(self.candidates, self.voted_rows),
            "singletons": _share(self.singletons, self.voted_rows),
            "agreement": _share(self.agreeing_pairs, self.pairs),
            "votes_per_class": self.class_votes.tolist(),
            "classes_without_votes": (self.class_votes == 0).nonzero().flatten().tolist(),
        }
        if self.labelled_rows:
            figures["prompt_accuracy"] = [hits / self.labelled_rows for hits in self.prompt_hits.tolist()]
            figures["coverage"] = _share(self.covered_rows, self.judged_rows)
            figures["eta"] = _share(self.judged_rows - self.covered_rows, self.judged_rows)
        return figures


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _check_range(name: str, numbers: Tensor, low: int, high: int) -> None:
    if numbers.numel() and not (low <= int(numbers.min()) and int(numbers.max()) < high):
        span = f"{int(numbers.min())} .. {int(numbers.max())}"
        raise ValueError(f"{name} run over {span}; with {high} classes they must lie in {low} .. {high - 1}")
