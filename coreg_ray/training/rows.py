"""The rows a worker holds: images at the student's resolution and ragged candidate sets, by index.

A row's number is a 63-bit hash of its `image_id`. It decides everything that must not depend on placement: which
replica holds the row (number modulo replicas), whether it is held out, and its random views. Rows lie in the order of
their numbers, so their order does not depend on the files that they came from either.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coreg_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_BLOCK_VALUES = 2**24  # of pixels that are summed at a time, as float64


@dataclass
class Images:
    """Random access to N images.

    Attributes:
        numbers: (N,) int64, ascending.
        pixels: (N, S, S, 3) uint8, in memory, memory-mapped, or on the device.
        labels: (N,) int64 where these rows only score, -1 for unknown ones; else None.
    """

    numbers: Tensor
    pixels: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, index: Tensor, device: torch.device) -> Tensor:
        """Images (B, 3, S, S) uint8 on `device`, channels last in memory; `index` (B,) lies on the host."""
        if self.pixels.device.type != "cpu":
            return self.pixels[index.to(self.pixels.device, non_blocking=True)].permute(0, 3, 1, 2)
        batch = self.pixels[index]
        if device.type == "cuda":
            batch = batch.pin_memory()
        return batch.to(device, non_blocking=True).permute(0, 3, 1, 2)


def pixel_sums(pixels: Tensor) -> Tensor:
    """Of images (N, S, S, 3): (7,) float64, sum and sum of squares per channel and the number of pixels.

    Exact for any block size, and small blocks keep the memory small.
    """
    sums = torch.zeros(7, dtype=torch.float64)
    for block in pixels.split(max(1, _BLOCK_VALUES // max(1, pixels[:1].numel()))):
        values = block.reshape(-1, 3).to(torch.float64)
        sums[:3] += values.sum(0).cpu()
        sums[3:6] += values.square().sum(0).cpu()
        sums[6] += len(values)
    return sums


def pixel_statistics(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, (3,) each, from `pixel_sums`; the latter at least 1."""
    mean = sums[:3] / sums[6]
    return mean, (sums[3:6] / sums[6] - mean.square()).clamp(min=1.0).sqrt()


