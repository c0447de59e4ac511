"""Where labels go: whole or not at all, and never over what lies there."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coreg_ray.errors import UserError
from coreg_ray.run.claim import usable
from coreg_ray.run.storage import Folder
from coreg_ray.run.whole import room_for


@contextmanager
def begun(output: str, file: str | None) -> Iterator[tuple[Folder, str]]:
    """An empty folder to write into; what was written takes its place at `output` when the block is left without error.

    On a local disk the folder lies beside its place meanwhile; on an object store it is the place itself.

    Args:
        output: a path or a URI. file: name of the one file that is written; `output` may be that file, if it has the
            same ending, or a folder for it. None: a folder is filled.

    Yields:
        The folder, and the name of the file in it.

    Raises:
        UserError: something lies at the output, it cannot be written, or the disk is full.
    """
    ending = Path(file).suffix if file else ""
    is_file = bool(ending) and output.split("?")[0].lower().endswith(ending)
    with usable(output):
        place, name = Folder.of_file(output) if is_file else (Folder.at(output), file or "")
        if place.size(name) >= 0 if is_file else bool(place.entries()) or place.size("") >= 0:
            raise UserError(f"--output {output} is there already; remove it, or choose another place")
        if not place.local:
            yield place, name
            return
        target = Path(place.path, name) if is_file else Path(place.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name[:80]}-{secrets.token_hex(4)}.partial")
        beside.mkdir()
        try:
            with room_for(target):
                yield Folder.at(beside), name
            if is_file:
                (beside / name).replace(target)
            else:
                beside.replace(target)  # an empty folder at that place gives way
        finally:
            shutil.rmtree(beside, ignore_errors=True)
