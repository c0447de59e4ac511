"""Which images the answers in a run folder are about: another source's would drop them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from coreg_ray.config import Config
from coreg_ray.config.texts import changed
from coreg_ray.errors import UserError
from coreg_ray.run.uris import extended, without_credentials

Split = Literal["pool", "test"]


def origin(config: Config, split: Split) -> dict[str, Any] | None:
    """Which images a split has: where its source lies, local paths in full, without credentials. None: it has none."""
    section = config.source if split == "pool" else config.test
    if section.kind is None:
        return None
    columns = ("image_column", "id_column") if section.kind in ("parquet", "huggingface") else ()
    place = {name: getattr(section, name) for name in ("kind", "path", "name", "subset")}
    path = section.path
    if path and "://" not in path:
        local = Path(path).expanduser()
        place["path"] = str(local.absolute()) if local.exists() or section.kind != "huggingface" else path
    elif path:
        place["path"] = without_credentials(extended(path, ""))
    return place | {name: getattr(config.source, name) for name in columns}


def refuse_others(
    then: dict[str, Any] | None, now: dict[str, Any], split: Split, output: str, record: str, table: str
) -> None:
    """Raises UserError where answers about the images of `then` would make way for those of `now` (`origin`).

    Args:
        output, record, table: for people: the run folder, the file that holds `then`, the folder of the answers.
    """
    if then is None or then == now:
        return
    section = "source" if split == "pool" else "test"
    differences = [f"{section}.{change}" for change in changed(then, now)]
    raise UserError(
        f"{output} holds annotations of other {split} images ({'; '.join(differences)}), which would be dropped; "
        f"choose another --output. Where the same images have moved, say so in {record}; to give up what was answered, "
        f"remove {table}"
    )
