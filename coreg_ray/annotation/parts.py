"""The annotation table: what is stored of every image, in which files, and how an interrupted run finds its place.

`annotations/<split>/<annotator>/` holds Parquet parts, `manifest.json` (the card of the annotator) and, for CLIP, the
text embeddings. A part is written whole or not at all and never appended to. Its name says what is in it:
`<run>-<images>-<text>.parquet`, where `images` is a hash of the ids and contents, `text` the fingerprint of prompts and
class names behind the votes, and `run` counts the annotation runs, so that of two rows for one image the later wins.
So the list of files is the state: nothing else has to be kept in step with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import lists, read_table, write_table
from coreg_ray.ids import contains, keys, keys_hash, row_numbers
from coreg_ray.run.storage import Folder


@dataclass(frozen=True, order=True)
class Part:
    """The name of one file of a table; its parts read from the name alone."""

    run: int
    images: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.run:04d}-{self.images}-{self.text}.parquet"

    @classmethod
    def parse(cls, name: str) -> Part:
        run, images, text = name.removesuffix(".parquet").split("-")
        return cls(int(run), images, text)


def annotation_table(
    image_ids: Sequence[str],
    contents: Sequence[str],
    annotator: str,
    votes: NDArray[np.int32],
    embedding: NDArray[np.float16] | None = None,
) -> pa.Table:
    """Rows of the annotation table: votes (N, P), embedding (N, D) or None where the annotator has none."""
    columns = {
        "image_id": pa.array(image_ids, pa.string()),
        "content": pa.array(contents, pa.string()),
        "annotator": pa.array([annotator] * len(image_ids), pa.string()),
        "votes": lists(np.full(len(votes), votes.shape[1]), votes.reshape(-1).astype(np.int32)),
    }
    if embedding is not None:
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1])
    return pa.table(columns)


def keys_of(folder: Folder, part: Part) -> NDArray[np.uint64]:
    """The keys (N,) of the images in a part: stored ones, or from ids and contents."""
    table = read_table(folder, part.name, ["key", "image_id", "content"])  # whichever of them there are
    if "key" in table.column_names:
        return table["key"].to_numpy()
    return keys(table["image_id"].to_pylist(), table["content"].to_pylist())


def _rows_of(folder: Folder, part: Part) -> NDArray[np.int64]:
    table = read_table(folder, part.name, ["row", "image_id"])
    return table["row"].to_numpy() if "row" in table.column_names else row_numbers(table["image_id"].to_pylist())


def parts(folder: Folder) -> list[Part]:
    """The parts that lie in a folder, earlier runs first."""
    return sorted(Part.parse(name) for name in folder.entries() if name.endswith(".parquet"))


def next_run(*folders: Folder) -> int:
    """The number of the run about to start: above all runs whose parts lie in the folders."""
    return max((part.run for folder in folders for part in parts(folder)), default=-1) + 1


def known_keys(*folders: Folder) -> NDArray[np.uint64]:
    """Sorted keys of all images that the tables in these folders (annotations, rejects, rows) already hold."""
    known = [np.zeros(0, dtype=np.uint64)]
    for folder in folders:
        known += [keys_of(folder, part) for part in parts(folder)]
    return np.unique(np.concatenate(known))


@dataclass(frozen=True)
class Entries:
    """All rows of a table: which part each lies in, and which image it is about.

    Attributes:
        rows: (N,) row numbers. owner: (N,) numbers of the parts.
    """

    folder: Folder
    parts: list[Part]
    rows: NDArray[np.int64]
    owner: NDArray[np.int64]

    @classmethod
    def of(cls, folder: Folder) -> Entries:
        """The rows that lie in a folder."""
        listed = parts(folder)
        rows = [_rows_of(folder, part) for part in listed]
        owner = np.repeat(np.arange(len(listed)), [len(some) for some in rows])
        return cls(folder, listed, np.concatenate([np.zeros(0, np.int64), *rows]), owner)

    @property
    def runs(self) -> NDArray[np.int64]:
        """(N,) the run that each row was written in."""
        return np.array([part.run for part in self.parts], dtype=np.int64)[self.owner]

    def keys(self) -> NDArray[np.uint64]:
        """(N,) keys (ids.keys) of all rows."""
        return np.concatenate([np.zeros(0, np.uint64), *(keys_of(self.folder, part) for part in self.parts)])

    def latest(self, pool: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) which rows are the last about an image of the pool; pool (M,): sorted row numbers."""
        order = np.lexsort((self.owner, self.runs, self.rows))
        last = np.ones(len(self.rows), dtype=bool)
        last[:-1] = self.rows[order][1:] != self.rows[order][:-1]
        keep = np.zeros(len(self.rows), dtype=bool)
        keep[order] = last
        return keep & contains(pool, self.rows)

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Take the other rows (N,) out of their parts."""
        for number in np.unique(self.owner[~mask]):
            thin(self.folder, self.parts[number], mask[self.owner == number])

    def run_of(self, rows: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(M,) the last run in which one of the masked rows (N,) was about an image (M,), -1 where none is."""
        mine, runs = self.rows[mask], self.runs[mask]
        order = np.lexsort((runs, mine))
        place = np.searchsorted(mine[order], rows, side="right") - 1
        known = np.zeros(len(rows), dtype=bool)
        known[place >= 0] = mine[order][place[place >= 0]] == rows[place >= 0]
        last = np.full(len(rows), -1, np.int64)
        last[known] = runs[order][place[known]]
        return last


def drop_outdated(pool: NDArray[np.int64], folder: Folder, rejects: Folder | None = None) -> int:
    """Keep one answer for each image of the pool, the latest, and the rejects that no later answer has made good.

    Rows of images that left the pool, or whose bytes changed and were annotated again, are taken out of their parts. A
    reject takes no answer out, however late it comes: what was answered has been paid for, and its file may be mended.

    Args:
        pool: (N,) sorted row numbers of the images that the source holds now.

    Returns:
        How many images have an answer, a reject, or both.
    """
    answers = Entries.of(folder)
    kept = answers.latest(pool)
    answers.keep(kept)
    if rejects is None:
        return int(kept.sum())
    refused = Entries.of(rejects)
    last = answers.run_of(refused.rows, kept)
    standing, together = last < refused.runs, last == refused.runs
    if together.any():  # another annotator has refused it as it is; else a task that was tried again did better
        standing |= together & contains(known_keys(folder), refused.keys())
    standing &= refused.latest(pool)
    refused.keep(standing)
    return len(np.union1d(answers.rows[kept], refused.rows[standing]))


def thin(folder: Folder, part: Part, keep: NDArray[np.bool_]) -> None:
    """Rewrite one part with only the rows (N,) to keep."""
    if keep.all():
        return
    if keep.any():
        table = read_table(folder, part.name).filter(pa.array(keep))
        images = keys_hash(keys_of(folder, part)[keep])
        write_table(folder, Part(part.run, images, part.text).name, table)
    folder.delete(part.name)


def drop_replaced(folder: Folder, text: str) -> Iterator[Part]:
    """Yield the parts whose votes answer other prompts or classes than `text`; delete those already replaced."""
    present = parts(folder)
    current = {(part.run, part.images) for part in present if part.text == text}
    for part in present:
        if part.text != text:
            if (part.run, part.images) in current:
                folder.delete(part.name)
            else:
                yield part
