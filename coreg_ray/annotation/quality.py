"""How far the candidate sets can be trusted: figures that need no labels, those that do, and plain warnings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from coreg_ray.pure.candidates import NO_VOTE, Quality
from coreg_ray.run.records import CandidateFigures

_MOST_CANDIDATES = 64  # in a row whose pairs are counted: 20,000 rows of 200 candidates would be 800 million pairs
_PAIRS_AT_ONCE = 2**20  # of 88 bytes each while they are counted
_BINS = 400  # of a histogram of similarities in -1 .. 1
_SWALLOWED = 0.8  # share of a class's rows that also hold the class that swallows it
_TWINS = 0.8  # share of rows that two names have in common, either way
_OUTLIER_SPREADS = 4.0  # below the median, in spreads (median to lower quartile)
_WORTH_SAYING = 0.05


@dataclass
class Score:
    """Sums over a part of the annotations; parts are added with `+`. K classes, P prompts.

    Attributes:
        quality: what the votes say.
        mass: (K,) sum of the mean probabilities, the annotator's idea of the class prior.
        sizes: [rows, sum of |S|, rows with |S| = 1] of the candidate sets as they are used.
        pairs: (K, K) sparse, rows whose set holds both classes; the diagonal counts the rows of one. Rows without a
            vote or with more than 64 candidates, which say little about any two classes, are left out of both.
        dissent: (P,) rows where a prompt votes against the most voted class.
        entropy: [sum of the entropy of votes in nats, rows].
        similarity: (400,) histogram of the best similarity.
        background: [rows closer to a background text, rows].
        right: (K,) rows of each true class that the mean gets right; `covered` (K,): whose set holds the truth;
            `labelled` (K,): all of them; `guessed` (K,): labelled rows that the mean takes for each class.
        opinions: (4,) labelled rows with a vote, those where the most votes are right, and the same of the label model.
        judged: (P,) votes on labelled rows.
        voted, chosen: marks of the votes and of the candidate sets (`set_marks`).
    """

    quality: Quality
    mass: Tensor
    sizes: Tensor
    pairs: Tensor
    dissent: Tensor
    entropy: Tensor
    similarity: Tensor
    background: Tensor
    right: Tensor
    covered: Tensor
    labelled: Tensor
    guessed: Tensor
    opinions: Tensor
    judged: Tensor
    voted: int = 0
    chosen: int = 0

    @classmethod
    def of(
        cls,
        votes: Tensor,
        mean: Tensor,
        member: Tensor,
        similarity: Tensor,
        background: Tensor,
        truth: Tensor,
        belief: Tensor | None = None,
    ) -> Score:
        """Count n images: votes (n, P), mean and member (n, K), similarity and background (n,), truth (n,) or -1.

        Args:
            belief: (n, K) the label model's, where there is one; the class prior is its mean then.
        """
        n, num_classes = mean.shape
        quality = Quality(num_classes, votes.shape[1])
        quality.update(votes, truth if (truth >= 0).any() else None)
        counts = torch.zeros(n, num_classes + 1).scatter_add_(1, votes.long() + 1, torch.ones(votes.shape))[:, 1:]
        share = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
        against = (votes != counts.argmax(dim=1, keepdim=True)) & (votes != NO_VOTE)
        size, known = member.sum(dim=1), truth >= 0
        telling = (votes != NO_VOTE).any(dim=1) & (size <= _MOST_CANDIDATES)
        true, guess = truth[known], mean[known].argmax(dim=1)
        judged = known & (votes != NO_VOTE).any(dim=1)
        rows, most = int(judged.sum()), (counts.argmax(dim=1) == truth) & judged
        modelled = (rows, int(((belief.argmax(dim=1) == truth) & judged).sum())) if belief is not None else (0, 0)
        bins = ((similarity[~similarity.isnan()] + 1) / 2 * _BINS).long().clamp(0, _BINS - 1)
        return cls(
            quality=quality,
            mass=(mean if belief is None else belief).sum(dim=0, dtype=torch.float64),
            sizes=torch.stack([torch.tensor(n), size.sum(), (size == 1).sum()]),
            pairs=_pairs(member[telling]),
            dissent=against.sum(dim=0),
            entropy=torch.stack([torch.special.entr(share).sum(dtype=torch.float64), torch.tensor(n).double()]),
            similarity=torch.bincount(bins, minlength=_BINS),
            background=torch.stack([background.sum(), torch.tensor(n)]),
            right=torch.bincount(true[true == guess], minlength=num_classes),
            covered=torch.bincount(true[member[known].gather(1, true[:, None])[:, 0]], minlength=num_classes),
            labelled=torch.bincount(true, minlength=num_classes),
            guessed=torch.bincount(guess, minlength=num_classes),
            opinions=torch.tensor([rows, int(most.sum()), *modelled]),
            judged=(votes[known] != NO_VOTE).sum(dim=0),
        )

    @classmethod
    def none(cls, prompts: int, classes: int) -> Score:
        """The sums over no image at all."""
        votes, mean, number = torch.zeros(0, prompts, dtype=torch.int32), torch.zeros(0, classes), torch.zeros(0)
        return cls.of(votes, mean, mean.bool(), number, number.bool(), number.long())

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def prior(self) -> list[float]:
        """(K,) the annotator's idea of the class shares."""
        return (self.mass / self.mass.sum().clamp(min=1e-9)).tolist()

    def figures(self, names: list[str]) -> CandidateFigures:
        """The sums as figures; with labels also accuracy and coverage, per class and per prompt."""
        rows, candidates, singletons = self.sizes.tolist()
        union = self.quality.summary()
        counted = CandidateFigures(
            **{
                **union,
                "union_mean_candidates": union["mean_candidates"],
                "mean_candidates": candidates / max(1, rows),
                "singletons": singletons / max(1, rows),
                "vote_entropy": float(self.entropy[0] / self.entropy[1].clamp(min=1)),
                "prompt_dissent": (self.dissent / max(1, rows)).tolist(),
                "swallowed_classes": self._swallowed(names),
                "outlier_share": self._outliers(),
                "background_share": float(self.background[0] / self.background[1].clamp(min=1)),
            }
        )
        total = int(self.labelled.sum())
        if not total:
            return counted
        voted, most, believed, right = self.opinions.tolist()
        each, coverage = self.labelled.clamp(min=1), int(self.covered.sum()) / total
        return replace(
            counted,
            zero_shot_accuracy=int(self.right.sum()) / total,
            zero_shot_macro_f1=self._macro_f1(),
            zero_shot_recall=_recall(self.right, self.labelled),
            class_accuracy=(self.right / each).tolist(),
            coverage=coverage,
            class_coverage=(self.covered / each).tolist(),
            eta=1 - coverage,
            union_coverage=union["coverage"],
            majority_accuracy=most / voted if voted else None,
            label_model_accuracy=right / believed if believed else None,
        )

    def voter_accuracy(self) -> list[float | None]:
        """(P,) how often each voter's votes are right where the label is known; None where none is."""
        pairs = zip(self.quality.prompt_hits.tolist(), self.judged.tolist(), strict=True)
        return [hits / votes if votes else None for hits, votes in pairs]

    def _macro_f1(self) -> float:
        """The mean F1 of the mean's guesses, over the classes that a labelled row is of or is taken for."""
        there = self.labelled + self.guessed
        return float((2 * self.right[there > 0] / there[there > 0]).double().mean())

    def _swallowed(self, names: list[str]) -> list[dict[str, Any]]:
        """Classes whose sets nearly always hold another, larger class; `twins` where it goes both ways."""
        swallowed = []
        pairs = self.pairs.coalesce()
        (one, other), both = pairs.indices(), pairs.values()
        own = torch.zeros(len(names), dtype=torch.int64).index_add_(0, one[one == other], both[one == other])
        share = both / own[one]  # of the rows that hold one, those that hold the other too
        for pair in ((share >= _SWALLOWED) & (one != other)).nonzero().flatten().tolist():
            small, large = int(one[pair]), int(other[pair])
            twins = bool(both[pair] / own[large] >= _TWINS)
            if (own[large], large) > (own[small], small):
                swallowed.append(
                    {"class": names[small], "by": names[large], "share": float(share[pair]), "twins": twins}
                )
        return swallowed

    def _outliers(self) -> float | None:
        """The share of images whose best similarity lies far below the others'; None without similarities."""
        total = int(self.similarity.sum())
        if not total:
            return None
        below = self.similarity.cumsum(0) / total
        quarter, half = (int((below >= q).nonzero()[0]) for q in (0.25, 0.5))
        limit = half - _OUTLIER_SPREADS * max(1, half - quarter)
        return float(self.similarity[: max(0, int(limit))].sum()) / total


