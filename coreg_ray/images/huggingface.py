"""Hugging Face datasets (extra `huggingface`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import BLOCK_IMAGES, Content, LabelReader, Split, block, columns_of, part_of, section_of


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
        columns = [name for name in (key, label) if name in data.features]
        light = data.select_columns(columns) if columns else None
        for start in range(0, len(data), BLOCK_IMAGES):
            indices = range(start, min(start + BLOCK_IMAGES, len(data)))
            batch = light[start : indices.stop] if light is not None else {}
            ids = [str(value) for value in batch.get(key, [f"{self.part}/{index:08d}" for index in indices])]
            given = map(self._meant, batch.get(label, [None] * len(ids)))
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


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> HuggingFaceSet:
    """The data set at `source.path` or `test.path`. Raises UserError as `HuggingFaceSet.at` does."""
    section = section_of(config, split)
    return HuggingFaceSet.at(section.path or "", section.name or part_of(split), columns_of(config), names)


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
