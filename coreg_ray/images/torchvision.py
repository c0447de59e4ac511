"""The paper's sets as torchvision reads them, from files that lie on a disk which every machine sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import Content, Source, Split, Unread, blocks, part_of, section_name, section_of
from coreg_ray.images.labels import LabelReader, own_numbers
from coreg_ray.images.paper_sets import PAPER_SETS
from coreg_ray.images.reading import Attempts

_TEST_SHARE = 0.2  # of a set that comes without a split


@dataclass(frozen=True)
class TorchvisionSet:
    """One of the paper's sets as torchvision reads it, with the paper's class names and splits.

    EuroSAT has no split of its own: a fifth is the test set, by a rule on the image id.

    Attributes:
        name: a key of PAPER_SETS.
        root: the folder that torchvision's data class is given, on a disk that every machine sees.
        names: class name in lower case -> class number, in the user's order; None: the set's own order.
    """

    name: str
    root: str
    part: Literal["train", "test"]
    names: dict[str, int] | None = None
    unreadable: Unread = "fail"

    @classmethod
    def at(
        cls,
        name: str | None,
        root: str,
        part: Literal["train", "test"],
        names: dict[str, int] | None = None,
        section: str = "source",
    ) -> TorchvisionSet:
        """Open it once, so that what is missing is said before work starts.

        Args:
            section: of the configuration that names the set.

        Raises:
            UserError: no such set, its files are not below `root`, or only some of its classes are among `names`.
        """
        root = str(Path(root).expanduser())
        if name not in PAPER_SETS:
            raise UserError(f"{section}.name={name} is no set that is known here; use one of {', '.join(PAPER_SETS)}")
        source = cls(name, root, part, names)
        try:
            _torchvision(name, root, part)
        except (RuntimeError, OSError, ImportError, ValueError, EOFError) as error:
            raise UserError(
                f"{PAPER_SETS[name].torchvision} cannot be read below {root} ({error}); download it there"
            ) from error
        source._numbers()
        return source

    def _numbers(self) -> tuple[int, ...]:
        """The user's class number for each of the set's own. Raises UserError: only some are in the user's list."""
        return own_numbers([(name,) for name in self.known_classes], self.names, f"{self.name} (torchvision)")

    @property
    def known_classes(self) -> tuple[str, ...]:
        names = PAPER_SETS[self.name].class_names
        return tuple(names or _torchvision(self.name, self.root, self.part).classes)

    def listing(self) -> Iterator[pa.Table]:
        numbers, reader = self._numbers(), LabelReader(self.names or {})
        given = _labels(_torchvision(self.name, self.root, self.part))
        labels = [reader(numbers[label], f"{self.name}/{self.part}/{i:06d}") or 0 for i, label in enumerate(given)]
        if self.name == "eurosat":
            chosen = [i for i in range(len(labels)) if in_test(f"eurosat/{i:06d}") == (self.part == "test")]
            return blocks([f"eurosat/{i:06d}" for i in chosen], [labels[i] for i in chosen], chosen)
        ids = [f"{self.name}/{self.part}/{i:06d}" for i in range(len(labels))]
        return blocks(ids, labels, list(range(len(labels))))

    def holds(self, other: Source) -> bool:
        mine = (self.name, self.root, self.part)
        return isinstance(other, TorchvisionSet) and (other.name, other.root, other.part) == mine

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        data = _torchvision(self.name, self.root, self.part)
        attempts = Attempts(self.unreadable)
        for index in block["start"].to_pylist():
            try:
                yield attempts.one(partial(_pixels, data, index), f"{self.name} below {self.root}, image {index},")
            except OSError as error:
                yield error


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> TorchvisionSet:
    """The set that `source.name` or `test.name` names; its labels are its own, in the order of `names`.

    Raises:
        UserError: as `TorchvisionSet.at`.
    """
    section = section_of(config, split)
    return TorchvisionSet.at(section.name, section.path or "", part_of(split), names, section_name(split))


def in_test(image_id: str, share: float = _TEST_SHARE) -> bool:
    """Whether an image of a set without splits belongs to the test part; a rule, the same on every machine."""
    number = int.from_bytes(blake2b(image_id.encode(), digest_size=8, person=b"test split").digest(), "big")
    return number < share * 2.0**64


def _pixels(data: Any, index: int) -> NDArray[np.uint8]:
    """One image (H, W, 3). Raises OSError: it cannot be read, or is broken."""
    return np.asarray(data[index][0].convert("RGB"))


def _labels(data: Any) -> list[int]:
    """The labels of a torchvision set without reading its images."""
    for name in ("targets", "labels"):
        if hasattr(data, name):
            return [int(label) for label in getattr(data, name)]
    return [label for _, label in data._samples]


@cache
def _torchvision(name: str, root: str, part: str) -> Any:
    from torchvision import datasets  # slow to import

    kind = getattr(datasets, PAPER_SETS[name].torchvision)
    if name == "eurosat":
        return kind(root)
    if name in ("svhn", "fer2013", "gtsrb"):
        return kind(root, split=part)
    return kind(root, train=part == "train")
