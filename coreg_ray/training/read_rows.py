"""From the tables in the run folder to the rows that a worker holds, in blocks; large ones are memory-mapped."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coreg_ray.errors import UserError
from coreg_ray.training.read_sets import SETS_ALONE, Wanted, read_sets
from coreg_ray.training.rows import Images, Rows, no_pixels

if TYPE_CHECKING:
    import pyarrow as pa

    from coreg_ray.run.features import FeaturesManifest
    from coreg_ray.run.folder import RunFolder, Split
    from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """Which rows of the stored tables: a replica's part, and those whose number lies in a stretch of all numbers.

    The first stretch of the numbers is held out: `start` is where training begins, and held-out rows have their `end`.
    `without`: row numbers that are left out.
    """

    replica: int = 0
    replicas: int = 1
    start: float = 0.0
    end: float = 1.0
    without: tuple[int, ...] = ()

    def mask(self, numbers: np.ndarray) -> np.ndarray:
        """Which of the row numbers (N,) are selected, (N,) bool."""
        first, last = int(self.start * 2**63), int(self.end * 2**63) - 1
        mask: np.ndarray = (numbers >= first) & (numbers <= last) & (numbers % self.replicas == self.replica)
        return mask & ~np.isin(numbers, self.without) if self.without else mask


def load_rows(
    run: RunFolder,
    num_classes: int,
    side: int,
    selection: Selection,
    memory_limit: float,
    features: FeaturesManifest | None = None,
    which: Wanted = SETS_ALONE,
) -> Rows:
    """A replica's training rows from `rows/pool`, or `features/pool`, and `candidates`.

    Args:
        num_classes: K. side: S.
        memory_limit: bytes of images above which they go to a memory-mapped file on local disk.
        features: which of them are read in place of pixels; None: pixels.
        which: what is read of the candidate sets.

    Raises:
        UserError: an image that is no reject has no candidate set, or a part to train on, which reaches to the end,
            holds no row at all; or the sets lack what is read of them.
    """
    sets = read_sets(_batches(run.candidates, list(which.columns), selection), which, run.path)
    without = tuple(np.setdiff1d(np.concatenate([_rejected(run), sets.excluded]), sets.numbers).tolist())
    images = load_images(run, "pool", side, replace(selection, without=without), memory_limit, features)
    if not np.array_equal(np.sort(sets.numbers), images.numbers.numpy()):
        raise UserError(
            f"{run.path}: {len(images)} images and {len(sets.numbers)} candidate sets do not belong to the same rows; "
            "remove rows/, features/ and candidates/ and give the command again"
        )
    if not len(sets.numbers) and selection.end >= 1:
        raise UserError(_no_rows(run, selection))
    as_stored = Rows(
        numbers=torch.from_numpy(sets.numbers),
        pixels=images.pixels,
        features=images.features,
        num_classes=num_classes,
        indptr=torch.from_numpy(np.concatenate([[0], sets.sizes.cumsum()])),
        indices=torch.from_numpy(sets.indices),
        trusted=torch.from_numpy(sets.trusted),
        weights=None if sets.weights is None else torch.from_numpy(sets.weights),
        soft=sets.soft,
    )
    return as_stored.select(torch.from_numpy(np.argsort(sets.numbers)), images)


def _rejected(run: RunFolder) -> np.ndarray:
    """Row numbers (M,) of rejected images: some can be decoded, and the answer about them was none."""
    from coreg_ray.annotation.rejects import rejected_rows

    return rejected_rows(run.rejects("pool"))


def _no_rows(run: RunFolder, selection: Selection) -> str:
    """Why there is nothing to train on, and what to do."""
    if selection.replicas > 1:
        return f"replica {selection.replica} of {selection.replicas} has no rows; use fewer workers"
    held_out = f", since source.holdout={selection.start:g} keeps all of them" if selection.start else ""
    return f"{run.path} has no image to train on{held_out}; give more images in source.path, or a lower source.holdout"


def load_images(
    run: RunFolder,
    split: Split,
    side: int,
    selection: Selection,
    memory_limit: float,
    features: FeaturesManifest | None = None,
) -> Images:
    """Images of `rows/<split>`, or their features; with labels of `labels/<split>`, unless it is the pool."""
    if features is None:
        numbers, pixels = _load(run.rows(split), ("image",), (side, side, 3), np.uint8, selection, memory_limit)
        images = Images(torch.from_numpy(numbers), torch.from_numpy(pixels))
    else:
        views = features.views if split == "pool" else 0
        shape, columns = (1 + views, features.backbone.features), ("plain", "views") if views else ("plain",)
        numbers, stored = _load(run.features / split, columns, shape, np.float16, selection, memory_limit)
        images = Images(torch.from_numpy(numbers), no_pixels(len(numbers)), features=torch.from_numpy(stored))
    labels = run.labels(split)
    if split != "pool" and labels.exists():
        images.labels = _labels(labels, numbers, selection)
    return images


def _load(
    folder: Folder,
    columns: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: type[np.generic],
    selection: Selection,
    memory_limit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The selected rows of a table: numbers (N,) ascending, and what the columns hold one behind the other (N, *shape).

    Raises:
        UserError: it is of another size.
    """
    numbers = np.concatenate(
        [np.empty(0, np.int64), *(b["row"].to_numpy() for b in _batches(folder, ["row"], selection))]
    )
    order = np.argsort(numbers)
    rank = np.empty(len(numbers), np.int64)
    rank[order] = np.arange(len(numbers))
    values = _empty((len(numbers), *shape), dtype, memory_limit, folder)
    filled = 0
    for batch in _batches(folder, ["row", *columns], selection):
        parts = [np.frombuffer(b"".join(batch[column].to_pylist()), dtype) for column in columns]
        if sum(part.size for part in parts) != len(batch) * np.prod(shape):
            size = f"{shape[0]} px images" if dtype is np.uint8 else f"{shape[0]} times {shape[1]} features an image"
            raise UserError(f"{folder.path} does not hold {size}; remove it and give the command again")
        block = np.concatenate([part.reshape(len(batch), -1) for part in parts], axis=1)
        values[rank[filled : filled + len(batch)]] = block.reshape(-1, *shape)
        filled += len(batch)
    return numbers[order], values


