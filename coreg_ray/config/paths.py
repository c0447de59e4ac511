"""Settings that hold a path, made absolute for processes that run in another working directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from coreg_ray.config.sections import words
from coreg_ray.config.tree import Config


def path_settings(section: type[BaseModel] = Config, above: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Dotted name of every setting that holds a path, and the words in its place that are none."""
    for name, field in section.model_fields.items():
        inner, none = field.annotation, words(field)
        if none is not None:
            yield f"{above}{name}", none
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from path_settings(inner, f"{above}{name}.")


def absolute(path: str | None, none: tuple[str, ...] = ()) -> str | None:
    """A relative path of something that exists here, made absolute; URIs, the words `none` and all else stay."""
    is_local = path and path not in none and "://" not in path and Path(path).exists()
    return str(Path(path or "").resolve()) if is_local else path


def with_absolute_paths(config: Config) -> Config:
    """The configuration as another working directory needs it."""
    tree = config.settings()
    for key, none in path_settings():
        *sections, name = key.split(".")
        branch: dict[str, Any] = tree
        for section in sections:
            branch = branch[section]
        branch[name] = absolute(branch[name], none)
    return Config.model_validate(tree)
