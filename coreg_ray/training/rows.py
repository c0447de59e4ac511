"""The rows a worker holds: images at the student's resolution, or their features, and ragged candidate sets, by index.

A row's number is a 63-bit hash of its `image_id`. It decides everything that must not depend on placement: which
replica holds the row (number modulo replicas), whether it is held out, and its random views. Rows lie in the order of
their numbers, so their order does not depend on the files that they came from either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray.training.soft import Soft

_BLOCK_VALUES = 2**24  # of pixels that are summed at a time, as float64


@dataclass
class Images:
    """Random access to N images.

    Attributes:
        numbers: (N,) int64, ascending.
        pixels: (N, S, S, 3) uint8, in memory, memory-mapped, or on the device; (N, 0, 0, 3) where there are features.
        labels: (N,) int64 where these rows only score, -1 for unknown ones; else None.
        features: (N, 1 + V, F) float16, what a frozen backbone saw of each image and of V views of it; else None.
    """

    numbers: Tensor
    pixels: Tensor
    labels: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, index: Tensor, device: torch.device) -> Tensor:
        """What `training.views` makes a network's inputs of, on `device`; `index` (B,) lies on the host.

        Images (B, 3, S, S) uint8, channels last in memory; or all stored features (B, 1 + V, F) float16.
        """
        held = self.held
        if held.device.type != "cpu":
            batch = held[index.to(held.device, non_blocking=True)]
        else:
            batch = held[index]
            if device.type == "cuda":
                batch = batch.pin_memory()
            batch = batch.to(device, non_blocking=True)
        return batch.permute(0, 3, 1, 2) if self.features is None else batch

    @property
    def held(self) -> Tensor:
        """The large one: pixels, or the features that stand for them."""
        return self.pixels if self.features is None else self.features

    def to(self, device: torch.device) -> None:
        """Let what is large live on a device, in place."""
        if self.features is None:
            self.pixels = self.pixels.to(device)
        else:
            self.features = self.features.to(device)


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


def feature_sums(features: Tensor) -> Tensor:
    """Of features (N, F): (2 F + 1,) float64, sum and sum of squares of each and the number of rows."""
    size = features.shape[1]
    sums = torch.zeros(2 * size + 1, dtype=torch.float64)
    for block in features.split(max(1, _BLOCK_VALUES // max(1, size))):
        values = block.to(torch.float64)
        sums[:size] += values.sum(0).cpu()
        sums[size:-1] += values.square().sum(0).cpu()
        sums[-1] += len(values)
    return sums


def feature_statistics(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, (F,), from `feature_sums`.

    The latter is at least a hundredth of the largest, so that a feature that hardly varies is not blown up.
    """
    mean, squares = (sums[:-1] / sums[-1]).chunk(2)
    deviation = (squares - mean.square()).clamp(min=0.0).sqrt()
    return mean, deviation.clamp(min=max(float(deviation.max()) / 100, 1e-6))


