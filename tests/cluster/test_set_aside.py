"""Candidate sets that are made anew, while what annotators alone come to on test images is found."""

from __future__ import annotations

from pathlib import Path

from coreg_ray.cluster import candidates
from coreg_ray.run.folder import ZERO_SHOT
from coreg_ray.run.storage import Folder


def test_what_is_known_of_the_test_images_stays_when_sets_go(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    for name in ("0.parquet", ZERO_SHOT):
        folder.write(name, "{}")
    assert candidates._set_aside(folder, cpus=1) is None
    assert folder.entries() == [ZERO_SHOT]
