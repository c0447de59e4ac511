"""The verdict on purified labels (pure/trust.py) as figures of a run, and as a sentence for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coreg_ray import metrics
from coreg_ray.pure.trust import LOST, SURER, TIED

if TYPE_CHECKING:
    from coreg_ray.pure.trust import Evidence, Reviewed


def trust_figures(evidence: Evidence | None) -> dict[str, Any]:
    """What `metrics.json` says; empty where no network was asked."""
    if evidence is None:
        return {}
    figures = {
        metrics.VOTES_IMPROVED: evidence.improved,
        metrics.TRUST_BELIEVED: evidence.believed,
        metrics.TRUST_UNSOUND: evidence.doubt,
        metrics.TRUST_AGREEMENT: evidence.agreement,
        metrics.TRUST_IMAGES: evidence.images,
        metrics.TRUST_SURENESS: evidence.sureness,
        metrics.TRUST_TIED: evidence.tied,
    }
    return {name: value for name, value in figures.items() if value is not None}


def review_figures(reviewed: Reviewed) -> dict[str, Any]:
    """What a review adds to them, and takes the place of; empty where too few images were reviewed."""
    if not reviewed.enough:
        return {}
    low, high = reviewed.gain
    figures = {metrics.TRUST_REVIEWED: reviewed.images, metrics.TRUST_GAIN_LOW: low, metrics.TRUST_GAIN_HIGH: high}
    return figures if reviewed.improved is None else {**figures, metrics.VOTES_IMPROVED: reviewed.improved}


def trust_in_words(figures: dict[str, Any]) -> str:
    """Whether labels of networks and votes together are to be trusted above those of the votes alone, and why.

    Args:
        figures: of a run, by name. Returns "" where they hold no verdict.
    """
    if metrics.VOTES_IMPROVED not in figures:
        return ""
    told, decided = _review_in_words(figures)
    return told if decided else " ".join(filter(None, (told, _labelfree_in_words(figures))))


def _review_in_words(figures: dict[str, Any]) -> tuple[str, bool]:
    """What reviewed images say, and whether that decides; "" where there were too few."""
    if metrics.TRUST_REVIEWED not in figures:
        return "", False
    low, high, count = (figures[n] for n in (metrics.TRUST_GAIN_LOW, metrics.TRUST_GAIN_HIGH, metrics.TRUST_REVIEWED))
    told = f"On the {count:,} reviewed images networks and votes together are"
    if low <= 0 <= high:
        return f"{told} between {-low:.1%} less and {high:.1%} more right than the votes alone (95 % interval).", False
    how, least, most = ("more", low, high) if low > 0 else ("less", -high, -low)
    return f"{told} {how} right than the votes alone, by {least:.1%} to {most:.1%} of them (95 % interval).", True


def _labelfree_in_words(figures: dict[str, Any]) -> str:
    """The verdict without labels and why."""
    agreement, unsound = figures.get(metrics.TRUST_AGREEMENT), figures.get(metrics.TRUST_UNSOUND)
    if agreement is None:
        return (
            "Whether networks and votes together are more right than the votes alone cannot be told, since too few "
            "images were held out (source.holdout); rely on the votes."
        )
    believed = figures[metrics.TRUST_BELIEVED]
    side = "the label model, which is believed," if believed else "the votes"
    told = f"on held-out images the networks agree with {side} for {agreement:.0%} of the surest"
    sureness = figures.get(metrics.TRUST_SURENESS, 1.0)
    if believed and agreement > SURER * sureness:
        told += f", where it claims to be right for {sureness:.0%} only"
    tied, lost = figures.get(metrics.TRUST_TIED, 0.0), (unsound or 0.0) >= LOST
    if not (believed or lost) and tied >= TIED:
        told += f", and for {tied:.0%} of all images no class has the most votes"
    elif lost or not believed:
        asked = "were never asked which candidate sets are unsound"
        told += f" and {asked}" if unsound is None else f" and find {unsound:.0%} of the candidate sets unsound"
    if figures[metrics.VOTES_IMPROVED]:
        return f"Networks and votes together are probably more right than the votes alone: {told}."
    return f"Networks and votes together are not to be trusted above the votes alone: {told}."
