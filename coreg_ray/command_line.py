"""From a command line to a checked configuration: preset < `--config` file < command-line overrides."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from coreg_ray.config import Config
from coreg_ray.errors import UserError

C = TypeVar("C", bound=Config)


class Command(Config):
    """What every job understands besides the configuration itself."""

    config: str | None = Field(None, description="YAML file with any of these keys, nested or dotted")
    preset: str | None = Field(None, description="named settings under it: digits (the embedded default), smoke")


def load(arguments: list[str], command: type[C], description: str = "") -> C:
    """The checked configuration of a job.

    Args:
        arguments: the command line without the program's name, e.g. ["--method.epochs", "40"].
        command: `Command` or a subclass with the job's own fields.
        description: what the job does, for `--help`.

    Raises:
        UserError: an unknown key (the valid ones are listed), a value out of range, or contradictory settings.
    """
    given = _parse(arguments, command, description)
    file = given.pop("config", None)
    values = _merge(_read_yaml(file), given) if file else given
    _refuse_unknown(values, command)
    preset = values.pop("preset", None)
    if preset is None and values.get("source", {}).get("kind", "digits") == "digits":
        preset = "digits"
    if preset is not None:
        values = _merge(_preset(preset), values)
    try:
        return command.model_validate(values | {"config": file, "preset": preset})
    except ValidationError as error:
        raise UserError("\n".join(_explain(problem) for problem in error.errors())) from error


def run(main: Any) -> None:
    """Call a job's `main` with the command line; a person's own mistakes end in one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 (what a job says is its interface)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues this run", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def resolved_yaml(config: Config) -> str:
    """The whole configuration as YAML that `--config` takes back."""
    return yaml.safe_dump(config.settings(), sort_keys=False, allow_unicode=True)


def _parse(arguments: list[str], command: type[Config], description: str) -> dict[str, Any]:
    """Only what was given, as a tree; pydantic-settings builds the parser and the help from the fields."""
    settings = _settings(command)
    settings.__doc__ = description
    try:
        source = CliSettingsSource[Any](settings, cli_parse_args=arguments, cli_exit_on_error=False)
        return dict(source())
    except SettingsError as error:
        unknown = [word for word in str(error).split() if word.startswith("--")]
        if unknown:
            raise UserError(_unknown_key(unknown[0].lstrip("-").split("=")[0], command)) from error
        raise UserError(f"{error}; see --help") from error


@cache
def _settings(command: type[Config]) -> type[BaseSettings]:
    """`command` in the form that pydantic-settings parses; environment variables and files play no part."""
    return type(
        command.__name__,
        (BaseSettings, command),
        {
            "model_config": SettingsConfigDict(
                extra="forbid",
                cli_prog_name=Path(sys.argv[0]).name,
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


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}); give an existing YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds a {type(content).__name__}; it must hold keys like `method:`")
    tree: dict[str, Any] = {}
    for name, value in content.items():
        branch: Any = value
        for part in reversed(str(name).split(".")):
            branch = {part: branch}
        tree = _merge(tree, branch)
    return tree


def _preset(name: str) -> dict[str, Any]:
    folder = resources.files("coreg_ray") / "presets"
    known = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    if name not in known:
        raise UserError(f"preset={name} is unknown; the presets are {', '.join(known)}")
    return dict(yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")))


def _refuse_unknown(tree: dict[str, Any], command: type[Config]) -> None:
    valid = set(_keys(command))
    for name in _leaves(tree, ""):
        prefixes = {name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)}
        if not prefixes & valid:
            raise UserError(_unknown_key(name, command))


def _leaves(tree: dict[str, Any], above: str) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _keys(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _unknown_key(name: str, command: type[Config]) -> str:
    keys = list(_keys(command))
    section = name.split(".")[0] + "."
    near = [key for key in keys if key.startswith(section)] or [key for key in keys if "." not in key] + sorted(
        {key.split(".")[0] + ".*" for key in keys if "." in key}
    )
    close = difflib.get_close_matches(name, keys, n=1)
    hint = f" did you mean {close[0]}?" if close else ""
    return f"unknown setting {name};{hint} valid ones: {', '.join(near)}"


def _explain(problem: Any) -> str:
    """One line for one of pydantic's findings: name, value, limit."""
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}={problem['input']}: {message[0].lower()}{message[1:]}"
