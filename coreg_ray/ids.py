"""What names an image everywhere: its row number, the rule that holds rows out, and digests of ids and contents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray


def row_number(image_id: str) -> int:
    """The number of an image everywhere after annotation: a 63-bit hash of its id, the same on every machine.

    It decides which replica holds a row, whether it is held out, and its random views, and needs no global order.
    """
    return int.from_bytes(blake2b(image_id.encode(), digest_size=8).digest(), "big") >> 1


def row_numbers(image_ids: Sequence[str]) -> NDArray[np.int64]:
    """(N,) int64 `row_number` of each id."""
    return np.fromiter(map(row_number, image_ids), np.int64, len(image_ids))


def held_out(rows: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which rows (N,) are annotated but not trained on: those whose number lies in the first `share` of all numbers."""
    return rows < share * 2.0**63


def fingerprint(*values: Any) -> str:
    """16 hex digits over anything that JSON can hold."""
    return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def content_hash(content: bytes | NDArray[np.uint8]) -> str:
    """32 hex digits over an image as it was delivered: encoded bytes, or an array with its shape."""
    if isinstance(content, bytes):
        return blake2b(content, digest_size=16).hexdigest()
    return blake2b(content.tobytes(), digest_size=16, person=repr(content.shape).encode()[:16]).hexdigest()


def keys(image_ids: Sequence[str], contents: Sequence[str]) -> NDArray[np.uint64]:
    """(N,) uint64: one number for an image with that id and that content."""
    digests = (blake2b(f"{i}\0{c}".encode(), digest_size=8).digest() for i, c in zip(image_ids, contents, strict=True))
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def contains(ordered: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `values` (M,) are among `ordered` (N,), sorted ascending."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    return ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values


def images_hash(image_ids: Sequence[str], contents: Sequence[str]) -> str:
    """16 hex digits over the images of a part."""
    return keys_hash(keys(image_ids, contents))


def keys_hash(numbers: NDArray[np.uint64]) -> str:
    """16 hex digits over the keys (N,) of the images of a part."""
    return blake2b(numbers.tobytes(), digest_size=8).hexdigest()