@dataclass
class Rows(Images):
    """Images to train on, each with its candidate set.

    Attributes:
        num_classes: K.
        offsets: (N + 1,) int64; row i's candidates are `classes[offsets[i]:offsets[i + 1]]`.
        classes: (sum of |S|,) int32.
        trusted: (N,) bool: the candidate is a manual label.
    """

    num_classes: int = 0
    offsets: Tensor = None  # type: ignore[assignment]
    classes: Tensor = None  # type: ignore[assignment]
    trusted: Tensor = None  # type: ignore[assignment]

    def entries(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Where the candidates of rows `index` (B,) lie: (row in the batch, position in `classes`), both (sum,)."""
        start = self.offsets[index]
        counts = self.offsets[index + 1] - start
        row = torch.repeat_interleave(torch.arange(len(index)), counts)
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return row, start[row] + torch.arange(len(row)) - first

    def scatter(self, index: Tensor, values: Tensor, device: torch.device) -> Tensor:
        """Ragged values, one per candidate of all N rows, as a dense (B, K) tensor of rows `index`, zero elsewhere."""
        row, position = self.entries(index)
        cell = row * self.num_classes + self.classes[position]
        dense = torch.zeros(len(index) * self.num_classes, dtype=values.dtype, device=device)
        dense[cell.to(device, non_blocking=True)] = values[position].to(device, non_blocking=True)
        return dense.view(len(index), self.num_classes)

    def candidates(self, index: Tensor, device: torch.device) -> Tensor:
        """Candidate sets of rows `index` as a (B, K) bool mask."""
        return self.scatter(index, torch.ones(1, dtype=torch.bool).expand(len(self.classes)), device)

    def gather(self, index: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """The values of dense (B, K) at the candidates of rows `index`: positions and values (sum,), on the host."""
        row, position = self.entries(index)
        cell = (row * self.num_classes + self.classes[position]).to(dense.device)
        return position, dense.reshape(-1)[cell].cpu()


def make_rows(numbers: Tensor, pixels: Tensor, candidates: Tensor, trusted: Tensor | None = None) -> Rows:
    """Rows from tensors: numbers (N,), pixels (N, S, S, 3) uint8, candidates (N, K) bool, trusted (N,) bool."""
    order = torch.argsort(numbers)
    counts = candidates[order].sum(1)
    return Rows(
        numbers=numbers[order],
        pixels=pixels[order],
        num_classes=candidates.shape[1],
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        classes=candidates[order].nonzero()[:, 1].to(torch.int32),
        trusted=torch.zeros(len(numbers), dtype=torch.bool) if trusted is None else trusted[order],
    )


def share(rows: Rows, replica: int, replicas: int) -> Rows:
    """The rows that one replica of `replicas` holds."""
    mine = torch.nonzero(rows.numbers % replicas == replica)[:, 0]
    _, position = rows.entries(mine)
    counts = rows.offsets[mine + 1] - rows.offsets[mine]
    return Rows(
        numbers=rows.numbers[mine],
        pixels=rows.pixels[mine],
        num_classes=rows.num_classes,
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        classes=rows.classes[position],
        trusted=rows.trusted[mine],
    )


@dataclass(frozen=True)
class Share:
    """Which rows of the stored tables are wanted: a replica's, and those whose number lies in a part of all numbers.

    The first part of the numbers is held out, so `start` is where training begins and held-out rows have their `end`.
    """

    replica: int = 0
    replicas: int = 1
    start: float = 0.0
    end: float = 1.0

    def mask(self, numbers: np.ndarray) -> np.ndarray:
        """Which of the row numbers (N,) are wanted, (N,) bool."""
        first, last = int(self.start * 2**63), int(self.end * 2**63) - 1
        return (numbers >= first) & (numbers <= last) & (numbers % self.replicas == self.replica)


def load_rows(output: Folder, num_classes: int, side: int, wanted: Share, memory_limit: float) -> Rows:
    """A replica's training rows from `rows/pool` and `candidates`, read in blocks.

    Args:
        output: run folder. num_classes: K. side: S. wanted: which rows. memory_limit: bytes of images above which they
            go to a memory-mapped file on local disk.

    Raises:
        UserError: an image has no candidate set, or a share to train on, which reaches to the end, holds no row at all.
    """
    import pyarrow.compute as pc  # here, so that rows in memory need torch alone

    images = load_images(output, "pool", side, wanted, memory_limit)
    numbers, counts, classes, trusted = [], [], [], []
    for batch in _batches(output.part("candidates"), ["row", "candidates", "trusted"], wanted):
        numbers.append(batch["row"].to_numpy())
        counts.append(pc.list_value_length(batch["candidates"]).to_numpy())
        classes.append(pc.list_flatten(batch["candidates"]).to_numpy())
        trusted.append(batch["trusted"].to_numpy(zero_copy_only=False))
    number = np.concatenate([np.empty(0, np.int64), *numbers])
    if not np.array_equal(np.sort(number), images.numbers.numpy()):
        raise UserError(
            f"{output.path}: {len(images)} images and {len(number)} candidate sets do not belong to the same rows; "
            "remove rows/ and candidates/ and give the command again"
        )
    if not len(number) and wanted.end >= 1:
        raise UserError(f"replica {wanted.replica} of {wanted.replicas} has no rows; use fewer workers")
    count = np.concatenate([np.empty(0, np.int64), *counts]).astype(np.int64)
    order = torch.from_numpy(np.argsort(number))
    unordered = Rows(
        numbers=torch.from_numpy(number),
        pixels=images.pixels,
        num_classes=num_classes,
        offsets=torch.from_numpy(np.concatenate([[0], count.cumsum()])),
        classes=torch.from_numpy(np.concatenate([np.empty(0, np.int32), *classes]).astype(np.int32)),
        trusted=torch.from_numpy(np.concatenate([np.empty(0, bool), *trusted])),
    )
    _, position = unordered.entries(order)
    ordered_counts = torch.from_numpy(count)[order]
    return Rows(
        numbers=images.numbers,
        pixels=images.pixels,
        num_classes=num_classes,
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), ordered_counts.cumsum(0)]),
        classes=unordered.classes[position],
        trusted=unordered.trusted[order],
    )


def load_images(output: Folder, split: str, side: int, wanted: Share, memory_limit: float) -> Images:
    """Images of `rows/<split>`, with labels where `labels/<split>` holds them and the split is not the pool."""
    folder = output.part("rows") / split
    numbers = np.concatenate([np.empty(0, np.int64), *(b["row"].to_numpy() for b in _batches(folder, ["row"], wanted))])
    order = np.argsort(numbers)
    rank = np.empty(len(numbers), np.int64)
    rank[order] = np.arange(len(numbers))
    pixels = _empty_pixels((len(numbers), side, side, 3), memory_limit, split)
    filled = 0
    for batch in _batches(folder, ["row", "image"], wanted):
        block = np.frombuffer(b"".join(batch["image"].to_pylist()), np.uint8)
        if block.size != len(batch) * side * side * 3:
            raise UserError(f"{folder.path} does not hold {side} px images; remove it and give the command again")
        pixels[rank[filled : filled + len(batch)]] = block.reshape(-1, side, side, 3)
        filled += len(batch)
    numbers = numbers[order]
    labels = None
    known = output.part("labels") / split
    if split != "pool" and known.exists():
        labels = _labels(known, numbers, wanted)
    return Images(torch.from_numpy(numbers), torch.from_numpy(pixels), labels)


def _labels(folder: Folder, numbers: np.ndarray, wanted: Share) -> Tensor:
    labels = np.full(len(numbers), -1, np.int64)
    for batch in _batches(folder, ["row", "label"], wanted):
        row = batch["row"].to_numpy()
        known = np.isin(row, numbers)  # images that could not be decoded have labels too
        labels[np.searchsorted(numbers, row[known])] = batch["label"].to_numpy()[known]
    return torch.from_numpy(labels)


def _empty_pixels(shape: tuple[int, ...], memory_limit: float, split: str) -> np.ndarray:
    size = int(np.prod(shape))
    if size <= memory_limit:
        log.info("%s: %d images, %.1f MB in memory", split, shape[0], size / 1e6)
        return np.empty(shape, np.uint8)
    log.info("%s: %d images, %.1f MB memory-mapped at %s", split, shape[0], size / 1e6, tempfile.gettempdir())
    with tempfile.TemporaryFile() as file:  # without a name: its space is freed when the process ends, however it ends
        return np.memmap(file, np.uint8, mode="w+", shape=shape)


def _batches(folder: Folder, columns: list[str], wanted: Share) -> Iterator[pa.RecordBatch]:
    """Record batches of a Parquet folder, file by file in the order of names, with the wanted rows only."""
    import pyarrow.parquet as pq

    for path in folder.files(".parquet"):
        with folder.filesystem.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=columns, batch_size=4096):
                mask = wanted.mask(batch["row"].to_numpy())
                if mask.any():
                    yield batch.filter(mask)
