"""The labels of a pool in the forms that other tools read as they are, one file a form, opened by its name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coreg_ray.deploy.labels.base import Form, Pictures, PoolLabels

FORMATS = {  # `--format` -> the file here that writes it
    "csv": "csv",
    "parquet": "parquet",
    "imagefolder": "imagefolder",
    "huggingface": "huggingface",
    "cleanlab": "cleanlab",
}


def write_labels(labels: PoolLabels, form: str, output: str, pictures: Pictures) -> int:
    """Write the labels to `output`, a path or a URI, which holds all of them afterwards or does not exist.

    Args:
        form: a key of FORMATS. pictures: where the pool's images lie, and whether they are linked or copied.

    Returns:
        How many labels were written.

    Raises:
        UserError: something lies at the output, no label is left to write, or pictures cannot be linked.
    """
    from coreg_ray.deploy.labels.output import begun

    chosen: Form = import_module(f"{__name__}.{FORMATS[form]}")
    labels.refuse_none()
    if chosen.HAS_PICTURES:
        pictures.check(output)
    with begun(output, chosen.FILE) as (folder, name):
        return chosen.write(labels, folder, name, pictures)
