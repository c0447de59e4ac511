"""The answer of a model that is not sure enough: "unknown", below a probability that it stores (threshold.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coreg_ray.errors import UserError

UNKNOWN = "unknown"  # the answer of a model that abstains


@dataclass(frozen=True)
class Abstention:
    """A rule for abstaining.

    Attributes:
        precision: share of right answers that is wished for. threshold: probability below which there is no answer.
    """

    precision: float
    threshold: float


def abstention_of(card: dict[str, Any]) -> Abstention | None:
    """The rule for abstaining that `model.json` stores; None where it stores none."""
    rule = card.get("abstain")
    return Abstention(float(rule["precision"]), float(rule["threshold"])) if rule else None


def threshold_of(rule: Abstention | None, class_names: list[str]) -> float:
    """The probability below which a model abstains.

    Raises:
        UserError: it has no rule, or a class that is called as the answer of a model that abstains.
    """
    if rule is None:
        raise UserError(
            "the model stores no threshold to abstain by (abstain in model.json); its README.md says why, and "
            "--export.abstain PRECISION asks for one when the run's command is given again"
        )
    if UNKNOWN in class_names:
        raise UserError(f"a class of the model is called {UNKNOWN}, as is the answer of one that abstains; rename it")
    return rule.threshold