def _labels(folder: Folder, numbers: np.ndarray, selection: Selection) -> Tensor:
    labels = np.full(len(numbers), -1, np.int64)
    for batch in _batches(folder, ["row", "label"], selection):
        row = batch["row"].to_numpy()
        known = np.isin(row, numbers)  # images that could not be decoded have labels too
        labels[np.searchsorted(numbers, row[known])] = batch["label"].to_numpy()[known]
    return torch.from_numpy(labels)


def _empty(shape: tuple[int, ...], dtype: type[np.generic], memory_limit: float, folder: Folder) -> np.ndarray:
    size, what = int(np.prod(shape)) * np.dtype(dtype).itemsize, "/".join(folder.path.split("/")[-2:])
    if size <= memory_limit:
        log.info("%s: %d images, %.1f MB in memory", what, shape[0], size / 1e6)
        return np.empty(shape, dtype)
    log.info("%s: %d images, %.1f MB memory-mapped at %s", what, shape[0], size / 1e6, tempfile.gettempdir())
    with tempfile.TemporaryFile() as file:  # without a name: its space is freed when the process ends, however it ends
        return np.memmap(file, dtype, mode="w+", shape=shape)


def _batches(folder: Folder, columns: list[str], selection: Selection) -> Iterator[pa.RecordBatch]:
    """Record batches of a Parquet folder, file by file in the order of names, with the selected rows only."""
    import pyarrow.parquet as pq

    for path in folder.files(".parquet"):
        with folder.filesystem.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=columns, batch_size=4096):
                mask = selection.mask(batch["row"].to_numpy())
                if mask.any():
                    yield batch.filter(mask)
