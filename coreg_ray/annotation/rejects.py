"""Images that have no answer, and why: what cannot be read or decoded, what a server refuses, what answers NaN.

A reject is known by its image and the content that it had, and is tried again when that changes. What could not be read
has no content that anybody knows: it is tried again by every run, and all rejects are with `annotator.retry_rejects`.
No reject takes an answer away that an earlier run was given. An image that votes from files are not about is a reject
only where no other annotator answers for it, and is looked up again by every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import read_table, write_table
from coreg_ray.annotation.parts import Entries, Part, known_keys, parts, thin
from coreg_ray.errors import UserError
from coreg_ray.ids import contains, images_hash, keys, keys_hash, row_numbers
from coreg_ray.run.storage import Folder

REJECTS = pa.schema({"image_id": pa.string(), "content": pa.string(), "reason": pa.string()})
UNREAD = "unread"  # stands for the content of what could not be read
NOT_FINITE = "the answer is not finite (embedding, logits or probabilities)"
_NO_VOTE = "no vote in "
_SHOWN = 5  # ids that messages name
_FEW, _SHARE = 10, 0.01  # so many, or so many of all, may not be finite before that is an error


@dataclass(frozen=True)
class Rejected:
    """Which images of a split are rejected for what their files are now.

    Attributes:
        rows: (M,) sorted row numbers. keys: (M,) sorted keys (ids.keys) of what was rejected.
    """

    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    def digest(self) -> str:
        """16 hex digits over all of them."""
        return keys_hash(self.keys)

    def sets_aside(self, rows: NDArray[np.int64], marks: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(N,) which answers are about pictures that are no longer there: the file holds something else, a reject.

        An image that was rejected as it is, say by another annotator, is none of them.

        Args:
            rows: (N,) row numbers of answers. marks: (N,) their keys.
        """
        return contains(self.rows, rows) & ~contains(self.keys, marks)


def no_vote(annotator: str) -> str:
    """The reason of an image that the votes of an annotator, given by its folder, are not about."""
    return f"{_NO_VOTE}{annotator}"


def read_rejected(folder: Folder) -> Rejected:
    """What a folder of rejects holds, but for those that say nothing of the file: no finite answer, or none at all."""
    tables = [table.filter(pc.not_equal(table["reason"], NOT_FINITE)) for table in _tables(folder)]
    tables = [table.filter(pc.invert(_lacks_votes(table))) for table in tables]
    ids = [image_id for table in tables for image_id in table["image_id"].to_pylist()]
    contents = [content for table in tables for content in table["content"].to_pylist()]
    return Rejected(np.sort(row_numbers(ids)), np.sort(keys(ids, contents)))


def settled_keys(folder: Folder, rejects: Folder) -> NDArray[np.uint64]:
    """Sorted keys of all images that need no work: answered or rejected as they are.

    An answer that was set aside is none of them: where its file is as it was again, the image is asked about again.
    """
    entries, rejected = Entries.of(folder), read_rejected(rejects)
    marks = entries.keys()
    answered = marks[~rejected.sets_aside(entries.rows, marks)]
    refused = [_keys(table.filter(pc.invert(_lacks_votes(table)))) for table in _tables(rejects)]
    return np.unique(np.concatenate([answered, *refused]))


def record_rejects(rejects: Folder, failed: list[tuple[str, str, str]], run: int) -> None:
    """Write one part of rejects: (image_id, content hash, reason) of each; `run`: number of the annotation run."""
    ids, contents, reasons = (list(column) for column in zip(*failed, strict=True))
    table = pa.table([ids, contents, reasons], schema=REJECTS)
    write_table(rejects, Part(run, images_hash(ids, contents), "rejects").name, table)


def try_again(rejects: Folder, all_of_them: bool) -> None:
    """Forget the rejects that the next run is to try again: those that could not be read or had no vote, or all."""
    if all_of_them:
        rejects.delete()
        return
    _forget(rejects, "content", UNREAD)
    for part in parts(rejects):
        thin(rejects, part, ~_mask(_lacks_votes(read_table(rejects, part.name, ["reason"]))))


def without_vote(rejects: Folder, annotator: str) -> tuple[int, list[str]]:
    """How many images the votes of an annotator are not about, and the first few of their ids."""
    tables = [table.filter(pc.equal(table["reason"], no_vote(annotator))) for table in _tables(rejects)]
    ids = sorted({image_id for table in tables for image_id in table["image_id"].to_pylist()})
    return len(ids), ids[:_SHOWN]


def drop_answered(rejects: Folder, answered: Sequence[Folder]) -> None:
    """Forget the rejects for want of a vote whose images another annotator has answered for; keep one of each other."""
    known, seen = known_keys(*answered), np.zeros(0, np.uint64)
    for part in parts(rejects):
        table = read_table(rejects, part.name)
        lacking, marks = _mask(_lacks_votes(table)), _keys(table)
        thin(rejects, part, ~(lacking & (contains(known, marks) | contains(seen, marks))))
        seen = np.union1d(seen, marks)


def forget_not_finite(rejects: Folder) -> None:
    """Forget the rejects whose answers were not finite; they are counted anew."""
    _forget(rejects, "reason", NOT_FINITE)


def _forget(rejects: Folder, column: str, value: str) -> None:
    for part in parts(rejects):
        table = read_table(rejects, part.name, [column])
        thin(rejects, part, pc.not_equal(table[column], value).to_numpy(zero_copy_only=False))


def count_not_finite(rejects: Folder) -> int:
    """How many images are rejected because their answers were not finite."""
    return sum(pc.sum(pc.equal(table["reason"], NOT_FINITE)).as_py() or 0 for table in _tables(rejects))


def rejected_rows(rejects: Folder) -> NDArray[np.int64]:
    """(M,) row numbers of all rejected images."""
    ids = [read_table(rejects, part.name, ["image_id"])["image_id"].to_pylist() for part in parts(rejects)]
    return row_numbers([image_id for some in ids for image_id in some])


def finite_rows(batch: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """(B,) which rows of answers may be kept: those whose embedding (B, D) is finite and let every prompt vote."""
    if "embedding" not in batch:
        return np.ones(len(batch["votes"]), dtype=bool)
    finite: NDArray[np.bool_] = np.isfinite(batch["embedding"]).all(axis=1) & (batch["votes"] >= 0).all(axis=1)
    return finite


def too_many(count: int, images: int) -> bool:
    """Whether answers that are not finite are more than odd ones: more than 10 and more than 1 % of all images."""
    return count > _FEW and count > _SHARE * images


def refuse_not_finite(count: int, images: int, split: str) -> None:
    """A few odd images may have answers that are not finite, many are a model that does not work.

    Args:
        count: images whose answers are not finite. images: of the split.

    Raises:
        UserError: they are more than 10 and more than 1 % of all.
    """
    if too_many(count, images):
        raise UserError(
            f"the answers to {count} of {images} {split} images are not finite (NaN or infinite), more than {_FEW} and "
            f"{_SHARE:.0%} of them; use another --annotator.precision (float32, where it is half now) or other "
            "weights, with --annotator.retry_rejects true"
        )


def _lacks_votes(table: pa.Table) -> pa.ChunkedArray:
    return pc.starts_with(table["reason"], _NO_VOTE)


def _mask(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(column).astype(bool)


def _keys(table: pa.Table) -> NDArray[np.uint64]:
    return keys(table["image_id"].to_pylist(), table["content"].to_pylist())


def _tables(folder: Folder) -> list[pa.Table]:
    return [read_table(folder, part.name) for part in parts(folder)]
