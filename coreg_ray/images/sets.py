"""Image sets that are read by index: the embedded digits, torchvision's named sets, Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from coreg_ray.annotation.vocabulary import paper_classes
from coreg_ray.errors import UserError
from coreg_ray.images.base import BLOCK_IMAGES, Content, LabelReader, block

Part = Literal["train", "test"]
TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "fashion_mnist": "FashionMNIST",
    "eurosat": "EuroSAT",
    "fer2013": "FER2013",
    "gtsrb": "GTSRB",
}
_TEST_SHARE = 0.2  # of a set that comes without a split


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's handwritten digits; the split is fixed by a rule on the image id."""

    part: Part
    known_classes: tuple[str, ...] = ()  # they come with their prompts

    def listing(self) -> Iterator[pa.Table]:
        image_ids, _, labels = _digits(self.part)
        return _blocks(image_ids, labels.tolist(), list(range(len(image_ids))))

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        images = _digits(self.part)[1]
        return (images[index] for index in block["start"].to_pylist())


@dataclass(frozen=True)
class TorchvisionSet:
    """One of the paper's sets as torchvision reads it, with the paper's class names and splits.

    EuroSAT has no split of its own: a fifth is the test set, by a rule on the image id.

    Attributes:
        name: a key of TORCHVISION.
        root: the folder that torchvision's data class is given, on a disk that every machine sees.
    """

    name: str
    root: str
    part: Part

    @classmethod
    def at(cls, name: str | None, root: str, part: Part) -> TorchvisionSet:
        """Open it once, so that what is missing is said before work starts.

        Raises:
            UserError: no such set, or its files are not below `root`.
        """
        if name not in TORCHVISION:
            raise UserError(f"source.name={name} is no set that is known here; use one of {', '.join(TORCHVISION)}")
        source = cls(name, root, part)
        try:
            _torchvision(name, root, part)
        except (RuntimeError, OSError, ImportError) as error:
            raise UserError(f"{TORCHVISION[name]} cannot be read below {root} ({error}); download it there") from error
        return source

    @property
    def known_classes(self) -> tuple[str, ...]:
        names = paper_classes(self.name)
        return tuple(names or _torchvision(self.name, self.root, self.part).classes)

    def listing(self) -> Iterator[pa.Table]:
        labels = _labels(_torchvision(self.name, self.root, self.part))
        if self.name == "eurosat":
            chosen = [i for i in range(len(labels)) if in_test(f"eurosat/{i:06d}") == (self.part == "test")]
            return _blocks([f"eurosat/{i:06d}" for i in chosen], [labels[i] for i in chosen], chosen)
        ids = [f"{self.name}/{self.part}/{i:06d}" for i in range(len(labels))]
        return _blocks(ids, labels, list(range(len(labels))))

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        data = _torchvision(self.name, self.root, self.part)
        for index in block["start"].to_pylist():
            try:
                yield np.asarray(data[index][0].convert("RGB"))
            except OSError as error:
                yield error


