"""Votes of many voters by the row numbers of images: pieces as lines hold them, and tables to look images up in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coreg_ray.errors import UserError
from coreg_ray.ids import contains


@dataclass(frozen=True)
class Piece:
    """Lines of votes, ragged: what n lines say about as many images, some of which may be the same.

    Attributes:
        ids: (n,) object. rows: (n,) int64 row numbers. counts: (n,) votes of each line.
        voter, vote: (sum,) int32. mean: (n, K) float16 mean of the voters' probabilities, None where there are none.
    """

    ids: NDArray[np.object_]
    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    voter: NDArray[np.int32]
    vote: NDArray[np.int32]
    mean: NDArray[np.float16] | None = None

    def where(self, mask: NDArray[np.bool_]) -> Piece:
        """The lines for which mask (n,) is true."""
        entries = np.repeat(mask, self.counts)
        mean = None if self.mean is None else self.mean[mask]
        return Piece(self.ids[mask], self.rows[mask], self.counts[mask], self.voter[entries], self.vote[entries], mean)

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        """All lines of one piece or more."""
        means = [piece.mean for piece in pieces if piece.mean is not None]
        return cls(
            np.concatenate([piece.ids for piece in pieces]),
            np.concatenate([piece.rows for piece in pieces]),
            np.concatenate([piece.counts for piece in pieces]),
            np.concatenate([piece.voter for piece in pieces]),
            np.concatenate([piece.vote for piece in pieces]),
            np.concatenate(means) if means else None,
        )


@dataclass(frozen=True)
class VoteTable:
    """The votes on the images of one bucket.

    Attributes:
        rows: (n,) ascending. indptr: (n + 1,). voter, vote: (sum,) int32, image by image. mean: (n, K) or None.
    """

    rows: NDArray[np.int64]
    indptr: NDArray[np.int64]
    voter: NDArray[np.int32]
    vote: NDArray[np.int32]
    mean: NDArray[np.float16] | None = None

    @classmethod
    def of(cls, shown: str, voters: Sequence[str], pieces: Sequence[Piece | None]) -> VoteTable | None:
        """The votes of all pieces of a bucket; None where there are none.

        Raises:
            UserError: a voter votes twice on an image, or an image with scores has two lines.
        """
        there = [piece for piece in pieces if piece is not None]
        if not there:
            return None
        whole = Piece.joined(there)
        line = np.repeat(np.arange(len(whole.rows)), whole.counts)
        entry = whole.rows[line]
        order = np.lexsort((whole.voter, entry))
        entry, voter, line = entry[order], whole.voter[order], line[order]
        twice = np.flatnonzero((entry[1:] == entry[:-1]) & (voter[1:] == voter[:-1]))
        if len(twice):
            raise UserError(
                f"{shown}: {len(twice)} pairs of image and voter occur more than once, for example "
                f"{whole.ids[line[twice[0]]]!r} and {voters[voter[twice[0]]]!r}; keep one vote for each"
            )
        rows, first = np.unique(whole.rows, return_index=True)
        mean = None
        if whole.mean is not None:
            if len(rows) < len(whole.rows):
                again = np.setdiff1d(np.arange(len(whole.rows)), first)
                raise UserError(f"{shown} has two lines about {whole.ids[again[0]]!r}; write an image's scores in one")
            mean = whole.mean[first]
        indptr = np.searchsorted(entry, np.append(rows, np.iinfo(np.int64).max))
        return cls(rows, indptr.astype(np.int64), voter, whole.vote[order], mean)

    def look_up(
        self, rows: NDArray[np.int64], votes: NDArray[np.int32], mean: NDArray[np.float16] | None
    ) -> NDArray[np.bool_]:
        """Write what is known of some images into votes (B, P) and mean (B, K); returns which are known, (B,)."""
        known: NDArray[np.bool_] = contains(self.rows, rows)
        at = np.searchsorted(self.rows, rows[known])
        counts = self.indptr[at + 1] - self.indptr[at]
        image = np.repeat(np.flatnonzero(known), counts)
        entry = np.repeat(self.indptr[at] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        votes[image, self.voter[entry]] = self.vote[entry]
        if mean is not None and self.mean is not None:
            mean[known] = self.mean[at]
        return known
