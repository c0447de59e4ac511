"""A sample of a run's own images with all that is known about them: what the report and calibration look at.

A part of the tables holds images that stand side by side in the source, often of a single class. So a sample takes
single images from all parts, drawn by a hash of their row numbers. The numbers alone would not do: the smallest are
held out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreg_ray.annotation.arrow import read_table
from coreg_ray.ids import contains, held_out
from coreg_ray.pure.rng import stream, uniform
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.storage import Folder

MOST_READ = 4_000_000_000  # bytes of pixels, so that a report on a very large pool does not read all of it


@dataclass(frozen=True)
class Sample:
    """M images of a split, in random order: its first images are a sample too, for whoever cannot look at all.

    Attributes:
        numbers: (M,) int64 row numbers.
        pixels: (M, 3, S, S) uint8, channels last in memory.
        ids: M image ids.
        labels: (M,) int64 true labels, -1 where unknown; only of test images.
        candidates: (M, K) bool candidate sets of pool images; no row set where unknown, or a person found none right.
        annotated: (M,) int64 the annotator's first choice, -1 where unknown.
        trusted: (M,) bool, whether a person has given the label.
        total: images of the whole split.
        features: (M, F) float16, what a frozen backbone saw of the images; None where networks look at pixels.
    """

    numbers: NDArray[np.int64]
    pixels: Tensor
    ids: list[str]
    labels: Tensor
    candidates: Tensor
    annotated: Tensor
    trusted: Tensor
    total: int
    features: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """What the run's networks are asked with: pixels, or (M, F) float32."""
        return self.pixels if self.features is None else self.features.float()

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, mask: NDArray[np.bool_]) -> Sample:
        """The rows of the sample where mask (M,) is true."""
        index = torch.from_numpy(np.flatnonzero(mask))
        return Sample(
            self.numbers[mask],
            self.pixels[index],
            [self.ids[i] for i in index.tolist()],
            self.labels[index],
            self.candidates[index],
            self.annotated[index],
            self.trusted[index],
            self.total,
            None if self.features is None else self.features[index],
        )

    def first(self, most: int) -> Sample:
        """The first images, at most so many: a sample too."""
        return self if most >= len(self) else self.where(np.arange(len(self)) < most)

    def held_out(self, share: float) -> NDArray[np.bool_]:
        """(M,) which images were annotated but not trained on."""
        return held_out(self.numbers, share)


class Samples:
    """A run's samples, each split read once for all who look at it."""

    def __init__(self, run: RunFolder, side: int, num_classes: int, most: int = 0) -> None:
        """`side`: S. `num_classes`: K. `most`: images that somebody will ask for, so that one reading serves all."""
        self.run, self.side, self.num_classes, self.most = run, side, num_classes, most
        self._read: dict[Split, Sample | None] = {}
        self._reading = threading.Lock()

    def of(self, split: Split, count: int) -> Sample | None:
        """At most `count` images of `rows/<split>`; None where there are none. Raises as `read_sample` does."""
        if count < 1:
            return None
        with self._reading:  # labels and the model are made at the same time
            known = self._read.get(split)
            if split not in self._read or (known is not None and len(known) < min(count, known.total)):
                most = max(count, self.most)
                known = self._read[split] = read_sample(self.run, split, self.side, self.num_classes, most)
        return known and known.first(count)


