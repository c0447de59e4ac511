"""Votes that are there already, as an annotator: what files say, by the row numbers of images, a bucket at a time.

1. `read_votes` turns the lines of one file into pieces, one a bucket of row numbers, without what is not in the pool.
2. `VoteTable.of` joins the pieces of a bucket, and refuses a voter who votes twice on an image.
3. `write_votes` looks a block of images up and writes one part of the annotation table, as any annotator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import write_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.parts import Part, annotation_table
from coreg_ray.annotation.rejects import no_vote, record_rejects
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.annotation.vote_files import Columns, VoteFiles
from coreg_ray.annotation.vote_forms import (
    IMAGE,
    NO_VOTE,
    VOTE,
    VOTER,
    VOTES,
    Form,
    Scores,
    Strange,
    VoteReader,
    find_form,
    read_scores,
)
from coreg_ray.annotation.vote_table import Piece, VoteTable
from coreg_ray.annotation.writer import Place
from coreg_ray.errors import UserError
from coreg_ray.ids import contains, fingerprint, images_hash, row_numbers
from coreg_ray.images.decode import Fit

SHOWN = 5  # ids that messages name
_BYTES_A_BUCKET = 2**25  # of the files
_MOST_BUCKETS = 256


def describe(path: str, voters: Sequence[str] | None, scores: Scores, words: Vocabulary) -> Card:
    """The card of the votes at a path; its prompts are the voters' names.

    Raises:
        UserError: the files cannot be read, or are in none of the forms (`vote_forms.find_form`).
    """
    files = VoteFiles.at(path)
    form = find_form(files, voters, scores, len(words.names))
    content = files.digest()
    encoder = fingerprint("votes", content, form.kind, form.voters, form.scores, words.names)
    details = {"identity": f"votes {content}", "form": form.kind, "scores": form.scores}
    fit = Fit(8, 8, "squash")  # images are decoded, so that broken ones are known, and not looked at
    return Card("votes", path, encoder, form.voters, words.names, asdict(fit), 0, details)


def form_of(card: Card) -> Form:
    """How the votes of a card are laid out."""
    return Form(card.details["form"], card.prompts, card.details["scores"])


def count_buckets(files: VoteFiles) -> int:
    """In how many buckets of row numbers the votes in some files are brought together: 32 MB of files in each."""
    return min(_MOST_BUCKETS, 1 + files.bytes() // _BYTES_A_BUCKET)


@dataclass
class ReadNotes:
    """What reading has to tell; notes of files add up, in the order of the files.

    Attributes:
        lines: that hold a vote. matched: of these, about images of the pool. first: the first ids.
        strangers: the first ids that the pool does not hold. strange: what is no class.
    """

    lines: int = 0
    matched: int = 0
    first: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    strange: Strange = field(default_factory=Strange)

    def __add__(self, other: ReadNotes) -> ReadNotes:
        return ReadNotes(
            self.lines + other.lines,
            self.matched + other.matched,
            (self.first + other.first)[:SHOWN],
            (self.strangers + other.strangers)[:SHOWN],
            self.strange + other.strange,
        )

    def refuse(self, shown: str, kind: Any, pool: Sequence[str]) -> None:
        """Raises UserError where votes are for no class, or none is about the pool, whose first ids are given."""
        self.strange.refuse(shown, kind)
        if not self.lines:
            raise UserError(f"{shown} holds no vote: every cell is empty, null or -1")
        if not self.matched:
            raise UserError(
                f"none of the images in {shown} is in the pool: it is about {', '.join(map(repr, self.first))}, the "
                f"pool holds {', '.join(map(repr, pool))}; write the ids of the pool into {IMAGE} (docs: Sources)"
            )

    def told(self, shown: str) -> list[str]:
        """What a person should know, in plain words."""
        told = []
        if self.lines > self.matched:
            named = ", ".join(map(repr, self.strangers))
            told.append(
                f"{self.lines - self.matched} of {self.lines} answers in {shown} are about images that the pool does "
                f"not hold ({named}); they are left out"
            )
        if self.strange.matched:
            pairs = [f"{typed!r} as {name!r}" for typed, name in self.strange.matched.items() if typed.lower() != name]
            if pairs:
                told.append(f"{shown}: class names typed otherwise were read: {', '.join(pairs[:SHOWN])}")
        return told


def read_votes(
    name: str, files: VoteFiles, form: Form, words: Vocabulary, pool: NDArray[np.int64], buckets: int
) -> list[Any]:
    """The votes of one file about the images of the pool: a `Piece` for each bucket of row numbers, and the notes.

    Args:
        pool: (N,) sorted row numbers.

    Raises:
        UserError: the file cannot be read, a line names no image, or its scores are no probabilities.
    """
    reader, notes = VoteReader(words.index()), ReadNotes()
    pieces: list[list[Piece]] = [[] for _ in range(buckets)]
    where = f"{files.folder.path}/{name}"
    for columns in files.lines(name, form.columns):
        piece = _piece(columns, form, reader, len(words.names), where)
        piece = piece.where((piece.counts > 0) | _scored(piece))
        mine = contains(pool, piece.rows)
        notes += ReadNotes(len(mine), int(mine.sum()), piece.ids[:SHOWN].tolist(), piece.ids[~mine][:SHOWN].tolist())
        piece = piece.where(mine)
        bucket = bucket_of(piece.rows, buckets)
        for number in np.unique(bucket).tolist():
            pieces[number].append(piece.where(bucket == number))
    notes.strange = reader.strange
    return [*(Piece.joined(some) if some else None for some in pieces), notes]


def bucket_of(rows: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """(n,) the bucket of each row number; they lie one behind the other."""
    first_bits = rows >> 32  # 31 of 63, so that the product fits
    return (first_bits * buckets) >> 31


def _scored(piece: Piece) -> NDArray[np.bool_]:
    if piece.mean is None:
        return np.zeros(len(piece.rows), dtype=bool)
    return np.asarray(~np.isnan(piece.mean).all(axis=1))


def _piece(columns: Columns, form: Form, reader: VoteReader, classes: int, where: str) -> Piece:
    """The lines of a block as numbers; lines without a vote are among them."""
    lines = max(map(len, columns.values()), default=0)
    ids = [_id(value, where) for value in columns.get(IMAGE, [None] * lines)]
    empty = [None] * lines
    voters = len(form.voters)
    mean = None
    if form.scores != "votes":
        scores = read_scores(columns.get(form.scores, empty), ids, form, classes, where)
        mean = _mean(scores)
    if form.kind == "long":
        place = {voter: number for number, voter in enumerate(form.voters)}
        named = [None if voter in (None, "") else str(voter) for voter in columns.get(VOTER, empty)]
        number = np.array([place.get(voter, -1) if voter is not None else -1 for voter in named], np.int32)
        votes = reader.numbers(columns.get(VOTE, empty), "the column vote")
        if any(voter is None for voter, vote in zip(named, votes.tolist(), strict=True) if vote != NO_VOTE):
            raise UserError(f"{where} holds a vote without a {VOTER}; name who voted")
        counts = ((votes != NO_VOTE) & (number >= 0)).astype(np.int64)
        here = counts > 0
        return Piece(np.array(ids, object), row_numbers(ids), counts, number[here], votes[here], mean)
    if form.kind == "list":
        flat = [
            value
            for entry, i in zip(columns.get(VOTES, empty), ids, strict=True)
            for value in _list(entry, voters, i, where)
        ]
        votes = reader.numbers(flat, "votes").reshape(lines, voters)
    elif form.kind == "scores":
        none = np.isnan(scores).any(axis=2)
        votes = np.where(none, NO_VOTE, np.nan_to_num(scores).argmax(axis=2)).astype(np.int32)
    else:
        votes = np.empty((lines, voters), np.int32)
        for number_of, voter in enumerate(form.voters):
            votes[:, number_of] = reader.numbers(columns.get(voter, empty), voter)
    voted = votes != NO_VOTE
    voter_of = np.broadcast_to(np.arange(voters, dtype=np.int32), votes.shape)
    return Piece(np.array(ids, object), row_numbers(ids), voted.sum(axis=1), voter_of[voted], votes[voted], mean)


def _id(value: Any, where: str) -> str:
    text = value.decode() if isinstance(value, bytes) else "" if value is None else str(value)
    if not text:
        raise UserError(f"{where} has a line without {IMAGE}; give every line one")
    return text


def _list(entry: Any, voters: int, image_id: str, where: str) -> Sequence[Any]:
    if entry is None:
        return [None] * voters
    if not isinstance(entry, (list, tuple)):
        raise UserError(
            f"{where}: {VOTES} of image {image_id!r} is {str(entry)[:40]!r}; write a list of {voters} votes"
        )
    if len(entry) != voters:
        raise UserError(
            f"{where}: {VOTES} of image {image_id!r} has {len(entry)} entries for {voters} voters; write null where "
            "one has not voted"
        )
    return entry


def _mean(scores: NDArray[np.float32]) -> NDArray[np.float16]:
    """(n, P, K) -> (n, K) mean of the voters that gave probabilities, NaN where none did."""
    given: NDArray[np.bool_] = np.asarray(~np.isnan(scores).any(axis=2))
    total = np.where(given[:, :, None], scores, 0.0).sum(axis=1)
    count = given.sum(axis=1)[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float16)


def write_votes(
    batch: dict[str, NDArray[Any]], tables: Sequence[VoteTable | None], place: Place, card: Card
) -> dict[str, Any]:
    """Write one part of the annotation table: what is known of a block of images; others are rejects for that reason.

    Returns:
        One line: `images`, `pool/images` that are answered and `pool/unanswered`.
    """
    ids, contents = batch["image_id"].tolist(), batch["content"].tolist()
    rows = row_numbers(ids)
    votes = np.full((len(ids), len(card.prompts)), NO_VOTE, np.int32)
    scored = form_of(card).scores != "votes"
    mean = np.full((len(ids), len(card.names)), np.nan, np.float16) if scored else None
    known = np.zeros(len(ids), dtype=bool)
    for table in tables:
        if table is not None:
            known |= table.look_up(rows, votes, mean)
    if known.any():
        answered = np.flatnonzero(known).tolist()
        mine, marks = [ids[i] for i in answered], [contents[i] for i in answered]
        table = annotation_table(mine, marks, card.folder, votes[known])
        if mean is not None:
            column = pa.FixedSizeListArray.from_arrays(pa.array(mean[known].reshape(-1)), mean.shape[1])
            table = table.append_column("mean", column)
        write_table(place.folder, Part(place.run, images_hash(mine, marks), card.text).name, table)
    if not known.all():
        left = np.flatnonzero(~known).tolist()
        record_rejects(place.rejects, [(ids[i], contents[i], no_vote(card.folder)) for i in left], place.run)
    return {"images": len(ids), "pool/images": int(known.sum()), "pool/unanswered": int((~known).sum())}
