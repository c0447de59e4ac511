"""The label model's fitting: EM by sums of blocks, and the verdict whether to believe it. PURE: torch only.

`fit` is the whole of it, on one machine or many: it is handed a survey of the voters and a function that adds up the
sums of all blocks, and holds nothing that grows with the rows. What is believed, and why, stands in `label_model.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from coreg_ray.pure.label_model import TINY, LabelModel, Sums
from coreg_ray.pure.voters import Survey

ROUNDS, TOLERANCE = 40, 1e-3  # EM stops where no voter's answers change by more than this share of them
TOLERATED = 0.0025  # of the rows may be moved for a reason that is not the class
OWN, UNIFORM = 0.5, 0.25  # of a voter's confusions in the rounds; of the prior
LARGEST_TABLE = 4_000_000  # numbers V K^2; beyond, one accuracy a class
FEWEST_ROWS = 5  # a class; with fewer, one accuracy a class
FEWEST_VOTERS = 3  # of two that differ nobody can tell who is right


def fit(survey: Survey, count: Callable[[LabelModel], Sums]) -> LabelModel:
    """The whole fitting. `count(model)` adds up `block_sums(block, model)` over all blocks, wherever they lie."""
    model = begin(survey)
    if model.trusted:
        model = maximise(count(model), model)
        for _ in range(ROUNDS):
            sums, before = count(model), model
            model = maximise(sums, model)
            if _change(before, model) < TOLERANCE:
                break
        model = judged(survey, sums, model)
    model = replace(model, stage="settled")
    return maximise(count(model), model)


def begin(survey: Survey) -> LabelModel:
    """The model before anything is counted: it believes the votes, voters who say the same counted once."""
    voters, classes = survey.votes.shape
    dense = voters * classes**2 <= LARGEST_TABLE and survey.voted_rows >= FEWEST_ROWS * classes
    shares = survey.shares()
    different = float(shares[survey.votes.sum(1) > 0].sum())
    told = different > FEWEST_VOTERS - 0.5
    reason = "" if told else "can tell nothing and leaves the votes as they are: fewer than three different voters"
    return LabelModel(
        stage="votes",
        shares=shares,
        prior=torch.full((classes,), 1 / classes, dtype=torch.float64),
        accuracy=torch.full((voters,), 1 / classes, dtype=torch.float64),
        table=torch.full((voters, classes, classes) if dense else (voters, classes), 1 / classes, dtype=torch.float64),
        trusted=told,
        reason=reason,
    )


def maximise(sums: Sums, model: LabelModel) -> LabelModel:
    """The model that the sums say, one stage on: the M step, with one vote in mind spread evenly over all answers."""
    classes = len(model.prior)
    last = model.stage == "settled"
    own = 1.0 if last else OWN
    prior = model.prior
    if not last or not model.trusted:
        prior = (1 - UNIFORM) * sums.classes / sums.rows.clamp_min(1) + UNIFORM / classes
        prior = prior / prior.sum()
    hits = sums.counts.diagonal(dim1=1, dim2=2) if model.table.ndim == 3 else sums.counts[:, :, 0]  # (V, K)
    cast = sums.counts.sum(dim=2)  # (V, K)
    accuracy = ((hits.sum(1) + 1 / classes) / (cast.sum(1) + 1))[:, None]  # (V, 1)
    if model.table.ndim == 2:
        table = own * (hits + 1 / classes) / (cast + 1) + (1 - own) * accuracy
    else:
        single = ((1 - accuracy) / (classes - 1))[:, :, None].expand_as(sums.counts).clone()
        single.diagonal(dim1=1, dim2=2)[:] = accuracy
        table = own * (sums.counts + 1 / classes) / (cast + 1)[:, :, None] + (1 - own) * single
    believed = sums.believed / sums.cast.clamp_min(1)
    return replace(model, stage="done" if last else "rounds", prior=prior, table=table, accuracy=believed)


def judged(survey: Survey, sums: Sums, model: LabelModel) -> LabelModel:
    """Whether the model's answers or the plain votes are believed, decided from the last round's sums.

    Plain votes are safe however voters depend on one another; the model is better only where they err independently
    within a class. That shows: `unexplained`, the agreement of pairs beyond the model's, as a share of what it leaves
    possible and less two standard errors, is about how much of what it takes for evidence is something else. Of the
    rows that it moves away from the most votes, that share is moved wrongly; a quarter of a percent is tolerated.
    """
    unexplained, moved = unexplained_agreement(survey, sums, model), float(sums.moved / sums.rows.clamp_min(1))
    if unexplained * moved <= TOLERATED:
        return model
    reason = (
        f"is not believed and leaves the votes as they are: it would move {moved:.1%} of the images, "
        f"and of the voters' agreement it leaves {unexplained:.1%} unexplained"
    )
    return replace(model, trusted=False, reason=reason)


def unexplained_agreement(survey: Survey, sums: Sums, model: LabelModel) -> float:
    """Agreement of pairs beyond the model's, 0 .. 1: (observed - implied - 2 standard errors) / (1 - implied)."""
    pairs = survey.both.to(torch.float64) * model.shares[:, None] * model.shares
    pairs.fill_diagonal_(0.0)
    if float(pairs.sum()) <= 0 or float(sums.paired) < 2:
        return 0.0
    implied = float((pairs * model.agreement()).sum() / pairs.sum())
    seen = survey.same.to(torch.float64) / survey.both.clamp_min(1)
    observed = float((pairs * seen).sum() / pairs.sum())
    mean = float(sums.agreed / sums.paired)
    variance = max(float(sums.agreed_squared / sums.paired) - mean**2, 0.0)
    error = (variance / float(sums.paired)) ** 0.5
    return max(observed - implied - 2 * error, 0.0) / max(1 - implied, TINY)


def _change(before: LabelModel, after: LabelModel) -> float:
    """The largest share of any voter's answers that the two models disagree about."""
    apart = (after.table - before.table).abs()
    apart = apart.sum(dim=2) / 2 if apart.ndim == 3 else apart
    return float((apart @ after.prior).max())
