"""The embedded handwritten digits as a source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pyarrow as pa

from coreg_ray.config import Config
from coreg_ray.images.base import Content, Split, blocks, part_of


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's handwritten digits; the split is fixed by a rule on the image id."""

    part: Literal["train", "test"]
    known_classes: tuple[str, ...] = ()  # they come with their prompts

    def listing(self) -> Iterator[pa.Table]:
        image_ids, _, labels = _digits(self.part)
        return blocks(image_ids, labels.tolist(), list(range(len(image_ids))))

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        images = _digits(self.part)[1]
        return (images[index] for index in block["start"].to_pylist())


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> Digits:
    """The scans of one split; they are numbered by their digit, so `names` is not looked at."""
    return Digits(part_of(split))


@cache
def _digits(part: str) -> Any:
    from coreg_ray.embedded.digits import digits  # which reads a table

    return digits(part)  # type: ignore[arg-type]
