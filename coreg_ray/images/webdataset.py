"""Images in tar files as WebDataset writes them: files of a folder that share a name up to its first dot are one
example.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import BLOCK_IMAGES, Content, Source, Split, Unread, block, section_of
from coreg_ray.images.folder import are_among, is_image_name, matching_files
from coreg_ray.images.labels import LabelReader
from coreg_ray.images.notes import ListingNotes, by_ending, has_remedy, is_tool_made
from coreg_ray.images.reading import Attempts, Unreadable, of_reading
from coreg_ray.run.storage import Folder

_LABEL_ENDINGS = ("cls", "label")
_LONGEST_LABEL = 4096  # bytes
_BLOCK = 512  # a tar file is made of blocks of that size
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


@dataclass(frozen=True)
class _Image:
    """One image of a shard: its name, where its content begins, and how long it is."""

    name: str
    start: int
    size: int


@dataclass(frozen=True)
class _Shard:
    """What one tar file holds: images, labels by the folder and name of their files without `.cls`, and the rest."""

    images: list[_Image]
    labels: dict[str, str]
    tool_made: int
    others: dict[str, int]


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
    notes: ListingNotes = field(default_factory=ListingNotes)
    unreadable: Unread = "fail"

    @classmethod
    def at(cls, path: str, names: dict[str, int] | None) -> TarShards:
        """The shards at a path, folder, glob or URI. Raises UserError where there is none."""
        folder, shards, notes = matching_files(path, (".tar",), "tar file")
        return cls(folder, tuple(shards), LabelReader(names), notes=notes)

    def listing(self) -> Generator[pa.Table, None, ListingNotes]:
        images, tool_made = 0, self.notes.tool_made
        left_out: dict[str, int] = {}
        for name in self.shards:
            shard = Attempts().one(partial(self._read, name), f"{self.folder.path}/{name}")
            images += len(shard.images)
            tool_made += shard.tool_made
            for ending, count in shard.others.items():
                left_out[ending] = left_out.get(ending, 0) + count
            for start in range(0, len(shard.images), BLOCK_IMAGES):
                part = shard.images[start : start + BLOCK_IMAGES]
                ids = [f"{name}/{image.name}" for image in part]
                labels = [self._label(shard, image, i) for image, i in zip(part, ids, strict=True)]
                starts, sizes = [image.start for image in part], [image.size for image in part]
                yield block(ids, labels=labels, files=name, starts=starts, sizes=sizes)
        if not images:
            raise UserError(f"{self.folder.path} holds no image in {len(self.shards)} tar files; give some images")
        return replace(self.notes, left_out=left_out, tool_made=tool_made, matched=dict(self.labels.matched))

    def _label(self, shard: _Shard, image: _Image, image_id: str) -> int | None:
        """The label of an image: of its whole name, else of its example, whose name ends at the first dot."""
        whole, example = image.name.rpartition(".")[0], _example(image.name)
        texts = [shard.labels[key] for key in (whole, example) if key in shard.labels]
        if not texts:
            texts = list({text for name, text in shard.labels.items() if _example(name) == example})
        return self.labels.written(texts[0], image_id) if len(texts) == 1 or whole in shard.labels else None

    def _read(self, shard: str) -> _Shard:
        """The headers of one tar file.

        Raises:
            UserError: it is none, or is compressed or broken.
            OSError: it cannot be read at the moment.
        """
        path = f"{self.folder.path}/{shard}"
        images: list[_Image] = []
        labels: dict[str, str] = {}
        tool_made, others = 0, []
        try:
            with self.folder.filesystem.open_input_file(path) as raw:
                _refuse_compressed(raw, path)
                with tarfile.open(fileobj=raw, mode="r:") as tar:
                    for member in tar:
                        name = _checked(member, path)
                        stem, _, ending = name.rpartition(".")
                        if not member.isfile():
                            continue
                        if is_tool_made(name):
                            tool_made += 1
                        elif ending.lower() in _LABEL_ENDINGS:
                            content = tar.extractfile(member)
                            labels[stem] = _text(content.read(_LONGEST_LABEL) if content else b"", f"{path}/{name}")
                        elif is_image_name(name):
                            images.append(_Image(name, member.offset_data, member.size))
                        elif has_remedy(name):
                            others.append(name)
                    _refuse_broken(raw, tar, path)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            if isinstance(error, UserError) or of_reading(error):
                raise
            raise UserError(f"{path} cannot be read as a tar file ({error}); replace or remove it") from error
        return _Shard(images, labels, tool_made, by_ending(others))

    def holds(self, other: Source) -> bool:
        return isinstance(other, TarShards) and are_among(other.shards, other.folder, self.shards, self.folder)

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        if not len(block):
            return
        path, attempts = f"{self.folder.path}/{block['file'][0].as_py()}", Attempts(self.unreadable)
        with _Opened(self.folder, path) as shard:
            for start, size in zip(block["start"].to_pylist(), block["size"].to_pylist(), strict=True):
                try:
                    yield attempts.one(partial(shard.read_at, size, start), path, raw=True)
                except Unreadable as reason:
                    yield reason


class _Opened:
    """A tar file that is opened when it is first read, and anew after it could not be."""

    def __init__(self, folder: Folder, path: str) -> None:
        self._folder, self._path = folder, path
        self._file: pa.NativeFile | None = None

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read_at(self, size: int, start: int) -> bytes:
        """Some bytes of it. Raises OSError."""
        try:
            self._file = self._file or self._folder.filesystem.open_input_file(self._path)
            content: bytes = self._file.read_at(size, start)
        except OSError:
            self._close()
            raise
        return content

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> TarShards:
    """The images at `source.path` or `test.path`. Raises UserError as `TarShards.at` does."""
    section = section_of(config, split)
    return TarShards.at(section.path or "", names)


def _example(name: str) -> str:
    """The folder and name up to its first dot, which all files of one example share."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _refuse_compressed(raw: pa.NativeFile, path: str) -> None:
    """Images are read by where they lie, which a compressed file cannot tell. Raises UserError."""
    head = raw.read(8)
    raw.seek(0)
    kind = next((kind for mark, kind in _COMPRESSED.items() if head.startswith(mark)), None)
    if kind:
        raise UserError(f"{path} is compressed ({kind}), whatever its name; unpack it to a plain tar file")


def _refuse_broken(raw: pa.NativeFile, tar: tarfile.TarFile, path: str) -> None:
    """After the last member come zeros or nothing; Python takes a broken header for the end. Raises UserError."""
    here, size = tar.offset, raw.size()
    raw.seek(min(here, size))
    if here > size or any(raw.read(_BLOCK)):
        raise UserError(f"{path} is cut off or broken after {here} of {size} bytes; replace or remove it")


def _checked(member: tarfile.TarInfo, path: str) -> str:
    """The name of a member. Raises UserError: it is not UTF-8, or its content does not lie there in one piece."""
    try:
        member.name.encode()
    except UnicodeEncodeError as error:
        shown = member.name.encode("utf-8", "surrogateescape")
        raise UserError(f"{path} holds the name {shown!r}, which is not UTF-8; rename that file") from error
    if member.issparse():
        raise UserError(f"{path} holds {member.name} as a sparse file; pack it without --sparse")
    return member.name


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 but {content[:20]!r}; write the label as UTF-8 text") from error
