"""Hugging Face datasets (extra `huggingface`)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import BLOCK_IMAGES, Content, Split, Unread, block, columns_of, part_of, section_of
from coreg_ray.images.labels import LabelReader, own_numbers
from coreg_ray.images.notes import ListingNotes
from coreg_ray.images.reading import Attempts
from coreg_ray.images.tables import refuse_pickled_files


@dataclass(frozen=True)
class HuggingFaceSet:
    """A Hugging Face dataset: a folder that `save_to_disk` wrote, or whatever `load_dataset` takes.

    Attributes:
        columns: of the image, the id and the label; the last two need not exist.
        numbers: the user's class number for each of the set's own. Where the user has renamed all classes, they are
            positions in the user's list.
        subset: the set's configuration, None for the only one.
    """

    path: str
    part: str
    columns: tuple[str, str, str]
    labels: LabelReader
    known_classes: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    subset: str | None = None
    unreadable: Unread = "fail"

    @classmethod
    def at(
        cls,
        path: str,
        part: str,
        columns: tuple[str, str, str],
        names: dict[str, int] | None,
        subset: str | None = None,
    ) -> HuggingFaceSet:
        """Open it once, so that what is missing is said before work starts.

        Raises:
            UserError: `datasets` is not installed, there is no such dataset, split or column of images, it would be
                unpickled, or only some of its class names are among `names`.
        """
        path = str(Path(path).expanduser()) if path.startswith("~") else path
        data = _hugging_face(path, part, subset)
        image, _, label = columns
        if image not in data.features:
            raise UserError(
                f"{path} has no column {image!r}; set source.image_column to one of {', '.join(data.features)}"
            )
        if not _can_hold_images(data.features[image]):
            raise UserError(
                f"{path} holds {data.features[image]} in {image!r}; images are the type Image or encoded bytes: cast "
                "the column (`cast_column`), or set source.image_column; arrays can be read from Parquet files"
            )
        known = tuple(getattr(data.features.get(label), "names", None) or ())
        return cls(
            path, part, columns, LabelReader(names), known, own_numbers([(n,) for n in known], names, path), subset
        )

    def listing(self) -> Generator[pa.Table, None, ListingNotes]:
        data, (_, key, label) = self._data(), self.columns
        if not len(data):
            raise UserError(f"{self.path} holds no row in its split {self.part}; give some images")
        columns = [name for name in (key, label) if name in data.features]
        light = data.select_columns(columns) if columns else None
        for start in range(0, len(data), BLOCK_IMAGES):
            indices = range(start, min(start + BLOCK_IMAGES, len(data)))
            batch = light[start : indices.stop] if light is not None else {}
            ids = [str(value) for value in batch.get(key, [f"{self.part}/{index:08d}" for index in indices])]
            given = map(self._meant, batch.get(label, [None] * len(ids)))
            labels = [self.labels(value, i) for value, i in zip(given, ids, strict=True)]
            yield block(ids, labels=labels, starts=indices)
        return ListingNotes(matched=dict(self.labels.matched))

    def _data(self) -> Any:
        return _hugging_face(self.path, self.part, self.subset)

    def _meant(self, label: Any) -> Any:
        """A label's number in the user's list; -1 is how sets without labels number them."""
        if not self.numbers or not isinstance(label, int):
            return label
        return None if label < 0 else self.numbers[label]

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        from datasets import Image

        name = self.columns[0]
        data = self._data().select_columns([name])
        data = data.cast_column(name, Image(decode=False))
        attempts = Attempts(self.unreadable)
        for index in block["start"].to_pylist():
            try:
                yield attempts.one(partial(_encoded, data, index, name), f"{self.path}, row {index} of {self.part},")
            except (OSError, TypeError) as error:
                yield error


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> HuggingFaceSet:
    """The data set at `source.path` or `test.path`. Raises UserError as `HuggingFaceSet.at` does."""
    section = section_of(config, split)
    part = section.name or part_of(split)
    return HuggingFaceSet.at(section.path or "", part, columns_of(config), names, section.subset)


def _encoded(data: Any, index: int, column: str) -> bytes:
    """The file of one image. Raises OSError, TypeError: there is none, or it cannot be read."""
    entry = data[index][column]
    content: bytes = entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes()
    return content


def _can_hold_images(feature: Any) -> bool:
    """Whether `datasets` can read a column as images: its own type, encoded bytes, paths, or pairs of them."""
    if isinstance(feature, dict):
        return {"bytes", "path"} <= set(feature)
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", "") in ("binary", "large_binary", "string")


@cache
def _hugging_face(path: str, part: str, subset: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("source.kind=huggingface needs `datasets`: pip install 'coreg-ray[huggingface]'") from error
    saved = any((Path(path) / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    if saved and subset:
        raise UserError(f"source.subset={subset}: {path} was saved to disk and holds one set alone; leave it out")
    if Path(path).is_dir():
        refuse_pickled_files(Path(path))
    try:
        data = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, subset)
    except Exception as error:  # readers of every format raise what they like
        reason = " ".join(str(error).split())[:300]
        remedy = "; set source.subset to one of them" if "onfig name is missing" in reason else ""
        raise UserError(f"{path} cannot be read as a Hugging Face dataset: {reason}{remedy}") from error
    if isinstance(data, datasets.DatasetDict) and part not in data:
        raise UserError(f"{path} has no split {part!r}; set source.name to one of {', '.join(data)}")
    return data[part] if isinstance(data, datasets.DatasetDict) else data
