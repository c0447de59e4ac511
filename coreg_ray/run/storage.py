"""Run folders on local disks and object stores alike, through pyarrow's file systems.

A file is either whole or absent: locally by writing beside it and renaming (`whole`), on object stores because they
never show a half-written object.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from coreg_ray.errors import UserError
from coreg_ray.run.cut_answers import ends_with_a_page, is_nothing, sure
from coreg_ray.run.uris import split_options
from coreg_ray.run.whole import is_unfinished, write_whole

LOCK = ".lock"  # who works in a folder (lock.py)
LOCK_CLAIM = f"{LOCK}-"  # how the names of those begin who are about to
_LISTINGS = 5  # of a folder that others change meanwhile
F = TypeVar("F", bound="Folder")


@dataclass(frozen=True)
class Folder:
    """A folder on any file system; `/` descends into it.

    Attributes:
        filesystem: pyarrow file system that holds it.
        path: path inside that file system, without a trailing slash.
    """

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def at(cls: type[F], uri: str | Path) -> F:
        """The folder at a local path or at a URI (s3://, gs://, file://).

        Raises:
            UserError: the scheme is unknown or its file system cannot be reached.
        """
        try:
            if "://" not in str(uri):
                return cls(fs.LocalFileSystem(), str(Path(uri).expanduser().resolve()))
            filesystem, path = fs.FileSystem.from_uri(str(uri))
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: ~nobody, links in a circle
            raise UserError(f"{uri} is not a folder that can be reached ({error}); give a path or a URI") from error
        return cls(filesystem, path.rstrip("/"))

    @classmethod
    def of_file(cls: type[F], uri: str) -> tuple[F, str]:
        """The folder that the file at a path or URI lies in, and the file's name. Raises UserError as `at` does."""
        path, options = split_options(uri)
        above, slash, name = path.rpartition("/")
        return cls.at((above or slash or ".") + options), name

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.filesystem, f"{self.path}/{name}")

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def kind(self, name: str = "") -> fs.FileType:
        """What lies there: a file, a folder or nothing."""
        return self._info(name).type

    def exists(self, name: str = "") -> bool:
        return self.kind(name) != fs.FileType.NotFound

    def size(self, name: str) -> int:
        """Bytes of a file, -1 where there is none."""
        info = self._info(name)
        return info.size if info.type == fs.FileType.File else -1

    def entries(self) -> list[str]:
        """Names of what lies directly in this folder, sorted; empty where it does not exist.

        Files in the making, the lock and claims to it are left out.
        """
        return [name for name in self._names() if not _is_passing(name)]

    def lock_claims(self) -> list[str]:
        """Names of the claims to this folder's lock, sorted."""
        return [name for name in self._names() if name.startswith(LOCK_CLAIM)]

    def _names(self) -> list[str]:
        return sorted(info.base_name for info in self.listed(recursive=False))

    def listed(self, recursive: bool = True) -> list[fs.FileInfo]:
        """All that lies in this folder, in no order; listed anew where a folder went while it was read."""
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)

        def once() -> list[fs.FileInfo]:
            return sure(self.filesystem, lambda: self.filesystem.get_file_info(selector), ends_with_a_page)

        for _ in range(_LISTINGS - 1):
            with suppress(FileNotFoundError):
                return once()
        return once()

    def files(self, suffix: str = "") -> list[str]:
        """Paths (inside the file system) of all files at any depth that end in `suffix`, sorted, as in `entries`.

        Raises:
            UserError: the name of one is not UTF-8.
        """
        infos = self.listed()
        try:
            return sorted(
                info.path
                for info in infos
                if info.type == fs.FileType.File and info.path.endswith(suffix) and not _is_passing(info.base_name)
            )
        except UnicodeDecodeError as error:
            raise UserError(f"the file name {error.object!r} is not UTF-8; rename that file") from error

    def read(self, name: str = "") -> bytes:
        """A file's content; without a name, of the file that this path itself is. Raises FileNotFoundError."""

        def once() -> bytes:
            with self.filesystem.open_input_stream(f"{self.path}/{name}".rstrip("/")) as stream:
                return stream.read()

        return sure(self.filesystem, once, lambda content: not content)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file, whole or not at all; folders above it are made.

        Raises:
            UserError: the disk is full.
        """
        data = content.encode() if isinstance(content, str) else content
        path = f"{self.path}/{name}"
        if self.local:
            write_whole(Path(path), data)
            return
        self.filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, json.dumps(content, indent=1, sort_keys=True) + "\n")

    def delete(self, name: str = "") -> None:
        """Remove a file or a folder with all that it holds; nothing happens where there is none."""
        kind = self.kind(name)
        path = f"{self.path}/{name}".rstrip("/")
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(path)

    def _info(self, name: str) -> fs.FileInfo:
        path = f"{self.path}/{name}".rstrip("/")
        return sure(self.filesystem, lambda: self.filesystem.get_file_info(path), is_nothing)


def _is_passing(name: str) -> bool:
    return name == LOCK or name.startswith(LOCK_CLAIM) or is_unfinished(name)
