"""Images in tar files as WebDataset writes them: files of a folder that share a name up to its first dot are one
example.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import BLOCK_IMAGES, Content, LabelReader, Split, block, section_of
from coreg_ray.images.folder import is_image_name, matching_files
from coreg_ray.run.storage import Folder

_LABEL_ENDINGS = ("cls", "label")


@dataclass(frozen=True)
class TarShards:
    """Tar files of images, each with an optional `.cls` file beside it that holds a class name or number.

    The id of an image is its shard's name and its own. Headers are read once to find out where images lie; after that
    any image is read by its offset.
    """

    folder: Folder
    shards: tuple[str, ...]
    labels: LabelReader
    known_classes: tuple[str, ...] = ()

    @classmethod
    def at(cls, path: str, names: dict[str, int] | None) -> TarShards:
        """The shards at a path, folder, glob or URI. Raises UserError where there is none."""
        folder, shards = matching_files(path, (".tar",), "tar file")
        return cls(folder, tuple(shards), LabelReader(names))

    def listing(self) -> Iterator[pa.Table]:
        images = 0
        for shard in self.shards:
            rows = list(self._rows(shard))
            images += len(rows)
            for start in range(0, len(rows), BLOCK_IMAGES):
                ids, labels, starts, sizes = zip(*rows[start : start + BLOCK_IMAGES], strict=True)
                yield block(ids, labels=labels, files=shard, starts=starts, sizes=sizes)
        if not images:
            raise UserError(f"{self.folder.path} holds no image in {len(self.shards)} tar files; give some images")

    def _rows(self, shard: str) -> Iterator[tuple[str, int | None, int, int]]:
        """(id, label, offset, size) of every image of a shard."""
        labels: dict[str, str] = {}
        images: list[tuple[str, str, int, int]] = []
        path = f"{self.folder.path}/{shard}"
        try:
            with self.folder.filesystem.open_input_file(path) as raw, tarfile.open(fileobj=raw) as tar:
                for member in tar:
                    folder, _, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    key = f"{folder}/{stem}"
                    if member.isfile() and ending in _LABEL_ENDINGS:
                        content = tar.extractfile(member)
                        labels[key] = content.read().decode().strip() if content else ""
                    elif member.isfile() and is_image_name(member.name):
                        images.append((member.name, key, member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{path} cannot be read as a tar file ({error}); replace or remove it") from error
        for name, key, offset, size in images:
            image_id = f"{shard}/{name}"
            label = self.labels.written(labels[key], image_id) if key in labels else None
            yield image_id, label, offset, size

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        if not len(block):
            return
        with self.folder.filesystem.open_input_file(f"{self.folder.path}/{block['file'][0].as_py()}") as raw:
            for start, size in zip(block["start"].to_pylist(), block["size"].to_pylist(), strict=True):
                try:
                    yield raw.read_at(size, start)
                except OSError as error:
                    yield error


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> TarShards:
    """The images at `source.path` or `test.path`. Raises UserError as `TarShards.at` does."""
    section = section_of(config, split)
    return TarShards.at(section.path or "", names)
