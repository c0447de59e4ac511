"""What all studies train: heads over a frozen backbone as the preset `photos` has them, or networks from scratch."""

from __future__ import annotations

from pathlib import Path

from coreg_ray.config import StudentConfig
from coreg_ray.studies.real_noise import data

VIEWS, WIDTH, EPOCHS = 4, 32, 20
SCRATCH = {"resolution": 32, "width": 8}  # an eighth of the paper's width


def student_of(study: str, folder: Path | None, kind: str = "frozen") -> StudentConfig:
    """The student of a study by its name.

    Args:
        folder: holds the backbone's weights. kind: `frozen`, or `scratch` for networks that see the pixels.
    """
    if kind == "scratch":
        return StudentConfig(precision="float32", **SCRATCH)
    return StudentConfig(
        name="tf_efficientnet_lite0", pretrained=str((folder or Path()) / data.WEIGHTS), frozen=True,
        frozen_views=VIEWS, resolution=data.STUDIES[study].side, width=WIDTH, precision="float32",
    )  # fmt: skip
