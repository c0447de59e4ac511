"""Whose an output folder is: made this command's, or refused before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coreg_ray.errors import UserError
from coreg_ray.run.storage import Folder


def claim(
    folder: Folder,
    given: str,
    *,
    holds: str,
    record: str,
    content: str,
    check: Callable[[str], None],
    sign: str | None = None,
) -> None:
    """Write the record that makes a folder a command's own.

    Args:
        given: the folder as the user named it. holds: what it is to hold, e.g. `run`. record: the file that says whose
            it is. content: what that file will say. check: looks at what it says already; raises UserError where the
            folder is somebody else's. sign: what makes the folder one of these where it lacks the record.

    Raises:
        UserError: the folder cannot be read or written, holds something else, or `check` refuses it.
    """
    with usable(given):
        entries = folder.entries()
        if record in entries:
            check(folder.read(record).decode())
        elif entries and sign not in entries:
            raise UserError(
                f"--output {given} holds {len(entries)} entries ({', '.join(entries[:3])}) and no {holds}; choose an "
                "empty folder"
            )
        folder.write(record, content)


@contextmanager
def usable(given: str) -> Iterator[None]:
    """Raises UserError where the folder that the user named so cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--output {given} cannot be used ({error}); choose another folder") from error
