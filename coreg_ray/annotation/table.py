"""The annotation table: what is stored of every image, in which files, and how an interrupted run finds its place.

`annotations/<split>/<annotator>/` holds Parquet parts, `manifest.json` (the card of the annotator) and, for CLIP, the
text embeddings. A part is written whole or not at all and never appended to. Its name says what is in it:
`<run>-<images>-<text>.parquet`, where `images` is a hash of the ids and contents, `text` the fingerprint of prompts and
class names behind the votes, and `run` counts the annotation runs, so that of two rows for one image the later wins.
So the list of files is the state: nothing else has to be kept in step with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coreg_ray.images.base import row_numbers
from coreg_ray.run.storage import Folder

if TYPE_CHECKING:
    from torch import Tensor  # loaded where it is needed: tasks that only read and decode start without it

MANIFEST = "manifest.json"
TEXT = "text.safetensors"
REJECTS = pa.schema({"image_id": pa.string(), "content": pa.string(), "reason": pa.string()})


@dataclass(frozen=True)
class Card:
    """What an annotator is and was asked; its manifest.

    Attributes:
        kind: clip or chat.
        model: name and weights as the user gave them.
        encoder: fingerprint of all that an embedding depends on (chat: of model and question settings).
        prompts, names: the vocabulary.
        preprocess: how images are resized for it (fields of `images.Fit`).
        dim: D, or 0 where nothing is embedded.
        details: scale, bias and the like.
    """

    kind: str
    model: str
    encoder: str
    prompts: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    preprocess: dict[str, Any]
    dim: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The annotator's folder: another model or other weights get another one."""
        return f"{self.kind}-{self.encoder[:8]}"

    @property
    def text(self) -> str:
        """8 hex digits over prompts and class names."""
        return fingerprint(self.prompts, self.names)[:8]

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> Card:
        """The card that `manifest` was made of."""
        known = {entry.name: manifest[entry.name] for entry in fields(cls)}
        prompts, names = tuple(known["prompts"]), tuple(tuple(entry) for entry in known["names"])
        return cls(**{**known, "prompts": prompts, "names": names})

    def manifest(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "class_names": [names[0] for names in self.names],
            "fingerprint": fingerprint(self.kind, self.encoder, self.prompts, self.names),
        }


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


@dataclass(frozen=True)
class Labels:
    """Labels of some images by row number.

    Attributes:
        rows: (M,) int64 row numbers, ascending.
        labels: (M,) int64 class numbers.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def digest(self) -> str:
        """16 hex digits over all of them."""
        return blake2b(self.rows.tobytes() + self.labels.tobytes(), digest_size=8).hexdigest()

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """The label of each row (N,) int64, -1 where unknown."""
        import torch

        if not len(self.rows):
            return torch.full((len(rows),), -1)
        known = contains(self.rows, rows)
        found = self.labels[np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)]
        return torch.from_numpy(np.where(known, found, -1))


def read_labels(folder: Folder) -> Labels:
    """All labels in a folder of Parquet files with columns row and label; none where it does not exist."""
    tables = [read_table(folder, name, ["row", "label"]) for name in folder.entries() if name.endswith(".parquet")]
    rows = np.concatenate([np.zeros(0, np.int64), *(table["row"].to_numpy() for table in tables)])
    labels = np.concatenate([np.zeros(0, np.int64), *(table["label"].to_numpy() for table in tables)])
    order = np.argsort(rows, kind="stable")
    return Labels(rows[order].astype(np.int64), labels[order].astype(np.int64))


def fingerprint(*values: Any) -> str:
    """16 hex digits over anything that JSON can hold."""
    return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def content_hash(content: bytes | NDArray[np.uint8]) -> str:
    """32 hex digits over an image as it was delivered: encoded bytes, or an array with its shape."""
    if isinstance(content, bytes):
        return blake2b(content, digest_size=16).hexdigest()
    return blake2b(content.tobytes(), digest_size=16, person=repr(content.shape).encode()[:16]).hexdigest()


def keys(image_ids: Sequence[str], contents: Sequence[str]) -> NDArray[np.uint64]:
    """(N,) uint64: one number for an image with that id and that content."""
    digests = (blake2b(f"{i}\0{c}".encode(), digest_size=8).digest() for i, c in zip(image_ids, contents, strict=True))
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def contains(ordered: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `values` (M,) are among `ordered` (N,), sorted ascending."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    return ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values


def images_hash(image_ids: Sequence[str], contents: Sequence[str]) -> str:
    """16 hex digits over the images of a part."""
    return keys_hash(keys(image_ids, contents))


def keys_hash(numbers: NDArray[np.uint64]) -> str:
    """16 hex digits over the keys (N,) of the images of a part."""
    return blake2b(numbers.tobytes(), digest_size=8).hexdigest()


def keys_of(folder: Folder, part: Part) -> NDArray[np.uint64]:
    """The keys (N,) of the images in a part: stored ones, or from ids and contents."""
    table = read_table(folder, part.name, ["key", "image_id", "content"])  # whichever of them there are
    if "key" in table.column_names:
        return table["key"].to_numpy()
    return keys(table["image_id"].to_pylist(), table["content"].to_pylist())


def _rows_of(folder: Folder, part: Part) -> NDArray[np.int64]:
    table = read_table(folder, part.name, ["row", "image_id"])
    return table["row"].to_numpy() if "row" in table.column_names else row_numbers(table["image_id"].to_pylist())


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


def lists(counts: NDArray[np.integer], values: NDArray[Any]) -> pa.ListArray:
    """A ragged Arrow column: counts (N,) of consecutive values (sum,)."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def matrix(column: pa.ChunkedArray, dtype: type[np.generic]) -> NDArray[Any]:
    """An Arrow column of lists of equal length -> (N, length), a copy that may be written to."""
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.zeros(0, dtype), *flat]).astype(dtype, copy=False).reshape(len(column), -1)


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    """One Parquet file, whole or not at all; embeddings are split by bytes, which saves a tenth."""
    stream = pa.BufferOutputStream()
    plain = {"embedding", "image", "image_id", "content", "row", "key"}
    options: dict[str, Any] = {"use_dictionary": [n for n in _leaves(table.schema) if n.split(".")[0] not in plain]}
    if "embedding" in table.column_names:
        options["column_encoding"] = {"embedding.list.element": "BYTE_STREAM_SPLIT"}
    pq.write_table(table, stream, compression="zstd", **options)
    folder.write(name, stream.getvalue().to_pybytes())


