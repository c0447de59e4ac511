"""What candidate sets are known by: a fingerprint over all that decides them, and a mark over the sets themselves.

A run that was trained is bound to its sets by the fingerprint, so that other manual labels or votes are not passed
over. The mark says whether sets that were made again, by another version perhaps, are still those.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.labels import Labels
from coreg_ray.config import Config
from coreg_ray.ids import fingerprint, keys
from coreg_ray.run.records import CandidateManifest
from coreg_ray.run.storage import Folder


def decided_by(config: Config, cards: Sequence[Card], manual: Labels, truth: Labels, voted: int) -> str:
    """16 hex digits over all that decides the candidate sets of a pool.

    Args:
        cards: of the annotators, with the classes, and the prompts that count. manual: labels that are trusted. truth:
            those that synthetic sets are made of. voted: `mark_of_votes`, added up over the images that have a set.
    """
    answers = [card.manifest()["fingerprint"] for card in cards]
    drawn = [config.seed, truth.digest()] if config.candidates.mode == "synthetic" else None
    return fingerprint(answers, config.candidates.model_dump(), manual.digest(), drawn, digits(voted))


def mark_of_votes(image_ids: Sequence[str], votes: NDArray[np.int32]) -> int:
    """A number for n images with their votes (n, P), to be added to those of others."""
    return int(keys(image_ids, [row.tobytes().hex() for row in votes]).sum(dtype=np.uint64))


def mark_of_sets(
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    indices: NDArray[np.int32],
    told: NDArray[np.bool_] | NDArray[np.int64],
    weights: NDArray[np.float16] | None = None,
) -> int:
    """A number for n candidate sets, to be added to those of others: all that training reads of them.

    Args:
        rows: (n,) row numbers. sizes: (n,) of the sets. indices: (sum,) classes, set by set. told: (n,) what a person
            said: 1 that the candidate is right, 2 that the image is of no class, else 0. weights: (sum,) of the
            candidates; None where training reads none.
    """
    ends = np.cumsum(sizes).tolist()
    flat = np.ascontiguousarray(indices, dtype=np.int32)
    total = 0
    for row, size, end, sure in zip(rows.tolist(), sizes.tolist(), ends, told.tolist(), strict=True):
        content = row.to_bytes(8, "big") + bytes([sure]) + flat[end - size : end].tobytes()
        if weights is not None:
            content += weights[end - size : end].tobytes()
        total += int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
    return total


def mark_of_file(name: str, folder: Folder) -> int:
    """`mark_of_sets` of a file of candidate sets."""
    table = read_table(folder, name, ["row", "candidates", "trusted"]).combine_chunks()
    lists = table["candidates"].combine_chunks()
    return mark_of_sets(
        table["row"].to_numpy(),
        lists.value_lengths().to_numpy().astype(np.int64),
        lists.flatten().to_numpy(),
        table["trusted"].to_numpy(),
    )


def digits(total: int) -> str:
    """16 hex digits of a sum of marks."""
    return f"{total % 2**64:016x}"


def remembered(before: CandidateManifest | None) -> dict[str, list[str]]:
    """By the marks of all sets that there were: the fingerprints that they had; `before`: the sets made last."""
    if before is None or before.sets is None or before.fingerprint is None:
        return dict(before.known_as or {}) if before else {}
    known = before.known_as or {}
    return {**known, before.sets: list(dict.fromkeys([*known.get(before.sets, []), before.fingerprint]))}
