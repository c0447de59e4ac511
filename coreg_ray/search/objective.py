"""What trials are compared by, and how well that ranks them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.metrics import (
    ACCURACY,
    ACCURACY_A,
    ACCURACY_B,
    APPROXIMATED,
    CANDIDATES,
    CLASSES,
    COMBINED,
    LABEL_FREE,
    STABILITY,
)

WITHOUT_LABELS = {
    COMBINED: "stability times classes",
    STABILITY: "share of weak views of images that are classified like the image itself",
    CLASSES: "how alike the class shares of predictions and of candidate sets are",
    CANDIDATES: "share of predictions that lie in their image's candidate set",
    APPROXIMATED: "share of its candidates' probability that networks give their prediction, 0 outside the set",
    LABEL_FREE: "share of held-out images on which both networks agree",
}
WITH_LABELS = {
    ACCURACY: "of both networks together on the labelled test images",
    ACCURACY_A: "of network a", ACCURACY_B: "of network b",
}  # fmt: skip
DEFAULT = COMBINED
WORST = 0.0  # of all of them, which are shares; infinities would spoil the percentiles that early stopping looks at
_SETTLED = 3  # epochs


def check_objective(objective: str, config: Config) -> None:
    """Refuse an objective that no trial of this configuration can report; all objectives are maximised.

    Raises:
        UserError: it is unknown, needs labelled test images where there are none, or needs held-out ones.
    """
    known = {**WITHOUT_LABELS, **WITH_LABELS}
    if objective not in known:
        raise UserError(f"objective={objective} is unknown; valid ones: {', '.join(known)}")
    if objective in WITH_LABELS and config.test.kind is None:
        raise UserError(
            f"objective={objective} needs labelled images, and test.kind is empty; give --test.kind and --test.path, "
            f"or an objective without labels such as {DEFAULT}"
        )
    if objective in WITHOUT_LABELS and not config.source.holdout:
        raise UserError(
            f"objective={objective} looks at held-out images, and source.holdout=0 leaves none; use 0.05, or an "
            f"objective with labels such as {ACCURACY}"
        )


def settled(values: Sequence[float]) -> float:
    """What a trial is ranked by, given its objective after every epoch: the mean of the last three.

    By a single epoch, chance decides among trials that are about as good; three of them hardly differ otherwise, the
    learning rate being low by then.
    """
    last = values[-_SETTLED:]
    return sum(last) / len(last)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation of two lists of equal length, ties at their mean rank; NaN where one is constant."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (one, other)]
    centred = [rank - rank.mean() for rank in ranks]
    norm = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm else math.nan


def spearman_interval(
    one: Sequence[float], other: Sequence[float], share: float = 0.9, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The bootstrap interval of `spearman` that holds `share` of the resampled correlations."""
    random = np.random.default_rng(seed)
    picks = random.integers(len(one), size=(rounds, len(one)))
    a, b = np.asarray(one), np.asarray(other)
    correlations = np.array([spearman(a[pick], b[pick]) for pick in picks])
    low, high = np.nanquantile(correlations, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks (N,) from 0, equal values sharing the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[group]
