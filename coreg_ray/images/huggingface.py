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
from coreg_ray.images.base import (
    BLOCK_IMAGES,
    Content,
    Source,
    Split,
    Unread,
    block,
    columns_of,
    part_of,
    section_name,
    section_of,
)
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
        undivided: whether the set has no splits, so that it is read whole, whatever `part` says.
    """

    path: str
    part: str
    columns: tuple[str, str, str]
    labels: LabelReader
    known_classes: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    subset: str | None = None
    unreadable: Unread = "fail"
    undivided: bool = False

    @classmethod
    def at(
        cls,
        path: str,
        part: str,
        columns: tuple[str, str, str],
        names: dict[str, int] | None,
        subset: str | None = None,
        section: str = "source",
        named: bool = False,
    ) -> HuggingFaceSet:
        """Open it once, so that what is missing is said before work starts.

        Args:
            section: of the configuration that speaks of the set. named: whether the split was, by a person.

        Raises:
            UserError: `datasets` is not installed, there is no such dataset, split or column of images, it would be
                unpickled, or only some of its class names are among `names`.
        """
        path = str(Path(path).expanduser()) if path.startswith("~") else path
        loaded = _opened(path, subset, section)
        undivided = not isinstance(loaded, dict)
        _refuse_other_splits(loaded, path, part, section, named)
        data = loaded if undivided else loaded[part]
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
        numbers = own_numbers([(n,) for n in known], names, path)
        return cls(path, part, columns, LabelReader(names), known, numbers, subset, undivided=undivided)

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

    def holds(self, other: Source) -> bool:
        if not isinstance(other, HuggingFaceSet) or self.subset != other.subset:
            return False
        same = self.path == other.path or Path(self.path).resolve() == Path(other.path).resolve()
        return same and (self.undivided or self.part == other.part)

    def _data(self) -> Any:
        data = _opened(self.path, self.subset)
        return data if self.undivided else data[self.part]

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
    place, named = section_name(split), section.name is not None
    return HuggingFaceSet.at(section.path or "", part, columns_of(config), names, section.subset, place, named)


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


def _refuse_other_splits(loaded: Any, path: str, part: str, section: str, named: bool) -> None:
    """Raises UserError where a set lacks the split, or has none and one was named."""
    if isinstance(loaded, dict):
        if part not in loaded:
            raise UserError(f"{path} has no split {part!r}; set {section}.name to one of {', '.join(loaded)}")
    elif named and part != str(loaded.split):
        own = "no splits" if loaded.split is None else f"the split {loaded.split} alone"
        raise UserError(f"{path} has {own}, so {section}.name={part} names nothing in it; leave {section}.name out")


def _opened(path: str, subset: str | None, section: str = "source") -> Any:
    """What lies there: a dictionary of splits, or one set without any. Raises UserError as `HuggingFaceSet.at` does."""
    if subset and _is_saved(path):
        raise UserError(f"{section}.subset={subset}: {path} was saved to disk and holds one set alone; leave it out")
    try:
        return _loaded(path, subset)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{section}.kind=huggingface needs `datasets`: pip install 'coreg-ray[huggingface]'") from error
    except Exception as error:  # readers of every format raise what they like
        reason = " ".join(str(error).split())[:300]
        remedy = f"; set {section}.subset to one of them" if "onfig name is missing" in reason else ""
        raise UserError(f"{path} cannot be read as a Hugging Face dataset: {reason}{remedy}") from error


@cache
def _loaded(path: str, subset: str | None) -> Any:
    import datasets

    if Path(path).is_dir():
        refuse_pickled_files(Path(path))
    return datasets.load_from_disk(path) if _is_saved(path) else datasets.load_dataset(path, subset)


def _is_saved(path: str) -> bool:
    """Whether `save_to_disk` wrote what lies there."""
    return any((Path(path) / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
