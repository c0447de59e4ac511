"""From a command line to a checked configuration: preset < `--config` file < command-line overrides."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import shlex
import sys
from argparse import ArgumentError, ArgumentParser, HelpFormatter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, ClassVar, TypeVar

from pydantic import Field
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from coreg_ray.commands.configured import configured, is_mapping
from coreg_ray.config import Config
from coreg_ray.config.texts import unknown_key
from coreg_ray.errors import UserError
from coreg_ray.run.termination import EXIT_CODE, Terminated, terminable
from coreg_ray.run.uris import without_credentials

C = TypeVar("C", bound="Command")
_NOTHING = "null"  # on a command line: empties a setting


class Command(Config):
    """What every command understands besides the configuration itself."""

    TAKES_RUN: ClassVar[bool] = False  # whether the folder of a run comes first

    config: str | None = Field(None, description="YAML file with any of these keys, nested or dotted")
    preset: str | None = Field(
        None,
        description="settings under it: digits (the embedded default), paper, photos, photos-finetune, search, smoke; "
        "method-KIND lies over any: digits,method-dividemix",
    )


def load(arguments: list[str], command: type[C], description: str | None = None, continues: bool = False) -> C:
    """The checked configuration of a command.

    Args:
        arguments: the command line without the program's name, e.g. ["--method.epochs", "40"].
        command: `Command` or a subclass with fields of its own.
        description: what the command does, for `--help`.
        continues: whether the command goes on with a run that `--output` holds. What decides the result and was not
            given is then what that run was begun with, whatever today's defaults and presets are.

    Raises:
        UserError: an unknown key (the valid ones are listed), a value out of range, or contradictory settings.
    """
    return configured(_parse(arguments, command, description), command, continues)


def run_word(arguments: list[str]) -> tuple[str, list[str]]:
    """The run's folder, which a command on a finished run takes as its first word (empty: not given), and the rest."""
    given = bool(arguments) and not arguments[0].startswith("-")
    return (arguments[0], arguments[1:]) if given else ("", arguments)


def run(main: Callable[[list[str]], None], arguments: list[str], stopped: str | None = None) -> None:
    """Call a command's `main`; a person's own mistakes end in one line and exit code 2, SIGTERM ends it like Ctrl-C.

    Args:
        stopped: what Ctrl-C and SIGTERM are answered with.
    """
    atexit.register(gc.freeze)  # last: else Python looks through all that torch and Ray have left, for over a second
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Discreet("%(message)s"))
    try:
        with terminable():
            main(arguments)
    except UserError as error:
        sys.stderr.write(f"error: {without_credentials(str(error))}\n")
        sys.exit(2)
    except KeyboardInterrupt as end:
        sys.stderr.write(f"\n{stopped or 'stopped; the same command continues this run'}\n")
        sys.exit(EXIT_CODE if isinstance(end, Terminated) else 130)
    if "coreg_ray.cluster.connect" in sys.modules:
        from coreg_ray.cluster.connect import leave  # late: Ray takes seconds, and few commands need it

        leave()


def show(text: str) -> None:
    """What a command says on the terminal besides its log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def program(name: str) -> str:
    """How a command is called in the form in which this process was: `coreg-ray NAME` or `python jobs/NAME.py`."""
    here = Path(sys.argv[0])
    return shlex.join(["python", str(here.with_name(f"{name}.py"))]) if here.suffix == ".py" else f"coreg-ray {name}"


def next_command(name: str, *words: str) -> str:
    """The line that names the command to give next, in the form in which a shell takes it; without credentials."""
    return f"Next: {program(name)} {shlex.join(without_credentials(list(words)))}"


def _parse(arguments: list[str], command: type[Command], description: str | None) -> dict[str, Any]:
    """Only what was given, as a tree; pydantic-settings builds the parser and the help from the fields."""
    parser = ArgumentParser(
        prog=Path(sys.argv[0]).name,
        usage=f"%(prog)s{' RUN' if command.TAKES_RUN else ''} [--config FILE] [--section.key VALUE ...]",
        description=description,
        epilog="The embedded digits have other defaults: those of the preset `digits`, unless --preset names another.",
        formatter_class=_HelpLayout,
        allow_abbrev=False,
        exit_on_error=False,
    )
    source = CliSettingsSource[ArgumentParser](
        _settings(command),
        root_parser=parser,
        add_argument_method=_add_argument,
        formatter_class=_HelpLayout,
        cli_parse_none_str=_NOTHING,  # which versions before 2.16 do not take from the model's configuration
    )
    try:
        given, unknown = parser.parse_known_args(arguments)
    except ArgumentError as error:
        name = error.argument_name
        raise UserError(
            f"{name} has no value; write {name} VALUE, or {name}=VALUE for one that begins with a dash"
        ) from error
    if unknown:
        raise UserError(_unknown_word(unknown[0], command))
    lists = {name: values for name, values in vars(given).items() if isinstance(values, list)}
    for name, values in lists.items():
        if not any(value.lstrip().startswith(("[", '{"')) for value in values) and not is_mapping(name, command):
            # Each value is one element, commas and all.
            setattr(given, name, "null" if values == ["null"] else json.dumps(values))
    try:
        tree: dict[str, Any] = source(parsed_args=given)()
    except SettingsError as error:
        raise UserError(f"{error}; see --help") from error
    for name, value in tree.items():
        if value == {}:  # `--method` alone
            raise UserError(unknown_key(name, command))
    return tree


class _Discreet(logging.Formatter):
    """Leaves users and passwords out of URIs: logs of jobs are kept, and read by others."""

    def format(self, record: logging.LogRecord) -> str:
        return str(without_credentials(super().format(record)))


class _HelpLayout(HelpFormatter):
    """Names and descriptions side by side, never wider than a person reads; texts of several lines stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=min(get_terminal_size().columns - 2, 118))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(f"{indent}{line}" for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def _add_argument(place: Any, *names: str, **options: Any) -> None:
    """Hand an option to argparse; "default: None" says nothing that its description does not."""
    for nothing in (" (default: None)", " (default: null)"):
        options["help"] = options["help"].removesuffix(nothing)
    place.add_argument(*names, **options)


@cache
def _settings(command: type[Config]) -> type[BaseSettings]:
    """`command` in the form that pydantic-settings parses; environment variables and files play no part."""
    return type(
        command.__name__,
        (BaseSettings, command),
        {
            "model_config": SettingsConfigDict(
                extra="forbid",
                cli_kebab_case=False,
                cli_avoid_json=True,
                cli_hide_none_type=True,
                cli_parse_none_str=_NOTHING,
                cli_use_class_docs_for_groups=True,
                protected_namespaces=(),
            ),
            "__module__": __name__,
        },
    )


def _unknown_word(word: str, command: type[Config]) -> str:
    if word.startswith("--"):
        return unknown_key(word.removeprefix("--").split("=")[0], command)
    return f"{word!r} belongs to no setting; write --section.key VALUE, and quote values with spaces"
