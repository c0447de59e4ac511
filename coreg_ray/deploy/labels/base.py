"""What every form of labels is written from: the labels, a part at a time, and the pool's pictures.

Nothing here holds the pool: tables are read one after the other, and pictures find their labels by an index of 16
bytes a row.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import read_table
from coreg_ray.config import Config
from coreg_ray.deploy.purified import (
    FACTS,
    SCHEMA,
    STATUSES,
    Making,
    annotated_labels,
    annotator_probabilities,
    dense,
    part_names,
)
from coreg_ray.errors import UserError
from coreg_ray.ids import contains, row_numbers
from coreg_ray.images import open_source
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_CELLS = 2**22  # rows times classes at once
_TABLES_KEPT = 16  # of labels, while pictures go by in the order of their source


class Form(Protocol):
    """What a file here offers.

    Attributes:
        FILE: name of the one file that it writes, None where it fills a folder. HAS_PICTURES: whether images are in it.
    """

    FILE: str | None
    HAS_PICTURES: bool

    def write(self, labels: PoolLabels, folder: Folder, name: str, pictures: Pictures) -> int:
        """Write into an empty folder (`name`: of the one file); returns how many labels were written."""


@dataclass(frozen=True)
class PoolLabels:
    """The labels of a run's pool that are asked for.

    Attributes:
        purified: they are those of `purified/`; else the annotator's own, from the candidate sets.
        statuses: that are kept. least: probability that is kept.
    """

    run: RunFolder
    making: Making
    purified: bool
    statuses: frozenset[str] = frozenset(STATUSES)
    least: float = 0.0

    @property
    def class_names(self) -> list[str]:
        return self.making.class_names

    @property
    def folder(self) -> Folder:
        return self.run.purified if self.purified else self.run.candidates

    def parts(self) -> list[str]:
        """The files that the labels are read from."""
        return part_names(self.folder)

    def table(self, part: str) -> pa.Table:
        """The labels of one part that are kept (deploy.purified.SCHEMA)."""
        return self._kept(self._read(part))

    def tables(self) -> Iterator[pa.Table]:
        """All labels that are kept, part by part."""
        yield from map(self.table, self.parts())

    def with_probabilities(self) -> Iterator[tuple[pa.Table, NDArray[np.float32]]]:
        """Labels that are kept, and distributions (B, K): the networks', or the annotator's where no network is."""
        for part in self.parts():
            for table, probs in self._blocks(part):
                kept = self._mask(table)
                yield table.filter(kept), probs[kept.to_numpy(zero_copy_only=False)]

    def counts(self) -> Counter[str]:
        """How many labels of each status there are in all, whether they are kept or not."""
        total: Counter[str] = Counter()
        for part in self.parts():
            total.update(self._read(part, ["status"])["status"].to_pylist())
        return total

    def count(self) -> int:
        """How many labels are kept."""
        return sum(int(pc.sum(self._mask(self._read(p, ["status", "probability"]))).as_py() or 0) for p in self.parts())

    def refuse_none(self) -> None:
        """Raises UserError where no label is kept."""
        if any(len(table) for table in self.tables()):
            return
        there = ", ".join(f"{count} {status}" for status, count in self.counts().items()) or "none at all"
        raise UserError(
            f"no label of {self.run.path} has a status among {', '.join(sorted(self.statuses))} and a probability of "
            f"{self.least:g} or more (there are {there}); ask for less with --status or --min_probability"
        )

    def _read(self, part: str, columns: list[str] | None = None) -> pa.Table:
        if self.purified:
            return read_table(self.folder, part, columns)
        return pa.concat_tables([annotated_labels(facts, self.making) for facts in self._facts(part)])

    def _facts(self, part: str) -> Iterator[pa.Table]:
        """Candidate sets of one file, few enough at a time for many classes."""
        facts, rows = read_table(self.folder, part, FACTS), max(1, _CELLS // len(self.class_names))
        yield from (facts.slice(start, rows) for start in range(0, max(1, len(facts)), rows))

    def _blocks(self, part: str) -> Iterator[tuple[pa.Table, NDArray[np.float32]]]:
        if not self.purified:
            for facts in self._facts(part):
                yield annotated_labels(facts, self.making), annotator_probabilities(facts, self.making)
            return
        labels, told = self._read(part), read_table(self.run.probabilities, part)
        rows = max(1, _CELLS // len(self.class_names))
        for start in range(0, len(labels), rows):
            yield labels.slice(start, rows), dense(told.slice(start, rows), len(self.class_names))

    def _mask(self, table: pa.Table) -> pa.Array:
        right = pc.is_in(table["status"], pa.array(sorted(self.statuses)))
        return pc.and_(
            right, pc.greater_equal(table["probability"], pa.scalar(self.least, pa.float32()))
        ).combine_chunks()

    def _kept(self, table: pa.Table) -> pa.Table:
        return table.filter(self._mask(table)).cast(SCHEMA)


@dataclass(frozen=True)
class Pictures:
    """The pool's images: where they lie, and whether what is written holds them or points at them."""

    config: Config
    how: Literal["link", "copy"]

    def check(self, output: str) -> None:
        """Raises UserError where images cannot be linked."""
        if self.how == "copy":
            return
        kind, path = self.config.source.kind, self.config.source.path or ""
        if kind != "folder" or "://" in path:
            where = f"source.kind={kind}" if kind != "folder" else f"source.path={path}"
            raise UserError(
                f"--pictures link needs images that are files in a local folder, and the pool is {where}; use "
                "--pictures copy"
            )
        if "://" in output:
            raise UserError(f"--pictures link needs a local --output, not {output}; use --pictures copy")

    def beside(self, labels: PoolLabels) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Labels that are kept and the listing of their images, row by row alike, in the order of the source.

        Labelled images that the source does not hold any more are counted and named.
        """
        listed, index = 0, _Index.of(labels)
        for block in open_source(self.config, "pool").listing():
            numbers = row_numbers(block["image_id"].to_pylist())
            known = contains(index.numbers, numbers)
            listed += int(known.sum())
            if known.any():
                yield index.take(numbers[known]), block.filter(pa.array(known))
        if listed < len(index.numbers):
            log.warning(
                "%d labelled images do not lie in the source any more and are left out; give their place with "
                "--source.path where they have moved",
                len(index.numbers) - listed,
            )


class _Index:
    """Where the label of each image lies: in which part, and where there."""

    def __init__(
        self, labels: PoolLabels, numbers: NDArray[np.int64], part: NDArray[np.int32], place: NDArray[np.int32]
    ) -> None:
        """`numbers` (N,): of the rows that are kept, ascending; `part`, `place` (N,)."""
        self.numbers, self._part, self._place = numbers, part, place
        self._names = labels.parts()
        self._table = lru_cache(_TABLES_KEPT)(labels.table)

    @classmethod
    def of(cls, labels: PoolLabels) -> _Index:
        """Of all labels that are kept."""
        rows = [row_numbers(table["image_id"].to_pylist()) for table in labels.tables()]
        numbers = np.concatenate([np.zeros(0, np.int64), *rows])
        part = np.repeat(np.arange(len(rows), dtype=np.int32), [len(some) for some in rows])
        place = np.concatenate([np.zeros(0, np.int32), *(np.arange(len(some), dtype=np.int32) for some in rows)])
        order = np.argsort(numbers)
        return cls(labels, numbers[order], part[order], place[order])

    def take(self, numbers: NDArray[np.int64]) -> pa.Table:
        """The labels of rows (B,), in their order; all of them are known."""
        at = np.searchsorted(self.numbers, numbers)
        parts, places = self._part[at], self._place[at]
        order, tables = [], []
        for part in np.unique(parts):
            mine = np.flatnonzero(parts == part)
            order.append(mine)
            tables.append(self._table(self._names[part]).take(pa.array(places[mine])))
        return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))