def read_sample(
    run: RunFolder, split: Split, side: int, num_classes: int, most: int, holdout: float | None = None
) -> Sample | None:
    """At most `most` images of `rows/<split>` with labels or candidate sets; None where there are none.

    The same images whatever the order of the source and its parts are. The row numbers of all images are read, 8 bytes
    each, and the pixels of a part as a whole, one part at a time. Where all pixels are more than MOST_READ, parts are
    drawn before images are.

    Args:
        holdout: share of the images that is held out, where only these are asked for.
    """
    folder = run.rows(split)
    names = [name for name in folder.entries() if name.endswith(".parquet")]
    if not names or most < 1:
        return None
    held = {name: read_table(folder, name, ["row"])["row"].to_numpy() for name in names}
    total = sum(map(len, held.values()))
    held = _parts_to_read(held, MOST_READ // (3 * side**2))
    known_rows = np.concatenate(list(held.values()))
    among = np.arange(len(known_rows)) if holdout is None else np.flatnonzero(held_out(known_rows, holdout))
    drawn = among[_drawn(known_rows[among], most)]
    count = len(drawn)
    if not count:
        return None
    numbers, pixels = _images(folder, held, side, drawn)
    ids = [f"row {number}" for number in numbers]
    labels, annotated = torch.full((count,), -1), torch.full((count,), -1)
    candidates, trusted = torch.zeros(count, num_classes, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    facts = run.labels("test") if split == "test" else run.candidates
    known = ["label"] if split == "test" else ["candidates", "votes", "scores", "trusted", "excluded"]
    for place, row in _facts(facts, ["row", "image_id", *known], numbers):
        ids[place] = row["image_id"]
        if split == "test":
            labels[place] = row["label"]
        elif row["candidates"] and not row.get("excluded"):
            candidates[place, torch.tensor(row["candidates"], dtype=torch.int64)] = True
            annotated[place] = max(zip(row["votes"], row["scores"], row["candidates"], strict=True))[2]
            trusted[place] = row["trusted"]
    features = _features(run, split, numbers)
    return Sample(numbers, pixels, ids, labels, candidates, annotated, trusted, total, features)


def _features(run: RunFolder, split: Split, numbers: NDArray[np.int64]) -> Tensor | None:
    """What the run's backbone saw of images (M,): (M, F) float16; None in a run without one."""
    manifest = run.read_features_manifest()
    if manifest is None:
        return None
    folder, order = run.features / split, np.argsort(numbers)
    features = np.zeros((len(numbers), manifest.backbone.features), np.float16)
    for name in folder.entries():
        rows = read_table(folder, name, ["row"])["row"].to_numpy()
        mine = np.flatnonzero(contains(numbers[order], rows))
        if len(mine):
            content = read_table(folder, name, ["plain"])["plain"].take(pa.array(mine)).to_pylist()
            places = order[np.searchsorted(numbers[order], rows[mine])]
            features[places] = np.frombuffer(b"".join(content), np.float16).reshape(len(mine), -1)
    return torch.from_numpy(features)


def _parts_to_read(held: dict[str, NDArray[np.int64]], most: int) -> dict[str, NDArray[np.int64]]:
    """Parts in the order of a hash of their row numbers, as long as they have at most `most` rows together."""
    ordered = sorted(held, key=lambda name: blake2b(held[name].tobytes(), digest_size=8).digest())
    before = np.cumsum([0, *(len(held[name]) for name in ordered)])
    return {
        name: held[name] for name, rows in zip(ordered, before[1:], strict=True) if rows <= most or name == ordered[0]
    }


def _drawn(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The places (M,) of the images that are in the sample, in its order, among all row numbers (N,)."""
    draws = uniform(stream(0, "sample"), torch.from_numpy(numbers), 1)[:, 0].numpy()
    return np.lexsort((numbers, draws))[:most]


def _images(
    folder: Folder, held: dict[str, NDArray[np.int64]], side: int, drawn: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Tensor]:
    """Row numbers (M,) and pixels (M, 3, S, S) of the images at `drawn` (M,) among those that all parts hold."""
    pixels, start = np.empty((len(drawn), side, side, 3), np.uint8), 0
    for name, rows in held.items():
        mine = np.flatnonzero((start <= drawn) & (drawn < start + len(rows)))
        if len(mine):
            content = read_table(folder, name, ["image"])["image"].take(pa.array(drawn[mine] - start)).to_pylist()
            pixels[mine] = np.frombuffer(b"".join(content), np.uint8).reshape(-1, side, side, 3)
        start += len(rows)
    return np.concatenate(list(held.values()))[drawn], torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _facts(folder: Folder, columns: list[str], numbers: NDArray[np.int64]) -> Any:
    """(place in the sample, row of the table) for every row of the tables that is in the sample."""
    order = np.argsort(numbers)
    sampled = pa.array(numbers)
    for name in folder.entries():
        if not name.endswith(".parquet"):
            continue
        table = read_table(folder, name, columns)
        table = table.filter(pc.is_in(table["row"], sampled))
        places = order[np.searchsorted(numbers[order], table["row"].to_numpy())]
        yield from zip(places.tolist(), table.to_pylist(), strict=True)
