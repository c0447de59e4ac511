"""Where images come from: one file a kind of source, opened by its name, and how bytes become pixels."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from coreg_ray.errors import UserError

if TYPE_CHECKING:
    from coreg_ray.config import Config
    from coreg_ray.images.base import Source, Split

KINDS = {  # `source.kind` -> the file here whose `open_split` opens it
    "digits": "digits",
    "folder": "folder",
    "parquet": "parquet",
    "webdataset": "webdataset",
    "huggingface": "huggingface",
    "torchvision": "torchvision",
}


def open_source(config: Config, split: Split, names: dict[str, int] | None = None) -> Source:
    """The images of one split: the unlabelled pool (`config.source`) or the labelled test images (`config.test`).

    Args:
        names: class name in lower case -> class number, where labels are names (sub-folders, text columns). None: no
            label is looked at, unless the set has numbered its own.

    Raises:
        UserError: the split is not configured, or what it names does not exist.
    """
    kind = config.source.kind if split == "pool" else config.test.kind
    if kind is None:
        raise UserError("test.kind is empty, so there are no labelled images; give test.kind and test.path")
    opened: Any = import_module(f"{__name__}.{KINDS[kind]}").open_split(config, split, names)
    return opened if kind == "digits" else replace(opened, unreadable=config.source.unreadable)
