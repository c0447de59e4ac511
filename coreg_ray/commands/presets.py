"""Presets: named settings that lie under all that a person gives, one over another."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from typing import Any

import yaml

from coreg_ray.errors import UserError

METHOD_PRESET = "method-"  # what presets of one method each begin with


def preset_settings(names: str, whole: Collection[str] = ()) -> dict[str, Any]:
    """The settings of presets, each laid over the one before: `digits,method-elr`.

    Args:
        whole: as of `merged`.

    Raises:
        UserError: one of them does not exist.
    """
    folder = resources.files("coreg_ray") / "presets"
    known = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    tree: dict[str, Any] = {}
    for name in names.split(","):
        if name not in known:
            raise UserError(f"preset={name} is unknown; the presets are {', '.join(known)}")
        tree = merged(tree, yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")), whole)
    return tree


def merged(under: dict[str, Any], over: dict[str, Any], whole: Collection[str] = (), above: str = "") -> dict[str, Any]:
    """Settings of `under`, replaced where `over` has them; a mapping that is one of `whole` is one setting."""
    tree = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(tree.get(name), dict) and f"{above}{name}" not in whole
        tree[name] = merged(tree[name], value, whole, f"{above}{name}.") if both else value
    return tree
