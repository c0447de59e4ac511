"""Candidate sets as they lie in the run folder, and the labels that methods make of them when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from coreg_ray.errors import UserError
from coreg_ray.training.soft import Soft

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Wanted:
    """What is read of candidate sets.

    Attributes:
        weighted: the candidates' weights, too.
        labels: `candidates`: the sets; `single`: of each set the class that scores highest, the lowest of equals, as a
            set of its own; `soft`: the sets, and shares of all classes.
    """

    weighted: bool = False
    labels: Literal["candidates", "single", "soft"] = "candidates"

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the stored table."""
        more = {"candidates": (), "single": ("scores",), "soft": ("soft_classes", "soft_shares")}[self.labels]
        return ("row", "candidates", "trusted", "excluded", *(("weights",) if self.weighted else ()), *more)


SETS_ALONE = Wanted()


@dataclass(frozen=True)
class Sets:
    """Candidate sets in the order in which they are stored.

    Attributes:
        numbers, trusted: (N,). sizes: (N,) int64. indices: (sum of |S|,) int32. weights: (sum,) float16 or None.
        soft: of the N rows, where they were wanted. excluded: (M,) row numbers that a person found of no class.
    """

    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    indices: NDArray[np.int32]
    trusted: NDArray[np.bool_]
    weights: NDArray[np.float16] | None
    soft: Soft | None
    excluded: NDArray[np.int64]


def read_sets(batches: Iterator[pa.Table | pa.RecordBatch], which: Wanted, where: str) -> Sets:
    """The candidate sets of a stored table's batches.

    Args:
        where: what to call the run.

    Raises:
        UserError: an earlier version made the sets, and they lack what is wanted.
    """
    import pyarrow.compute as pc  # here, so that rows in memory need torch alone

    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("sizes", *which.columns)}
    for batch in batches:
        if lacking := set(which.columns) - {"excluded"} - set(batch.schema.names):
            raise UserError(
                f"{where}: its candidate sets are an earlier version's and lack {', '.join(sorted(lacking))}; remove "
                "candidates/ and give the same command again, which makes them from annotations/"
            )
        if "excluded" in batch.schema.names:  # earlier versions excluded none
            columns["excluded"].append(batch.filter(batch["excluded"])["row"].to_numpy())
            batch = batch.filter(pc.invert(batch["excluded"]))
        columns["row"].append(batch["row"].to_numpy())
        columns["trusted"].append(batch["trusted"].to_numpy(zero_copy_only=False))
        columns["sizes"].append(pc.list_value_length(batch["candidates"]).to_numpy())
        for name in set(which.columns) - {"row", "trusted", "excluded"}:
            columns[name].append(pc.list_flatten(batch[name]).to_numpy())

    def whole(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *columns[name]]).astype(dtype)

    sizes, indices = whole("sizes", np.int64), whole("candidates", np.int32)
    weights, soft = whole("weights", np.float16) if which.weighted else None, None
    trusted = whole("trusted", np.bool_)
    if which.labels == "single":
        indices = indices[_likeliest(sizes, indices, whole("scores", np.float16))]
        sizes, weights = np.ones_like(sizes), None
    elif which.labels == "soft":
        shape = (len(sizes), -1) if len(sizes) else (0, 1)
        classes, shares = (
            whole("soft_classes", np.int32).reshape(shape),
            whole("soft_shares", np.float16).reshape(shape),
        )
        of_trusted = np.flatnonzero(trusted)
        classes, shares = certain(classes, shares, of_trusted, indices[(sizes.cumsum() - sizes)[of_trusted]])
        soft = Soft(torch.from_numpy(classes), torch.from_numpy(shares))
    return Sets(whole("row", np.int64), sizes, indices, trusted, weights, soft, whole("excluded", np.int64))


def _likeliest(sizes: NDArray[np.int64], indices: NDArray[np.int32], scores: NDArray[np.float16]) -> NDArray[np.int64]:
    """Where in `indices` each row's highest score lies, of equals that of the lowest class: (N,)."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((indices, -scores.astype(np.float32), owner))
    return order[sizes.cumsum() - sizes]


def certain(
    classes: NDArray[np.int32], shares: NDArray[np.float16], rows: NDArray[np.int64], labels: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """Shares of which those of some rows lie on one class alone."""
    classes, shares = classes.copy(), shares.copy()
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        others = classes[row][classes[row] != label][: classes.shape[1] - 1]
        classes[row] = [label, *others]
        shares[row] = [1, *np.zeros(len(others))]
    return classes, shares
