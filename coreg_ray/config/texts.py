"""The configuration as text: YAML that is read back, names of settings, and what to say of those that are none."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from coreg_ray.config.sections import AnnotatorConfig
from coreg_ray.config.tree import Config


def resolved_yaml(config: Config) -> str:
    """The whole configuration as YAML that `--config` takes back."""
    return yaml.safe_dump(config.settings(), sort_keys=False, allow_unicode=True)


def leaves(
    tree: Mapping[Any, Any], descends: Callable[[str], bool] = lambda key: True, above: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a tree's leaves, in its order; an empty mapping has none.

    Args:
        descends: whether the mapping below a dotted name is part of the tree, rather than a value.
    """
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and descends(key):
            yield from leaves(value, descends, f"{key}.")
        else:
            yield key, value


def flattened(tree: Mapping[Any, Any], descends: Callable[[str], bool] = lambda key: True) -> dict[str, Any]:
    """`leaves` by name."""
    return dict(leaves(tree, descends))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key old -> new` for every leaf in which two flat trees differ, in the order of names."""
    names = sorted({*before, *now})
    return [f"{k} {before.get(k)!r} -> {now.get(k)!r}" for k in names if before.get(k) != now.get(k)]


def fields_of(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every setting."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{above}{name}.")
        else:
            yield f"{above}{name}", field.annotation


@cache
def types_of(model: type[BaseModel]) -> Mapping[str, Any]:
    """`fields_of` by name; settings are looked up by the hundred."""
    return dict(fields_of(model))


def unknown_key(name: str, command: type[Config]) -> str:
    """What to say of a key that is none: the nearest one, and those of its section."""
    keys = list(types_of(command))
    below = [key for key in keys if key.startswith(f"{name}.")]
    if below:
        return f"{name} is a section of settings; give one of them: {', '.join(below)}"
    section = name.split(".")[0] + "."
    near = [key for key in keys if key.startswith(section)] or [key for key in keys if "." not in key] + sorted(
        {key.split(".")[0] + ".*" for key in keys if "." in key}
    )
    close = difflib.get_close_matches(name, keys, n=1)
    hint = f" did you mean {close[0]}?" if close else ""
    return f"unknown setting {name};{hint} valid ones: {', '.join(near)}"


def explain(problem: Any, command: type[Config]) -> str:
    """One line for one of pydantic's findings: name, value, limit."""
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{name}: {message}" if name else message
    if problem["type"] == "missing":
        field = command.model_fields.get(name)
        meaning = f", {field.description}" if field else ""
        return f"{name} is missing; give --{name} VALUE{meaning}"
    if problem["type"] == "extra_forbidden":  # only in lists: all else was looked through before
        return f"unknown setting {name}; valid ones: {', '.join(AnnotatorConfig.model_fields)}"
    return f"{name}={problem['input']}: {message[0].lower()}{message[1:]}"
