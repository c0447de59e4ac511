"""All files below a folder, each once however links are laid."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from coreg_ray.errors import UserError
from coreg_ray.images.reading import Attempts
from coreg_ray.run.storage import Folder


@dataclass
class Walk:
    """What lies below a folder.

    Attributes:
        files: their paths relative to it, sorted.
        dangling: links that lead nowhere. again: links to folders that were known already.
    """

    files: list[str] = field(default_factory=list)
    dangling: int = 0
    again: int = 0


def walk(folder: Folder) -> Walk:
    """All files below a folder, on local disks links included; none where there is no folder.

    A local folder is known by its device and inode and entered once, by its own path rather than by a link to it: so a
    link to a folder above it is no loop.

    Raises:
        UserError: a folder cannot be read, or a name is not UTF-8.
    """
    if not folder.local:
        paths = Attempts().one(folder.files, folder.path, raw=True)
        return Walk([path[len(folder.path) :].lstrip("/") for path in paths])
    walked = _Local()
    if Path(folder.path).is_dir():
        walked.enter_all(folder.path)
    start = len(folder.path.rstrip("/")) + 1
    files = sorted(path[start:] for path in walked.files)
    return Walk(files, walked.dangling, walked.again)


class _Local:
    """One walk over a local disk."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.dangling = self.again = 0
        self._known: set[tuple[int, int]] = set()
        self._links: list[str] = []

    def enter_all(self, root: str) -> None:
        """Real folders first, then those that only links lead to."""
        self._links = [root]
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                if self._is_new(link):
                    self._enter(link)
                else:
                    self.again += 1

    def _enter(self, top: str) -> None:
        waiting = [top]
        while waiting:
            path = waiting.pop()
            try:
                with os.scandir(path) as entries:
                    folders = [entry.path for entry in entries if self._is_folder(entry)]
            except OSError as error:
                raise UserError(f"the folder {path} cannot be read ({error.strerror}); allow it or move it") from error
            waiting += [folder for folder in folders if self._is_new(folder)]

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether a real folder is to be entered; files and links are kept on the way."""
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the file name {os.fsencode(entry.path)!r} is not UTF-8; rename that file") from error
        if entry.is_dir(follow_symlinks=False):
            return True
        try:
            if entry.is_file():
                self.files.append(entry.path)
            elif entry.is_dir():
                self._links.append(entry.path)
            elif entry.is_symlink():
                entry.stat()  # fails where there is nothing
        except OSError:
            self.dangling += 1
        return False

    def _is_new(self, path: str) -> bool:
        """Whether a folder was not met before; what has no inode is always new."""
        try:
            status = Path(path).stat()
        except OSError as error:
            raise UserError(f"the folder {path} cannot be read ({error.strerror}); allow it or move it") from error
        mark = (status.st_dev, status.st_ino)
        if status.st_ino and mark in self._known:
            return False
        self._known.add(mark)
        return True
