"""Test images that are the pool itself, as paths and splits show before anything is read."""

from __future__ import annotations

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images import open_source
from coreg_ray.images.base import Split, section_name, section_of


def refuse_pool_as_test(config: Config) -> None:
    """Open both sources and compare where they lie; nothing happens without test images.

    Raises:
        UserError: every test image is one of the pool's, or a source is not what it should be.
    """
    if config.test.kind is None:
        return
    pool = open_source(config, "pool")
    if pool.holds(open_source(config, "test")):
        raise UserError(
            f"all test images ({_named(config, 'test')}) lie in the pool ({_named(config, 'pool')}), so accuracy would "
            "say nothing about new images; give other labelled images with --test.path or --test.name, or none with "
            "--test.kind null"
        )


def _named(config: Config, split: Split) -> str:
    """What a section says about where its images lie, e.g. `test.kind=folder, test.path=birds`."""
    section, name = section_of(config, split), section_name(split)
    given = {key: getattr(section, key) for key in ("kind", "path", "name", "subset")}
    return ", ".join(f"{name}.{key}={value}" for key, value in given.items() if value)
