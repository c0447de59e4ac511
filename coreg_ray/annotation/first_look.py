"""What has to be known of a whole pool before candidate sets are made of it: votes, mean probabilities, a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreg_ray.annotation.candidate_builder import Making, read_evidence
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.clip import TextTable
from coreg_ray.annotation.parts import Part
from coreg_ray.run.storage import Folder

ROWS_AT_ONCE = 16_384  # votes of so many images are a block
_NUMBERS_AT_ONCE = 2**22  # images x classes in float64: 32 MB, of which a block's sums take several


def rows_at_once(num_classes: int) -> int:
    """How many images a block of votes has, about."""
    return max(256, min(ROWS_AT_ONCE, _NUMBERS_AT_ONCE // num_classes))


def count_rows(part: Part, folder: Folder) -> int:
    """How many rows a part has, from its footer."""
    with folder.filesystem.open_input_file(f"{folder.path}/{part.name}") as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def read_votes(
    some: Sequence[Part],
    folder: Folder,
    card: Card,
    text: TextTable | None,
    making: Making,
    places: Sequence[int] | None,
) -> NDArray[np.signedinteger]:
    """The votes (n, P) of one annotator in some parts of its table, those that count; small integers.

    Arguments as `candidate_builder.read_evidence` takes them.
    """
    votes = [read_evidence(part, folder, card, text, making, places).votes for part in some]
    return compact(torch.cat(votes), len(card.names))


def compact(votes: Tensor, num_classes: int) -> NDArray[np.signedinteger]:
    """Votes (n, P) in as few bytes as the classes need."""
    kind = np.int8 if num_classes <= np.iinfo(np.int8).max else np.int16 if num_classes <= 2**15 - 1 else np.int32
    return votes.numpy().astype(kind)


def mass_of_part(
    part: Part, folder: Folder, card: Card, text: TextTable | None, making: Making, places: Sequence[int] | None
) -> Tensor:
    """(K,) float64 sum of the mean probabilities of one part; arguments as `read_votes` takes them."""
    return read_evidence(part, folder, card, text, making, places).mean.sum(dim=0, dtype=torch.float64)


def sample_of_part(
    part: Part, folder: Folder, card: Card, text: TextTable | None, making: Making, places: Sequence[int] | None
) -> NDArray[np.float16]:
    """(n, K) mean probabilities of one part; arguments as `read_votes` takes them."""
    return read_evidence(part, folder, card, text, making, places).mean.half().numpy()
