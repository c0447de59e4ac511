"""The images and votes of the studies, from a folder of Parquet files: which files they need, and how they are joined.

Columns: `image_id`, `image` (bytes of a file) and `label` of images; `image_id` and `votes` (a list, one of each voter)
of votes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.images.decode import Fit, decode

WEIGHTS = "weights/tf_efficientnet_lite0.safetensors"


@dataclass(frozen=True)
class Study:
    """Where a study's images lie, below the data folder, and how they are shown.

    Attributes:
        pool, test: files of images. votes: file of the pool's votes. voters: name of a set of voters -> which of them.
        classes: K. rows: most images of the pool. tested: most test images. side: of what the backbone sees, in pixels.
    """

    pool: str
    votes: str
    test: str
    voters: dict[str, tuple[int, ...]]
    classes: int
    rows: int
    tested: int
    side: int

    def files(self, weights: bool) -> tuple[str, ...]:
        """All that must be there."""
        return (self.pool, self.votes, self.test, *((WEIGHTS,) if weights else ()))


STUDIES = {
    "people": Study(
        "cifar10/train.parquet", "cifar10/votes-people.parquet", "cifar10/test.parquet",
        {"people": (0, 1, 2)}, classes=10, rows=4000, tested=4000, side=128,
    ),
    "vlm": Study(
        "cifar10/test.parquet", "cifar10/votes-vlm.parquet", "cifar10/train.parquet",
        {"clip3": (0, 1, 2), "vlm13": tuple(range(13))}, classes=10, rows=4000, tested=4000, side=128,
    ),
    "waste": Study(
        "trashnet/pool.parquet", "trashnet/votes-pool.parquet", "trashnet/test.parquet",
        {"waste": tuple(range(12))}, classes=6, rows=1935, tested=592, side=128,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """Some images in the order of their numbers, so that fewer are the first of more.

    Attributes:
        numbers: (N,) int64 row numbers. files: N contents of image files. labels: (N,) int64. ids: N.
    """

    ids: list[str]
    numbers: Tensor
    files: list[bytes]
    labels: Tensor

    def pixels(self, start: int, stop: int, side: int) -> Tensor:
        """Images start .. stop as (n, side, side, 3) uint8."""
        fit = Fit.square(side)
        shown = [np.array(fit(decode(content))) for content in self.files[start:stop]]
        return torch.from_numpy(np.stack(shown))


def check(study: Study, folder: Path, weights: bool = True) -> None:
    """Raises UserError that names what a data folder lacks; `weights`: whether the backbone's are needed."""
    needed = study.files(weights)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UserError(f"--data {folder} lacks {', '.join(missing)}; the study needs {', '.join(needed)}")


def read_pictures(path: Path, most: int) -> Pictures:
    """At most so many images of a file, drawn by their ids.

    Raises:
        UserError: some have no label, without which nothing can be scored.
    """
    table = pq.read_table(path, columns=["image_id", "image", "label"])
    numbers = row_numbers(table["image_id"].to_pylist())
    order = np.argsort(numbers)[:most]
    table, numbers = table.take(pa.array(order)), numbers[order]
    labels = pc.fill_null(table["label"], -1).to_numpy().astype(np.int64)
    if (labels < 0).any():
        raise UserError(f"{path} has {int((labels < 0).sum())} images without a label; a study scores by them")
    files, ids = table["image"].to_pylist(), table["image_id"].to_pylist()
    return Pictures(ids, torch.from_numpy(numbers.copy()), files, torch.from_numpy(labels))


def read_votes(path: Path, ids: list[str], voters: Iterable[int]) -> Tensor:
    """Votes (N, V) int64 of some voters on images.

    Raises:
        UserError: nobody has voted on some of them.
    """
    table = pq.read_table(path, columns=["image_id", "votes"])
    place = pc.index_in(pa.array(ids), table["image_id"].combine_chunks())
    if place.null_count:
        raise UserError(f"{path} has no votes on {place.null_count} of the images")
    votes = torch.tensor(table["votes"].take(place).to_pylist(), dtype=torch.int64)
    return votes[:, list(voters)]
