"""What both networks thought of every row's candidate set when they were last asked, from a run's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor

from coreg_ray.ids import contains
from coreg_ray.metrics import NETWORKS
from coreg_ray.pure.purify import clean_probability, normalise_losses
from coreg_ray.run.storage import Folder
from coreg_ray.training.checkpoint import describe
from coreg_ray.training.manifest import read_file, rows_file


@dataclass(frozen=True)
class Soundness:
    """How likely both networks found it that a candidate set holds the truth (METHOD: section 3, step 1).

    Attributes:
        numbers: (N,) int64, ascending: rows that were trained on.
        clean: (2, N) float32 of networks a and b, NaN where a row was never assessed.
    """

    numbers: NDArray[np.int64]
    clean: NDArray[np.float32]

    @classmethod
    def of(cls, checkpoint: Folder) -> Soundness:
        """As of the last assessment before a whole checkpoint; of a method that assesses none, no row is known."""
        replicas = int(describe(checkpoint)["replicas"])
        numbers, clean = np.zeros(0, np.int64), []
        for network in NETWORKS:
            parts = [load_tensors(read_file(checkpoint, rows_file(network, part))) for part in range(replicas)]
            if not all({"numbers", "losses"} <= set(part) for part in parts):
                return cls(np.zeros(0, np.int64), np.zeros((2, 0), np.float32))
            known = torch.cat([part["numbers"] for part in parts])
            order = torch.argsort(known)
            losses = torch.cat([part["losses"] for part in parts], dim=-1)[..., order]
            numbers = known[order].numpy()
            probability = clean_of(losses)
            if all("sound" in part for part in parts):  # of confident learning, which goes before the mixture
                sound = torch.cat([part["sound"] for part in parts])[order].float()
                probability = torch.where(sound.isnan(), probability, sound)
            clean.append(probability.numpy())
        return cls(numbers, np.stack(clean))

    def rows(self, numbers: NDArray[np.int64]) -> Tensor:
        """(2, B) float32 for rows (B,), NaN where nothing is known."""
        if not len(self.numbers):
            return torch.full((2, len(numbers)), torch.nan)
        place = np.searchsorted(self.numbers, numbers).clip(max=len(self.numbers) - 1)
        return torch.from_numpy(np.where(contains(self.numbers, numbers), self.clean[:, place], np.float32("nan")))

    @property
    def doubt(self) -> float | None:
        """The share of candidate sets that the networks find unsound; None where they were never asked."""
        known = self.clean[~np.isnan(self.clean)]
        return 1 - float(known.mean(dtype=np.float64)) if len(known) else None


def clean_of(losses: Tensor) -> Tensor:
    """The posterior of the mixture over rows that have a loss, (N,) float32, NaN for all others.

    Args:
        losses: float16, NaN where none: (history, N) of the last assessments, which are normalised; or (N,) as they
            were when a row was last seen, of kinds that make no assessment.
    """
    averaged = losses.float().nanmean(dim=0) if losses.dim() == 2 else losses.float()
    known = ~averaged.isnan()
    if losses.dim() == 1 and known.any():
        averaged = normalise_losses(averaged, averaged[known].min(), averaged[known].max())
    clean = torch.full_like(averaged, torch.nan)
    clean[known] = clean_probability(averaged[known]).float()
    return clean