@dataclass(frozen=True)
class HuggingFaceSet:
    """A Hugging Face dataset: a folder that `save_to_disk` wrote, or whatever `load_dataset` takes.

    Attributes:
        columns: of the image, the id and the label; the last two need not exist.
        by_name: whether the numbers of its labels stand for names that are looked up. Where the user has renamed all
            classes, they are positions in the user's list.
    """

    path: str
    part: str
    columns: tuple[str, str, str]
    labels: LabelReader
    known_classes: tuple[str, ...] = ()
    by_name: bool = False

    @classmethod
    def at(cls, path: str, part: str, columns: tuple[str, str, str], names: dict[str, int] | None) -> HuggingFaceSet:
        """Open it once, so that what is missing is said before work starts.

        Raises:
            UserError: `datasets` is not installed, there is no such dataset, split or column of images, or only some of
                its class names are among `names`.
        """
        data = _hugging_face(path, part)
        image, _, label = columns
        if image not in data.features:
            raise UserError(
                f"{path} has no column {image!r}; set source.image_column to one of {', '.join(data.features)}"
            )
        known = tuple(getattr(data.features.get(label), "names", None) or ())
        unknown = [name for name in known if name.lower() not in (names or {})]
        if names and 0 < len(unknown) < len(known):
            raise UserError(
                f"{path} has the classes {', '.join(known[:5])}, ... of which {unknown[0]!r} and {len(unknown) - 1} "
                "more are not among source.classes; add them, for example as further names (car|automobile), or "
                "rename all of them"
            )
        return cls(path, part, columns, LabelReader(names), known, by_name=not unknown)

    def listing(self) -> Iterator[pa.Table]:
        data, (_, key, label) = _hugging_face(self.path, self.part), self.columns
        wanted = [name for name in (key, label) if name in data.features]
        light = data.select_columns(wanted) if wanted else None
        for start in range(0, len(data), BLOCK_IMAGES):
            indices = range(start, min(start + BLOCK_IMAGES, len(data)))
            found = light[start : indices.stop] if light is not None else {}
            ids = [str(value) for value in found.get(key, [f"{self.part}/{index:08d}" for index in indices])]
            given = map(self._meant, found.get(label, [None] * len(ids)))
            labels = [self.labels(value, i) for value, i in zip(given, ids, strict=True)]
            yield block(ids, labels=labels, starts=indices)

    def _meant(self, label: Any) -> Any:
        """A label's name where it has one; -1 is how sets without labels number them."""
        if not self.known_classes or not isinstance(label, int):
            return label
        if label < 0:
            return None
        return self.known_classes[label] if self.by_name else label

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        from datasets import Image

        name = self.columns[0]
        data = _hugging_face(self.path, self.part).select_columns([name])
        data = data.cast_column(name, Image(decode=False))
        for index in block["start"].to_pylist():
            try:
                entry = data[index][name]
                yield entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes()
            except (OSError, TypeError) as error:
                yield error


def in_test(image_id: str, share: float = _TEST_SHARE) -> bool:
    """Whether an image of a set without splits belongs to the test part; a rule, the same on every machine."""
    number = int.from_bytes(blake2b(image_id.encode(), digest_size=8, person=b"test split").digest(), "big")
    return number < share * 2.0**64


def _blocks(ids: list[str], labels: list[int], indices: list[int]) -> Iterator[pa.Table]:
    for start in range(0, len(ids), BLOCK_IMAGES):
        part = slice(start, start + BLOCK_IMAGES)
        yield block(ids[part], labels=labels[part], starts=indices[part])


def _labels(data: Any) -> list[int]:
    """The labels of a torchvision set without reading its images."""
    for name in ("targets", "labels"):
        if hasattr(data, name):
            return [int(label) for label in getattr(data, name)]
    return [label for _, label in data._samples]


@cache
def _digits(part: Part) -> Any:
    from coreg_ray.embedded.digits import digits  # scikit-learn is slow to import

    return digits(part)


@cache
def _torchvision(name: str, root: str, part: Part) -> Any:
    from torchvision import datasets  # slow to import

    kind = getattr(datasets, TORCHVISION[name])
    if name == "eurosat":
        return kind(root)
    if name in ("svhn", "fer2013", "gtsrb"):
        return kind(root, split=part)
    return kind(root, train=part == "train")


@cache
def _hugging_face(path: str, part: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("source.kind=huggingface needs `datasets`: pip install 'coreg-ray[huggingface]'") from error
    try:
        saved = any((Path(path) / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
        data = datasets.load_from_disk(path) if saved else datasets.load_dataset(path)
        return data[part] if isinstance(data, datasets.DatasetDict) else data
    except KeyError as error:
        raise UserError(f"{path} has no split {part!r}; set source.name to one of {', '.join(data)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a Hugging Face dataset: {error}") from error
