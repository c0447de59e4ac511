"""The actor that purifies labels: both networks over a few parts of rows at a time, candidate sets in reach."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreg_ray.annotation.arrow import read_table, write_table
from coreg_ray.annotation.labels import Labels
from coreg_ray.config import StudentConfig
from coreg_ray.deploy.predictions import Pair
from coreg_ray.deploy.purified import FACTS, Making, purified_labels
from coreg_ray.errors import UserError
from coreg_ray.ids import contains
from coreg_ray.report.confusions import Confusions
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.storage import Folder
from coreg_ray.training.evaluate import ACCELERATOR_BATCH, EVALUATE_BATCH
from coreg_ray.training.networks import Student
from coreg_ray.training.side_by_side import at_once
from coreg_ray.training.soundness import Soundness
from coreg_ray.training.state import working_precision


@dataclass(frozen=True)
class Chunk:
    """A few parts of what networks see of a split (`seen`), and the name of what is made of them."""

    split: Split
    part: str
    rows: list[str]

    def as_row(self) -> dict[str, str]:
        """As a row of a Ray dataset."""
        return {"split": self.split, "part": self.part, "rows": "\n".join(self.rows)}

    @classmethod
    def of(cls, batch: dict[str, NDArray[Any]]) -> Chunk:
        """From a batch of one such row."""
        return cls(batch["split"][0], str(batch["part"][0]), str(batch["rows"][0]).split("\n"))


@dataclass(frozen=True)
class Stored:
    """References to what lies in the object store; those of an index and of labels in lists, so that Ray leaves them.

    Attributes:
        facts: tables of candidate sets. index: `Index`. sound: `Soundness`. truth: labels of test images.
    """

    facts: list[ray.ObjectRef]
    index: list[ray.ObjectRef]
    sound: list[ray.ObjectRef]
    truth: list[ray.ObjectRef]


@dataclass(frozen=True)
class Index:
    """Where each candidate set lies: (N,) row numbers, ascending, its table, and its place there."""

    numbers: NDArray[np.int64]
    table: NDArray[np.int32]
    place: NDArray[np.int32]


def read_facts(names: list[str], folder: Folder) -> pa.Table:
    """Candidate sets of a few files; columns that an earlier version has not written are missing."""
    return pa.concat_tables([read_table(folder, name, FACTS) for name in names], promote_options="default")


def build_index(facts: list[ray.ObjectRef]) -> Index:
    """The index of all candidate sets in these tables."""
    rows = [ray.get(reference)["row"].to_numpy() for reference in facts]
    numbers = np.concatenate([np.zeros(0, np.int64), *rows])
    table = np.repeat(np.arange(len(rows), dtype=np.int32), [len(part) for part in rows])
    place = np.concatenate([np.zeros(0, np.int32), *(np.arange(len(part), dtype=np.int32) for part in rows)])
    order = np.argsort(numbers)
    return Index(numbers[order], table[order], place[order])


class Purifier:
    """One member of the pool: both networks, and the candidate sets in reach."""

    def __init__(self, run: RunFolder, making: Making, precision: str, beside: int, stored: Stored) -> None:
        """`beside`: purifiers that share a machine's cores; 0 where each has a GPU."""
        if beside:  # half of them for each network
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // (2 * beside)))
        pair = Pair.of(run)
        assert pair is not None
        self._run, self._making, self._stored, self._pair = run, making, stored, pair
        student = pair.student.model_copy(update={"precision": precision})
        self._dtype = working_precision(student, pair.a.device)
        self._index: Index = ray.get(stored.index[0])
        self._sound: Soundness = ray.get(stored.sound[0])
        self._truth: Labels = ray.get(stored.truth[0])

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A batch of one chunk -> `images`, `strange` (images without a candidate set), and `tested`."""
        chunk = Chunk.of(batch)
        images = strange = 0
        tables, tested = [], []
        for numbers, inputs in self._inputs(chunk):
            logits = self._logits(inputs)
            images += len(numbers)
            if chunk.split == "test":
                tested.append(self._tested(numbers, logits))
                continue
            known = contains(self._index.numbers, numbers)
            strange += int((~known).sum())
            facts, clean = self._facts_of(numbers[known]), self._sound.rows(numbers[known])
            tables.append(purified_labels(facts, logits[:, torch.from_numpy(known)], clean, self._making))
        if tables:
            labels, probabilities = (pa.concat_tables(some) for some in zip(*tables, strict=True))
            write_table(self._run.probabilities, chunk.part, probabilities)
            write_table(self._run.purified, chunk.part, labels)  # last: where it lies, both do
        line = np.empty(1, dtype=object)
        line[0] = [reduce(add, split) for split in zip(*tested, strict=True)]
        return {"images": np.array([images]), "strange": np.array([strange]), "tested": line}

    def _inputs(self, chunk: Chunk) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Row numbers (B,) and what networks see of them, part by part; the next is read while one is looked at."""
        student = self._pair.student
        folder = seen(self._run, chunk.split, student)
        read = read_features if student.on_features else partial(read_pixels, side=student.resolution)
        with ThreadPoolExecutor(1) as reader:
            ahead: list[Future[tuple[NDArray[np.int64], Tensor]]] = []
            for name in chunk.rows:
                ahead.append(reader.submit(read, folder, name))
                if len(ahead) == 2:
                    yield ahead.pop(0).result()
            yield from (part.result() for part in ahead)

    def _logits(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) or (B, F) -> (2, B, K) on the host, in the precision that the networks were trained in."""
        device, kept = self._pair.a.device, torch.channels_last if inputs.dim() == 4 else torch.preserve_format
        at_a_time, half = EVALUATE_BATCH.get(device.type, ACCELERATOR_BATCH), self._dtype == torch.bfloat16
        blocks = [block.to(device, memory_format=kept) for block in inputs.split(at_a_time)]

        @torch.inference_mode()
        def ask(network: Student) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
                return torch.cat([network.classify(block) for block in blocks]).cpu()

        pair = (self._pair.a, self._pair.b)
        return torch.stack(at_once(ask, pair) if device.type == "cpu" else [ask(network) for network in pair])

    def _tested(self, numbers: NDArray[np.int64], logits: Tensor) -> list[Confusions]:
        """Both networks together, a and b, on labelled test images."""
        true = self._truth.of(numbers).numpy()
        known, classes = true >= 0, logits.shape[2]
        ways = (logits.sum(dim=0), logits[0], logits[1])
        return [Confusions.of(true[known], way.argmax(dim=1).numpy()[known], classes) for way in ways]

    def _facts_of(self, numbers: NDArray[np.int64]) -> pa.Table:
        """The candidate sets of rows (B,), in their order."""
        at = np.searchsorted(self._index.numbers, numbers)
        tables, places = self._index.table[at], self._index.place[at]
        order, parts = [], []
        for table in np.unique(tables):
            mine = np.flatnonzero(tables == table)
            order.append(mine)
            parts.append(ray.get(self._stored.facts[table]).take(pa.array(places[mine])))
        back = np.argsort(np.concatenate([np.zeros(0, np.int64), *order]))
        return pa.concat_tables(parts, promote_options="default").take(pa.array(back))


def seen(run: RunFolder, split: Split, student: StudentConfig) -> Folder:
    """Where what networks see of a split's images lies: images, or what a frozen backbone saw of them."""
    return run.features / split if student.on_features else run.rows(split)


def read_features(folder: Folder, name: str) -> tuple[NDArray[np.int64], Tensor]:
    """One part of `features/<split>`: row numbers (B,) and the features (B, F) float32 of the images themselves."""
    table = read_table(folder, name, ["row", "plain"])
    stored = np.frombuffer(b"".join(table["plain"].to_pylist()), np.float16).astype(np.float32)
    return table["row"].to_numpy(), torch.from_numpy(stored.reshape(len(table), -1))


def read_pixels(folder: Folder, name: str, side: int) -> tuple[NDArray[np.int64], Tensor]:
    """One part of `rows/<split>`: row numbers (B,) and pixels (B, 3, side, side) uint8, channels last in memory.

    Raises:
        UserError: its images have another size.
    """
    table = read_table(folder, name, ["row", "image"])
    pixels = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8)
    if pixels.size != len(table) * side * side * 3:
        raise UserError(f"{folder.path} does not hold {side} px images; remove it and give the command again")
    return table["row"].to_numpy(), torch.from_numpy(pixels.reshape(-1, side, side, 3).copy()).permute(0, 3, 1, 2)