def _recall(right: Tensor, labelled: Tensor) -> list[float | None]:
    """(K,) shares of each class's labelled rows, None where it has none."""
    return [hits / rows if rows else None for hits, rows in zip(right.tolist(), labelled.tolist(), strict=True)]


def _pairs(member: Tensor) -> Tensor:
    """(K, K) sparse int64: in how many rows of member (n, K) each two classes are; some rows at a time."""
    block = member.sum(dim=1).square().cumsum(0) // _PAIRS_AT_ONCE
    rows = block.unique_consecutive(return_counts=True)[1].tolist() or [0]
    return reduce(add, map(_pairs_of_block, member.split(rows)))


def _pairs_of_block(member: Tensor) -> Tensor:
    row, indices = member.nonzero(as_tuple=True)
    size = member.sum(dim=1)
    times = size[row]  # every candidate meets all of its row, which begin at the row's first
    one = indices.repeat_interleave(times)
    first = (size.cumsum(0) - size)[row].repeat_interleave(times)
    step = torch.arange(len(one)) - (times.cumsum(0) - times).repeat_interleave(times)
    both = torch.stack([one, indices[first + step]])
    ones, shape = torch.ones(len(one), dtype=torch.int64), (member.shape[1],) * 2
    return torch.sparse_coo_tensor(both, ones, shape, check_invariants=True).coalesce()


