"""The embedded handwritten digits as a source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pyarrow as pa

from coreg_ray.config import Config
from coreg_ray.images.base import Content, Source, Split, blocks, part_of
from coreg_ray.images.labels import LabelReader, own_numbers


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's handwritten digits; the split is fixed by a rule on the image id."""

    part: Literal["train", "test"]
    names: dict[str, int] | None = None  # class name in lower case -> class number; None: the digits' own order
    known_classes: tuple[str, ...] = ()  # they come with their prompts

    def listing(self) -> Iterator[pa.Table]:
        image_ids, _, labels = _digits(self.part)
        numbers, reader = _numbers(self.names), LabelReader(self.names or {})
        given = [reader(numbers[label], image_id) or 0 for image_id, label in zip(image_ids, labels, strict=True)]
        return blocks(image_ids, given, list(range(len(image_ids))))

    def holds(self, other: Source) -> bool:
        return isinstance(other, Digits) and other.part == self.part

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        images = _digits(self.part)[1]
        return (images[index] for index in block["start"].to_pylist())


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> Digits:
    """The scans of one split, labelled in the order of `names`. Raises UserError: only some digits are among them."""
    _numbers(names)
    return Digits(part_of(split), names)


def _numbers(names: dict[str, int] | None) -> tuple[int, ...]:
    from coreg_ray.embedded.digits import CLASS_NAMES  # which reads a table

    return own_numbers([(name,) for name in CLASS_NAMES], names, "the set of digits")


@cache
def _digits(part: str) -> Any:
    from coreg_ray.embedded.digits import digits  # which reads a table

    return digits(part)  # type: ignore[arg-type]
