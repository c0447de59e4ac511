"""What annotators say about some images, and the file of candidate sets that is made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreg_ray.annotation.arrow import lists, write_table
from coreg_ray.ids import row_numbers
from coreg_ray.pure import candidates as sets
from coreg_ray.pure.soft_labels import largest_shares
from coreg_ray.run.storage import Folder


@dataclass(frozen=True)
class Evidence:
    """What the annotators say about n images.

    Attributes:
        image_ids: (n,) ids.
        votes: (n, P) int32, all annotators' prompts side by side, -1 for "no vote".
        mean: (n, K) float32 mean of the prompts' probabilities (chat: shares of the votes).
        similarity: (n,) float32 best similarity to a class, NaN where the annotator knows none.
        background: (n,) bool: a background text is closer than any class.
    """

    image_ids: list[str]
    votes: Tensor
    mean: Tensor
    similarity: Tensor
    background: Tensor

    @property
    def rows(self) -> NDArray[np.int64]:
        return row_numbers(self.image_ids)


def counts_of(votes: Tensor, num_classes: int) -> Tensor:
    """How many prompts voted for each class: (n, P) -> (n, K) int32."""
    counts = torch.zeros(len(votes), num_classes + 1, dtype=torch.int32)  # column 0 collects the missing votes
    return counts.scatter_add_(1, votes.long() + 1, torch.ones_like(votes))[:, 1:]


def write_sets(
    output: Folder,
    name: str,
    evidence: Evidence,
    rows: NDArray[np.int64],
    member: Tensor,
    flags: dict[str, Tensor],
    weights: NDArray[np.float16],
) -> None:
    """One file of candidate sets, ragged; votes, scores and weights belong to the candidates, in their order."""
    indices, sizes = sets.to_ragged(member)
    votes = counts_of(evidence.votes, member.shape[1])[member]
    table = pa.table(
        {
            "row": rows,
            "image_id": pa.array(evidence.image_ids, pa.string()),
            "candidates": lists(sizes.numpy(), indices.numpy()),
            "votes": lists(sizes.numpy(), votes.numpy()),
            "scores": lists(sizes.numpy(), evidence.mean[member].half().numpy()),
            "weights": lists(sizes.numpy(), weights),
            **_soft_labels(evidence.mean),
            "similarity": evidence.similarity.half().numpy(),
            "background": pa.array(evidence.background.numpy()),
            **{flag: pa.array(given.numpy()) for flag, given in flags.items()},
        }
    )
    write_table(output, f"{name}.parquet", table)


def _soft_labels(mean: Tensor) -> dict[str, pa.Array]:
    """The largest shares of each row's distribution (n, K), with their classes: columns of lists of one length."""
    classes, shares = largest_shares(mean)
    sizes = np.full(len(mean), shares.shape[1])
    return {
        "soft_classes": lists(sizes, classes.reshape(-1).numpy()),
        "soft_shares": lists(sizes, shares.reshape(-1).numpy()),
    }