@dataclass(kw_only=True)
class Rows(Images):
    """Images to train on, each with its candidate set.

    Attributes:
        num_classes: K.
        indptr: (N + 1,) int64; row i's candidates are `indices[indptr[i]:indptr[i + 1]]`.
        indices: (sum of |S|,) int32 class numbers.
        trusted: (N,) bool: the candidate is a manual label.
        soft: the shares of all classes, where a method learns from them.
        weights: (sum of |S|,) float16, how much each candidate counts, 1 for the row's likeliest; None: all alike.
    """

    num_classes: int
    indptr: Tensor
    indices: Tensor
    trusted: Tensor
    soft: Soft | None = None
    weights: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """(N,) int64, |S| of each row."""
        return self.indptr[1:] - self.indptr[:-1]

    @property
    def informative(self) -> Tensor:
        """(N,) bool, which rows `losses.informative` says something of: they exclude a class, or weigh them."""
        fewer = self.sizes < self.num_classes
        if self.weights is None:
            return fewer
        owner = torch.repeat_interleave(torch.arange(len(self)), self.sizes)
        return fewer.index_put((owner[self.weights < 1],), torch.tensor(True))

    @property
    def shares(self) -> Tensor:
        """(sum of |S|,) float16, each candidate's weight as a share of its row's; even where all count alike."""
        owner = torch.repeat_interleave(torch.arange(len(self)), self.sizes)
        weights = torch.ones(len(self.indices)) if self.weights is None else self.weights.float()
        return (weights / torch.zeros(len(self)).index_add(0, owner, weights)[owner]).half()

    def entries(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Where the candidates of rows `index` (B,) lie: (row in the batch, position in `indices`), both (sum,)."""
        start = self.indptr[index]
        counts = self.indptr[index + 1] - start
        row = torch.repeat_interleave(torch.arange(len(index)), counts)
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return row, start[row] + torch.arange(len(row)) - first

    def select(self, index: Tensor, images: Images | None = None) -> Rows:
        """The rows `index` (M,), in that order.

        Args:
            images: theirs, where they are at hand in that order, so that none is copied.
        """
        if images is None:
            features = None if self.features is None else self.features[index]
            images = Images(self.numbers[index], self.pixels[index], features=features)
        position = self.entries(index)[1]
        return Rows(
            numbers=self.numbers[index],
            pixels=images.pixels,
            features=images.features,
            num_classes=self.num_classes,
            indptr=_starts(self.sizes[index]),
            indices=self.indices[position],
            trusted=self.trusted[index],
            soft=None if self.soft is None else self.soft.select(index),
            weights=None if self.weights is None else self.weights[position],
        )

    def scatter(self, index: Tensor, values: Tensor, device: torch.device) -> Tensor:
        """Ragged values, one per candidate of all N rows, as a dense (B, K) tensor of rows `index`, zero elsewhere."""
        row, position = self.entries(index)
        cell = row * self.num_classes + self.indices[position]
        dense = torch.zeros(len(index) * self.num_classes, dtype=values.dtype, device=device)
        dense[cell.to(device, non_blocking=True)] = values[position].to(device, non_blocking=True)
        return dense.view(len(index), self.num_classes)

    def candidates(self, index: Tensor, device: torch.device) -> Tensor:
        """Candidate sets of rows `index` as a (B, K) bool mask."""
        return self.scatter(index, torch.ones(1, dtype=torch.bool).expand(len(self.indices)), device)

    def weights_of(self, index: Tensor, device: torch.device) -> Tensor | None:
        """Weights (B, K) float16 of the candidates of rows `index`, zero elsewhere; None where all count alike."""
        return None if self.weights is None else self.scatter(index, self.weights, device)

    def gather(self, index: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """The values of dense (B, K) at the candidates of rows `index`: positions and values (sum,), on the host."""
        row, position = self.entries(index)
        cell = (row * self.num_classes + self.indices[position]).to(dense.device)
        return position, dense.reshape(-1)[cell].cpu()


def make_rows(
    numbers: Tensor,
    pixels: Tensor,
    candidates: Tensor,
    trusted: Tensor | None = None,
    features: Tensor | None = None,
    weights: Tensor | None = None,
) -> Rows:
    """Rows from tensors.

    Args:
        numbers: (N,). pixels: (N, S, S, 3) uint8. candidates: (N, K) bool. trusted: (N,) bool. features: (N, 1 + V, F)
            float16 where they stand for the pixels. weights: (N, K) float16 of the candidates.
    """
    as_given = Rows(
        numbers=numbers,
        pixels=pixels if features is None else no_pixels(len(numbers)),
        features=features,
        num_classes=candidates.shape[1],
        indptr=_starts(candidates.sum(1)),
        indices=candidates.nonzero()[:, 1].to(torch.int32),
        trusted=torch.zeros(len(numbers), dtype=torch.bool) if trusted is None else trusted,
        weights=None if weights is None else weights[candidates],
    )
    return as_given.select(torch.argsort(numbers))


def no_pixels(count: int) -> Tensor:
    """What stands for the pixels of images that are known by their features: (N, 0, 0, 3)."""
    return torch.empty(count, 0, 0, 3, dtype=torch.uint8)


def part_of(rows: Rows, replica: int, replicas: int) -> Rows:
    """The part of the rows that one replica of `replicas` holds."""
    return rows.select(torch.nonzero(rows.numbers % replicas == replica)[:, 0])


def _starts(sizes: Tensor) -> Tensor:
    """Where each of consecutive runs of `sizes` (N,) begins, and the end: (N + 1,) int64."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
