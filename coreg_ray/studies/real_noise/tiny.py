"""The studies' small twin: plain colours in the place of photos, made here, and voters who mistake some of them.

`prepared` chooses between it and a folder of the real images.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from coreg_ray.config import StudentConfig
from coreg_ray.errors import UserError
from coreg_ray.studies.real_noise.data import Study, check

ROWS, TESTED, SIDE, EPOCHS = 120, 60, 32, 4
MISTAKEN = 0.3  # of a voter's votes
STUDENT = StudentConfig(
    name="test_efficientnet", frozen=True, frozen_views=2, resolution=SIDE, width=4, projection=8, precision="float32"
)

STUDENTS = {
    "frozen": STUDENT,
    "scratch": StudentConfig(resolution=8, width=4, projection=8, precision="float32"),
}


def prepared(of: Study, folder: Path | None, smoke: bool, weights: bool) -> tuple[Study, Path]:
    """A study and the folder that has all its files; for `smoke` its small twin, made here, with no weights.

    Args:
        folder: as a person gave it. weights: whether the backbone's are needed.

    Raises:
        UserError: no folder was given, or it lacks a file.
    """
    if smoke:
        of, folder = study(of), Path(tempfile.mkdtemp(prefix="coreg-ray-")) if folder is None else folder
        make(of, folder)
    if folder is None:
        raise UserError("--data is missing: the folder of the studies' images and votes (--smoke makes its own)")
    check(of, folder, weights=weights and not smoke)
    return of, folder


def study(of: Study) -> Study:
    """The same study on fewer and smaller images."""
    return replace(of, rows=ROWS, tested=TESTED, side=SIDE)


def make(of: Study, folder: Path) -> None:
    """Write the files that a study reads, but for the backbone's weights."""
    random = np.random.default_rng(5)
    colours = random.integers(0, 256, (of.classes, 3))
    for name, count in ((of.pool, ROWS), (of.test, TESTED)):
        labels = random.integers(0, of.classes, count)
        images = [_png(colours[label] + random.integers(-20, 21, (SIDE, SIDE, 3))) for label in labels]
        ids = [f"{Path(name).stem}-{number}" for number in range(count)]
        table = pa.table({"image_id": ids, "image": pa.array(images, pa.binary()), "label": labels.astype(np.int16)})
        _write(table, folder / name)
        if name == of.pool:
            voters = 1 + max(max(some) for some in of.voters.values())
            wrong = random.random((count, voters)) < MISTAKEN
            votes = np.where(wrong, random.integers(0, of.classes, (count, voters)), labels[:, None])
            _write(pa.table({"image_id": ids, "votes": votes.tolist()}), folder / of.votes)


def _png(pixels: NDArray[np.int64]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
