"""The embedded default: 1,797 handwritten digit scans as an image source that needs no network.

They are the test set of UCI's "optical recognition of handwritten digits" (Alpaydin, Kaynak, 1998), the table that
scikit-learn ships as `load_digits`; `digits-LICENSE.txt` has its origin and licence.
"""

from __future__ import annotations

import gzip
import io
from hashlib import sha256
from importlib import resources
from typing import Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

_TEXT = yaml.safe_load(resources.files(__package__).joinpath("digits.yaml").read_text(encoding="utf-8"))
CLASS_NAMES: tuple[str, ...] = tuple(_TEXT["classes"])
PROMPTS: tuple[str, ...] = tuple(_TEXT["templates"])
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

_SCANS = 1797
_TEST_SCANS = 360
_FULL_INK = 16  # the largest value in the scans


def digits(split: Split, size: int = 32) -> tuple[list[str], NDArray[np.uint8], NDArray[np.int64]]:
    """The scans of one split: image ids (N), images (N, size, size, 3) uint8, white ink on black, and labels (N,).

    The 8x8 scans are enlarged smoothly (bicubic) and repeated on three channels. An image id is
    "digits/<split>/<row>" with the row number in the table. The split is fixed by rule, the same on every
    machine: of all rows, the 360 whose SHA-256 of "digits/<row>" sorts first are the test set, the other 1,437 the
    training set; each is in the order of its rows.

    Raises:
        ValueError: if `split` or `size` is not one that exists.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    if size < 8:
        raise ValueError(f"size={size} is smaller than the scans; use 8 or more pixels")
    scans, labels = _table()
    rows = _rows(split)
    images = np.stack([_enlarge(scans[row], size) for row in rows])
    return [f"digits/{split}/{row:04d}" for row in rows], images, labels[rows]


def _table() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All scans (1797, 8, 8) and their labels (1797,)."""
    packed = resources.files(__package__).joinpath("digits.csv.gz").read_bytes()
    values = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",")
    return values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)


def _rows(split: str) -> list[int]:
    by_hash = sorted(range(_SCANS), key=lambda row: sha256(f"digits/{row:04d}".encode()).digest())
    return sorted(by_hash[:_TEST_SCANS] if split == "test" else by_hash[_TEST_SCANS:])


def _enlarge(scan: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    grey = Image.fromarray(np.round(scan * (255 / _FULL_INK)).astype(np.uint8))
    return np.repeat(np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC))[..., None], 3, axis=2)
