"""The heads that all studies train, and the backbone below them: what the preset `photos` has, with four views."""

from __future__ import annotations

from pathlib import Path

from coreg_ray.config import StudentConfig
from coreg_ray.studies.real_noise import data

VIEWS, WIDTH, EPOCHS = 4, 32, 20


def student_of(study: str, folder: Path | None) -> StudentConfig:
    """The student of a study by its name; `folder` holds the backbone's weights."""
    return StudentConfig(
        name="tf_efficientnet_lite0", pretrained=str((folder or Path()) / data.WEIGHTS), frozen=True,
        frozen_views=VIEWS, resolution=data.STUDIES[study].side, width=WIDTH, precision="float32",
    )  # fmt: skip
