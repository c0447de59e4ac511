"""`candidates.align`: prompts' probabilities brought to wished class shares before they vote.

An annotator that favours some classes names them too often. Its probabilities are multiplied by wished shares over its
own mean over the pool, as the networks' are (`pure.purify.align`), and each prompt votes anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray.annotation.clip import TextTable, probabilities
from coreg_ray.errors import UserError
from coreg_ray.pure.purify import align
from coreg_ray.run.storage import Folder


@dataclass(frozen=True, eq=False)
class Alignment:
    """mean (K,): what an annotator gives each class over the pool, on any scale; shares (K,): what it should give."""

    mean: Tensor
    shares: Tensor


def wished_shares(given: str, num_classes: int) -> Tensor | None:
    """The class shares (K,) float64 that `candidates.align` names; None where nothing is to be aligned.

    Raises:
        UserError: a file that holds no K numbers, one that is negative, or zeros alone.
    """
    if given == "none":
        return None
    if given == "uniform":
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    try:
        folder, name = Folder.of_file(given)
        shares = torch.tensor(folder.read_json(name), dtype=torch.float64)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"candidates.align={given} is no JSON list of numbers ({error}); give none, uniform or such a file"
        ) from error
    if shares.shape != (num_classes,) or not bool((shares >= 0).all()) or not 0 < float(shares.sum()) < float("inf"):
        raise UserError(
            f"candidates.align={given} holds {shares.numel()} numbers; it needs one for each of the {num_classes} "
            "classes, none negative and not all zero"
        )
    return shares / shares.sum()


def aligned_answers(embedding: Tensor, text: TextTable, alignment: Alignment) -> tuple[Tensor, Tensor]:
    """Aligned prompt by prompt: embedding (N, D) -> votes (N, P) int32 and mean probabilities (N, K) float32."""
    votes, means = [], []
    for block in probabilities(embedding, text):
        aligned = align(block.flatten(0, 1), alignment.mean, alignment.shares).view_as(block)
        votes.append(aligned.argmax(dim=2).to(torch.int32))
        means.append(aligned.mean(dim=1))
    return torch.cat(votes), torch.cat(means)