def warnings(
    figures: CandidateFigures, names: list[str], prompts: list[str], alike: list[tuple[str, str]], noun: str = "prompt"
) -> list[str]:
    """What a person should know before training on these candidate sets, in plain words.

    Args:
        figures: of `Score.figures`.
        alike: pairs of class names that the annotator can hardly tell apart. noun: what a prompt is called.
    """
    if not figures.rows:
        return ["no image has an answer; those that cannot be decoded are in rejects/"]
    told = []
    votes, dissent = figures.votes_per_class or [], figures.prompt_dissent or []
    top = max(range(len(names)), key=votes.__getitem__)
    if len(names) > 2 and votes[top] > sum(votes) / 2:
        told.append(
            f"{names[top]!r} takes {votes[top] / sum(votes):.0%} of all votes; the pool may not hold the other classes"
        )
    empty = figures.classes_without_votes
    if empty:
        shown = ", ".join(repr(names[number]) for number in empty[:5])
        told.append(f"nobody votes for {len(empty)} of {len(names)} classes ({shown}); they will not be learnt")
    for pair in (figures.swallowed_classes or [])[:5]:
        how = "are voted for together" if pair["twins"] else f"comes along in {pair['share']:.0%} of the sets"
        told.append(f"{pair['class']!r} is swallowed by {pair['by']!r}, which {how}; better names may part them")
    told += [f"{one!r} and {other!r} look like two names of one class" for one, other in alike[:5]]
    if figures.agreement is not None and len(prompts) > 1 and figures.agreement < 0.3:
        who = "the model" if noun == "prompt" else "they"
        told.append(f"{noun}s agree in {figures.agreement:.0%} of the cases; {who} may not know these classes")
    if (figures.mean_candidates or 0) > len(names) / 2 and len(names) > 2:
        left = f"{figures.mean_candidates:.1f} of {len(names)} classes"
        told.append(f"{left} stay possible on average; there is little to learn from such sets")
    worst = max(range(len(prompts)), key=dissent.__getitem__) if prompts else 0
    usual = sorted(dissent)[len(prompts) // 2] if prompts else 0
    if prompts and dissent[worst] > max(0.2, 3 * usual):
        told.append(f"{noun} {prompts[worst]!r} contradicts the others on {dissent[worst]:.0%} of the images")
    for share, meaning in (
        (figures.outlier_share, "resemble no class"),
        (figures.background_share, "are closer to a background text"),
    ):
        if (share or 0) > _WORTH_SAYING:
            told.append(f"{share:.0%} of the images {meaning} and may belong to none")
    if figures.rows_without_vote > _WORTH_SAYING * figures.rows:
        told.append(f"{figures.rows_without_vote / figures.rows:.0%} of the images got no vote at all")
    return told
