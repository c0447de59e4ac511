"""From settings that were given, in words or as keyword arguments, to a checked configuration.

A preset lies under a file, and a file under what was given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError

from coreg_ray.commands.presets import METHOD_PRESET, merged, preset_settings
from coreg_ray.config import Config
from coreg_ray.config.method import FITTED
from coreg_ray.config.texts import explain, flattened, types_of, unknown_key
from coreg_ray.errors import UserError

log = logging.getLogger(__name__)
C = TypeVar("C", bound=Config)


def configured(given: Mapping[str, Any], command: type[C], continues: bool = False) -> C:
    """The checked configuration of a command.

    Args:
        given: settings as a tree, with `preset` and `config` (a YAML file, or the tree that one would hold) among them.
        command: `Command` or a subclass with fields of its own.
        continues: whether the command goes on with a run that `output` holds, as of `commands.base.load`.

    Raises:
        UserError: an unknown key (the valid ones are listed), a value out of range, or contradictory settings.
    """
    given = dict(given)
    file = given.pop("config", None)
    whole = {name for name in types_of(command) if is_mapping(name, command)}
    under = _read_yaml(file) if isinstance(file, str) else file
    values = merged(under, given, whole) if under else given
    _refuse_unknown(values, command)
    preset = values.pop("preset", None)
    fixed = flattened(merged(preset_settings(preset, whole), values, whole) if preset is not None else values)
    of_digits = values.get("source", {}).get("kind", "digits") == "digits"
    if of_digits and all(name.startswith(METHOD_PRESET) for name in (preset or METHOD_PRESET).split(",")):
        preset = "digits" if preset is None else f"digits,{preset}"  # presets of methods lie over it
    values = (merged(preset_settings(preset, whole), values, whole) if preset is not None else values) | {
        "config": file if isinstance(file, str) else None,
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
    return nested(content)


def nested(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings under dotted keys as a tree; a section in which nothing is written is left out."""
    tree: dict[str, Any] = {}
    for name, value in content.items():
        if value is None and "." not in str(name):
            continue
        branch: Any = value
        for part in reversed(str(name).split(".")):
            branch = {part: branch}
        tree = merged(tree, branch)
    return tree


def _refuse_unknown(tree: dict[str, Any], command: type[Config]) -> None:
    valid = types_of(command).keys()
    for name in flattened(tree):
        prefixes = {name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)}
        if not prefixes & valid:
            raise UserError(unknown_key(name, command))


def is_mapping(name: str, command: type[Config]) -> bool:
    """Whether a setting is a mapping as a whole, such as `cluster.label_selector`."""
    annotation = types_of(command)[name]
    return any(get_origin(part) is dict for part in (annotation, *get_args(annotation)))
