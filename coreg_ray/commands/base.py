"""From a command line to a checked configuration: preset < `--config` file < command-line overrides."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from argparse import ArgumentError, ArgumentParser, HelpFormatter
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from coreg_ray.commands.presets import METHOD_PRESET, merged, preset_settings
from coreg_ray.config import Config
from coreg_ray.config.method import FITTED
from coreg_ray.config.texts import explain, fields_of, flattened, unknown_key
from coreg_ray.errors import UserError
from coreg_ray.run.termination import EXIT_CODE, Terminated, terminable
from coreg_ray.run.uris import without_credentials

log = logging.getLogger(__name__)
C = TypeVar("C", bound="Command")


class Command(Config):
    """What every command understands besides the configuration itself."""

    TAKES_RUN: ClassVar[bool] = False  # whether the folder of a run comes first

    config: str | None = Field(None, description="YAML file with any of these keys, nested or dotted")
    preset: str | None = Field(
        None,
        description="settings under it: digits (the embedded default), paper, photos, photos-smoke, search, smoke; "
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
    given = _parse(arguments, command, description)
    file = given.pop("config", None)
    whole = {name for name, _ in fields_of(command) if _is_mapping(name, command)}
    values = merged(_read_yaml(file), given, whole) if file else given
    _refuse_unknown(values, command)
    preset = values.pop("preset", None)
    fixed = flattened(merged(preset_settings(preset, whole), values, whole) if preset is not None else values)
    of_digits = values.get("source", {}).get("kind", "digits") == "digits"
    if of_digits and all(name.startswith(METHOD_PRESET) for name in (preset or METHOD_PRESET).split(",")):
        preset = "digits" if preset is None else f"digits,{preset}"  # presets of methods lie over it
    values = (merged(preset_settings(preset, whole), values, whole) if preset is not None else values) | {
        "config": file,
        "preset": preset,
    }
    config = _checked(values, command)
    return _as_begun(config, values, fixed) if continues else config


def _checked(values: dict[str, Any], command: type[C]) -> C:
    try:
        return command.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(explain(problem, command) for problem in error.errors())) from error


def _as_begun(config: C, values: dict[str, Any], fixed: Collection[str]) -> C:
    """The configuration with what the run in its output was begun with; `fixed`: dotted names that were given."""
    from coreg_ray.run.folder import RunFolder  # late: --help needs no pyarrow

    try:
        begun = RunFolder.at(config.output).read_config()
    except OSError:  # whoever claims the folder says why
        begun = None
    if begun is None:
        return config
    now, then, decided = (flattened(tree) for tree in (config.decisive(), begun.settings(), begun.decisive()))
    kept = {name: then.get(name) for name in now if name not in fixed and now[name] != decided.get(name)}
    if not kept:
        return config
    for name, value in kept.items():
        if now[name] is not None or name.removeprefix("method.") not in FITTED:  # those were empty to be filled
            log.info("%s %r, as %s was begun with, not %r", name, value, config.output, now[name])
        branch: Any = value
        for part in reversed(name.split(".")):
            branch = {part: branch}
        values = merged(values, branch)
    return _checked(values, type(config))


def run_word(arguments: list[str]) -> tuple[str, list[str]]:
    """The run's folder, which a command on a finished run takes as its first word (empty: not given), and the rest."""
    given = bool(arguments) and not arguments[0].startswith("-")
    return (arguments[0], arguments[1:]) if given else ("", arguments)


def run(main: Callable[[list[str]], None], arguments: list[str], stopped: str | None = None) -> None:
    """Call a command's `main`; a person's own mistakes end in one line and exit code 2, SIGTERM ends it like Ctrl-C.

    Args:
        stopped: what Ctrl-C and SIGTERM are answered with.
    """
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
        _settings(command), root_parser=parser, add_argument_method=_add_argument, formatter_class=_HelpLayout
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
        if not any(value.lstrip().startswith(("[", '{"')) for value in values) and not _is_mapping(name, command):
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
                cli_parse_none_str="null",
                cli_use_class_docs_for_groups=True,
                protected_namespaces=(),
            ),
            "__module__": __name__,
        },
    )


def _read_yaml(path: str) -> dict[str, Any]:
    from coreg_ray.run.storage import Folder  # late: --help needs no pyarrow
    from coreg_ray.run.strict_yaml import parsed_yaml

    try:
        folder, name = Folder.of_file(path)
        written = folder.read(name)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(f"--config {path} cannot be read ({reason}); give an existing YAML file") from error
    content = parsed_yaml(written, f"--config {path}") or {}
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds a {type(content).__name__}; it must hold keys like `method:`")
    tree: dict[str, Any] = {}
    for name, value in content.items():
        if value is None and "." not in str(name):
            continue  # a section in which nothing is written
        branch: Any = value
        for part in reversed(str(name).split(".")):
            branch = {part: branch}
        tree = merged(tree, branch)
    return tree


def _refuse_unknown(tree: dict[str, Any], command: type[Config]) -> None:
    valid = {name for name, _ in fields_of(command)}
    for name in flattened(tree):
        prefixes = {name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)}
        if not prefixes & valid:
            raise UserError(unknown_key(name, command))


def _is_mapping(name: str, command: type[Config]) -> bool:
    annotation = dict(fields_of(command))[name]
    return any(get_origin(part) is dict for part in (annotation, *get_args(annotation)))


def _unknown_word(word: str, command: type[Config]) -> str:
    if word.startswith("--"):
        return unknown_key(word.removeprefix("--").split("=")[0], command)
    return f"{word!r} belongs to no setting; write --section.key VALUE, and quote values with spaces"
