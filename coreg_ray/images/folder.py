"""Folders of image files, on local disks and object stores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import BLOCK_IMAGES, Content, Source, Split, Unread, block, section_of
from coreg_ray.images.decode import extensions
from coreg_ray.images.labels import LabelReader
from coreg_ray.images.notes import ListingNotes, by_ending, is_tool_made
from coreg_ray.images.reading import Attempts, Unreadable
from coreg_ray.images.walk import walk
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import split_options

_WILDCARDS = "*?["
_READERS = 8  # files read at once; an object store answers slowly but many at a time
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_AHEAD = 2 * _READERS  # encoded files that wait in memory for the one that is looked at


@dataclass(frozen=True)
class ImageFolder:
    """Every file with the name of an image below a folder.

    Attributes:
        folder: where it lies; image ids are paths relative to it.
        pattern: a glob over those relative paths, or None for all.
        labels: reads the name of the first sub-folder as the label, or None to leave images unlabelled.
        unreadable: what comes of an image that cannot be read.
    """

    folder: Folder
    pattern: str | None = None
    labels: LabelReader | None = None
    known_classes: tuple[str, ...] = ()
    unreadable: Unread = "fail"

    @classmethod
    def at(cls, path: str, names: dict[str, int] | None = None) -> ImageFolder:
        """The folder at a path, URI or glob; `names` (lower case -> class number) turns sub-folders into labels.

        Raises:
            UserError: there is no such folder, or it is a file.
        """
        base, pattern = split_glob(path)
        folder = Folder.at(base)
        there = _type_of(folder)
        if there == fs.FileType.NotFound:
            raise UserError(f"{base} does not exist; give a folder of images, or a glob")
        if there == fs.FileType.File:
            remedy = "unpack it and give the folder" if folder.path.lower().endswith(_ARCHIVES) else "give its folder"
            raise UserError(f"{base} is a file, not a folder of images; {remedy} (or set source.kind to read tables)")
        return cls(folder, pattern, LabelReader(names) if names is not None else None)

    def listing(self) -> Generator[pa.Table, None, ListingNotes]:
        walked = walk(self.folder)
        seen = [name for name in walked.files if not is_tool_made(name)]
        ids = [name for name in seen if is_image_name(name) and self._is_chosen(name)]
        others = [name for name in seen if not is_image_name(name)]
        told = ListingNotes(by_ending(others), len(walked.files) - len(seen), walked.dangling, walked.again)
        if not ids:
            reasons = "; ".join(told.lines()) or "nothing lies there"
            raise UserError(f"{self.folder.path} holds no image ({reasons}); give a folder that holds some")
        for start in range(0, len(ids), BLOCK_IMAGES):
            part = ids[start : start + BLOCK_IMAGES]
            labels = [self._label(image_id) for image_id in part] if self.labels else None
            yield block(part, labels=labels, files=part)
        return replace(told, matched=dict(self.labels.matched if self.labels else {}))

    def holds(self, other: Source) -> bool:
        if not isinstance(other, ImageFolder) or other.folder.filesystem != self.folder.filesystem:
            return False
        here, there = self.folder.path, other.folder.path
        if here == there:
            return self.pattern in (None, other.pattern)
        return self.pattern is None and there.startswith(f"{here}/") and not is_tool_made(there[len(here) :])

    def _is_chosen(self, image_id: str) -> bool:
        return self.pattern is None or fnmatch(image_id, self.pattern)

    def fetch(self, block: pa.Table) -> Iterator[Content]:
        names, attempts = iter(block["file"].to_pylist()), Attempts(self.unreadable)
        if self.folder.local:
            yield from (self._read(name, attempts) for name in names)
            return
        with ThreadPoolExecutor(_READERS) as pool:
            # A few files ahead: `pool.map` would read the whole block into memory while its first image is decoded.
            ahead = deque(pool.submit(self._read, name, attempts) for name in islice(names, _AHEAD))
            while ahead:
                content = ahead.popleft().result()
                ahead.extend(pool.submit(self._read, name, attempts) for name in islice(names, 1))
                yield content

    def _read(self, name: str, attempts: Attempts) -> bytes | Exception:
        try:
            return attempts.one(lambda: self._bytes(name), f"{self.folder.path}/{name}", raw=True)
        except Unreadable as reason:
            return reason

    def _bytes(self, name: str) -> bytes:
        """The content of a file. Raises Unreadable: it is gone, and that is no sign of a disk that is gone."""
        try:
            return self.folder.read(name)
        except FileNotFoundError as error:
            if not self.folder.local or _holds_something(Path(self.folder.path, name).parent):
                raise Unreadable("gone since the source was listed") from error
            raise

    def _label(self, image_id: str) -> int | None:
        top, _, rest = image_id.partition("/")
        if not rest:
            raise UserError(f"{image_id} lies in no sub-folder, so it has no label; move it into its class's folder")
        assert self.labels is not None
        return self.labels(top, image_id)


def open_split(config: Config, split: Split, names: dict[str, int] | None) -> ImageFolder:
    """The images at `source.path` or `test.path`. Raises UserError as `ImageFolder.at` does."""
    section = section_of(config, split)
    return ImageFolder.at(section.path or "", names if split == "test" or config.source.folder_labels else None)


def split_glob(path: str) -> tuple[str, str | None]:
    """A path or URI -> the part before its first wildcard, and the glob below it (None without wildcards).

    A local file or folder whose very name holds such a sign ("birds [2020]") is meant as it stands.
    What follows a URI's `?name=` are options for its object store, such as an endpoint of one's own; they stay with the
    first part.
    """
    path, query = split_options(path)
    parts = path.rstrip("/").split("/")
    signs = (number for number, part in enumerate(parts) if any(sign in part for sign in _WILDCARDS))
    wild = next((number for number in signs if not _is_there("/".join(parts[: number + 1]))), None)
    if wild is None:
        return path + query, None
    return ("/".join(parts[:wild]) or ("/" if path.startswith("/") else ".")) + query, "/".join(parts[wild:])


def _type_of(folder: Folder) -> fs.FileType:
    """What lies at a path. Raises UserError: nobody can say, not after several attempts either."""
    return Attempts().one(folder.kind, folder.path, raw=True)


def _holds_something(folder: Path) -> bool:
    """Whether a local folder is there and not empty, as the place of a disk is that was taken away."""
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def _is_there(path: str) -> bool:
    return "://" not in path and Path(path).expanduser().exists()


def is_image_name(path: str) -> bool:
    """Whether a file's name says "image"; those of hidden and tool-made files do not."""
    return PurePosixPath(path).suffix.lower() in extensions() and not is_tool_made(path)


