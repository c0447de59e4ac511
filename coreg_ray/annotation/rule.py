"""What makes candidate sets of answers where the whole pool has to be looked at first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from coreg_ray.pure import cpl
from coreg_ray.pure.label_model import LabelModel, posterior


@dataclass(frozen=True, eq=False)
class Rule:
    """What was found in the pool; nothing of it where the mode needs nothing.

    Attributes:
        model: of the voters, for mode `label_model`.
        mass, floors: bounds of mode `cpl`, floors (K,).
    """

    model: LabelModel | None = None
    mass: float = 1.0
    floors: Tensor | None = None

    def belief(self, votes: Tensor) -> Tensor | None:
        """The label model's posterior (n, K) float64 for votes (n, P); None without a model."""
        return None if self.model is None else posterior(votes, self.model)

    def cpl_sets(self, mean: Tensor) -> Tensor:
        """Candidate sets (n, K) bool of mean probabilities (n, K)."""
        assert self.floors is not None, "mode cpl looks at the pool first"
        return cpl.cpl_sets(mean, self.mass, self.floors)