def _leaves(schema: pa.Schema) -> list[str]:
    nested = (pa.types.is_list, pa.types.is_fixed_size_list)
    return [f"{f.name}.list.element" if any(is_a(f.type) for is_a in nested) else f.name for f in schema]


def read_table(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file of the folder. Raises FileNotFoundError."""
    with folder.filesystem.open_input_file(f"{folder.path}/{name}") as file:
        return pq.ParquetFile(file).read(columns=columns)


def parts(folder: Folder) -> list[Part]:
    """The parts that lie in a folder, earlier runs first."""
    return sorted(Part.parse(name) for name in folder.entries() if name.endswith(".parquet"))


def next_run(*folders: Folder) -> int:
    """The number of the run about to start: above all runs whose parts lie in the folders."""
    return max((part.run for folder in folders for part in parts(folder)), default=-1) + 1


def known_keys(*folders: Folder) -> NDArray[np.uint64]:
    """Sorted keys of all images that the tables in these folders (annotations, rejects, rows) already hold."""
    found = [np.zeros(0, dtype=np.uint64)]
    for folder in folders:
        found += [keys_of(folder, part) for part in parts(folder)]
    return np.unique(np.concatenate(found))


def drop_outdated(pool: NDArray[np.int64], *folders: Folder) -> int:
    """Keep one row for each image of the pool, the latest, over all folders together; returns how many images have one.

    Rows of images that left the pool, or whose bytes changed and were annotated again, are taken out of their parts.

    Args:
        pool: (N,) sorted row numbers of the images that the source holds now.
    """
    listed = [(folder, part) for folder in folders for part in parts(folder)]
    ids = [_rows_of(folder, part) for folder, part in listed]
    if not listed:
        return 0
    rows = np.concatenate(ids)
    owner = np.repeat(np.arange(len(listed)), [len(part) for part in ids])
    runs = np.array([part.run for _, part in listed])[owner]
    order = np.lexsort((owner, runs, rows))
    last = np.ones(len(rows), dtype=bool)
    last[:-1] = rows[order][1:] != rows[order][:-1]
    keep = np.zeros(len(rows), dtype=bool)
    keep[order] = last
    keep &= contains(pool, rows)
    for number in np.unique(owner[~keep]):
        folder, part = listed[number]
        _thin(folder, part, keep[owner == number])
    return int(keep.sum())


def _thin(folder: Folder, part: Part, keep: NDArray[np.bool_]) -> None:
    """Rewrite one part with only the rows (N,) to keep."""
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