def are_among(files: Iterable[str], folder: Folder, others: Iterable[str], other_folder: Folder) -> bool:
    """Whether every one of the files below a folder is one of those others below another folder."""
    here, there = {f"{folder.path}/{name}" for name in files}, {f"{other_folder.path}/{name}" for name in others}
    return folder.filesystem == other_folder.filesystem and here <= there


def matching_files(path: str, suffixes: tuple[str, ...], what: str) -> tuple[Folder, list[str], ListingNotes]:
    """A file, folder, glob or URI -> the folder it starts from, the relative names of its files, sorted, and notes.

    Raises:
        UserError: nothing there ends in one of `suffixes`, in whatever case; hidden and tool-made files apart.
    """
    base, pattern = split_glob(path)
    folder = Folder.at(base)
    if _type_of(folder) == fs.FileType.File:
        parent, _, name = folder.path.rpartition("/")
        return Folder(folder.filesystem, parent), [name], ListingNotes()
    walked = walk(folder)
    seen = [name for name in walked.files if not is_tool_made(name)]
    names = [n for n in seen if n.lower().endswith(suffixes) and (pattern is None or fnmatch(n, pattern))]
    if not names:
        raise UserError(f"{path} holds no {what}; give a file, a folder or a glob of files ending in {suffixes[0]}")
    notes = ListingNotes(tool_made=len(walked.files) - len(seen), dangling=walked.dangling, again=walked.again)
    return folder, names, notes
