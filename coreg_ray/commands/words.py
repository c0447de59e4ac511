"""The words of commands about runs that there are: folders first, then a few flags of their own."""

from __future__ import annotations

import sys
from argparse import ArgumentError, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coreg_ray.errors import UserError


def truth(text: str) -> bool:
    """`true` or `false`, as all flags are written."""
    if text.lower() not in ("true", "false"):
        raise ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def port(text: str) -> int:
    """A port number, 0 to 65535."""
    if not text.isdecimal() or int(text[:9]) > 65535:
        raise ArgumentTypeError(f"{text!r} is no port; give a whole number from 0 to 65535")
    return int(text)


def read_words(
    arguments: list[str],
    description: str,
    *,
    several: bool = False,
    names: tuple[str, ...] = ("RUN",),
    flags: Mapping[str, tuple[Callable[[str], Any], Any, str]] | None = None,
) -> Namespace:
    """The command line of such a command: `runs`, and every flag by its name.

    Args:
        several: whether it takes more than one folder. names: of the words that stand before the flags; all of them are
            in `runs`. flags: name -> how its text is read, default, and meaning.

    Raises:
        UserError: a word is missing or one too many, an unknown flag or a value out of range.
    """
    name = Path(sys.argv[0]).name
    folders = "RUN [RUN ...]" if several else " ".join(names)
    parser = ArgumentParser(
        prog=name,
        usage=f"%(prog)s {folders}" + "".join(f" [--{flag} VALUE]" for flag in flags or {}),
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="the folder of a run: a path or a URI")
    for flag, (read, default, meaning) in (flags or {}).items():
        parser.add_argument(f"--{flag}", type=read, default=default, metavar="VALUE", help=meaning)
    try:
        words, unknown = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}; see {name} --help") from error
    if unknown:
        known = ", ".join(f"--{flag}" for flag in flags or {}) or "none"
        raise UserError(f"{unknown[0]} is no setting of this command; there are: {known}")
    if not words.runs or (len(words.runs) != len(names) and not several):
        count, what = len(words.runs), "folders" if len(names) == 1 else "words"
        problem = f"{words.runs[0]} alone is given" if count == 1 else f"{count} {what} are given"
        problem = problem if count else "no folder is given"
        raise UserError(f"{problem}; write {name} {folders}")
    return words
