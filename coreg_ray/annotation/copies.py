"""Exact copies of an image whose votes differ: of two such answers at least one is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import matrix, read_table
from coreg_ray.annotation.parts import Part
from coreg_ray.run.storage import Folder

_NAMED = 3


@dataclass(frozen=True)
class Copies:
    """Images of one annotator's table that are copies of others, to the byte, and whose votes differ from theirs.

    Attributes:
        images: how many images have such a copy. groups: different pictures among them.
        named: the ids of two of them, for a few pictures.
    """

    images: int
    groups: int
    named: list[tuple[str, str]]

    def warning(self) -> str | None:
        """In plain words; None where there are none."""
        if not self.images:
            return None
        shown = "; ".join(f"{one!r} and {other!r}" for one, other in self.named)
        return (
            f"{self.images} images are exact copies of others and have other votes than they ({self.groups} different "
            f"pictures, for example {shown}); at most one answer of each can be right"
        )


def marks(parts: Sequence[Part], folder: Folder, places: Sequence[int] | None = None) -> NDArray[np.uint64]:
    """(N, 2) of the images in some parts of a table: a hash of the content, and one of the votes in whatever order.

    Args:
        places: of the votes that count; None: all.
    """
    made = [np.zeros((0, 2), np.uint64)]
    for part in parts:
        table = read_table(folder, part.name, ["content", "votes"])
        contents = [int(content[:16], 16) for content in table["content"].to_pylist()]
        counted = matrix(table["votes"], np.int32)
        votes = [_digest(row[row >= 0]) for row in np.sort(counted if places is None else counted[:, list(places)])]
        made.append(np.stack([np.array(contents, np.uint64), np.array(votes, np.uint64)], axis=1))
    return np.concatenate(made)


def different_copies(parts: Sequence[Part], folder: Folder, marked: NDArray[np.uint64]) -> Copies:
    """Which images have a copy with other votes.

    Args:
        parts: of a table, in the order in which `marked` (N, 2) holds their images, as `marks` gives them.
    """
    order = np.lexsort((marked[:, 1], marked[:, 0]))
    content, votes = marked[order].T
    starts = np.flatnonzero(np.concatenate([[True], content[1:] != content[:-1]])) if len(content) else np.zeros(0, int)
    sizes = np.diff(np.append(starts, len(content)))
    differ = votes[starts] != votes[starts + sizes - 1]  # ordered, so that the first and the last do if any two do
    first, last = starts[differ], (starts + sizes - 1)[differ]
    named = list(zip(order[first[:_NAMED]].tolist(), order[last[:_NAMED]].tolist(), strict=True))
    ids = _ids(parts, folder, [place for pair in named for place in pair])
    return Copies(int(sizes[differ].sum()), int(differ.sum()), [(ids[one], ids[other]) for one, other in named])


def _ids(parts: Sequence[Part], folder: Folder, places: Sequence[int]) -> dict[int, str]:
    """The ids of the images at these places of a table."""
    ids: dict[int, str] = {}
    start = 0
    for part in parts if places else ():
        table = read_table(folder, part.name, ["image_id"])
        ids |= {
            place: table["image_id"][place - start].as_py() for place in places if start <= place < start + len(table)
        }
        start += len(table)
        if len(ids) == len(set(places)):
            break
    return ids


def _digest(votes: NDArray[np.int32]) -> int:
    return int.from_bytes(blake2b(votes.tobytes(), digest_size=8).digest(), "big")
