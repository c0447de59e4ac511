"""What students get of a study's images: pixels, or what a frozen backbone sees, made once, in parts."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from coreg_ray.config import StudentConfig
from coreg_ray.ids import fingerprint
from coreg_ray.run.features import FeaturesManifest
from coreg_ray.studies.real_noise.data import Pictures
from coreg_ray.training.backbone import Backbone, given_by, timm_backbone
from coreg_ray.training.features import features_of
from coreg_ray.training.rows import Images, no_pixels

log = logging.getLogger(__name__)

PART = 128  # images


class Eyes:
    """A student's: of a frozen one the backbone, with a folder in which its features are kept.

    A part holds the features of consecutive images; its name says of which, and of which backbone and views. A later
    call goes on from the parts that are there.
    """

    def __init__(self, student: StudentConfig, kept: Path) -> None:
        self.student, self.kept = student, kept
        self._backbone: Backbone | None = None
        kept.mkdir(parents=True, exist_ok=True)

    def see(self, pictures: Pictures, views: bool) -> Images:
        """N images with their labels; frozen students get features (N, 1 + V, F), without `views` (N, 1, F)."""
        count, side = len(pictures.ids), self.student.resolution
        if not self.student.frozen:
            return Images(pictures.numbers, pictures.pixels(0, count, side), pictures.labels)
        seen = torch.cat([self._part(pictures, start, views) for start in range(0, count, PART)])
        return Images(pictures.numbers, no_pixels(count), pictures.labels, seen)

    def _part(self, pictures: Pictures, start: int, views: bool) -> Tensor:
        stop = min(start + PART, len(pictures.ids))
        which = [given_by(self.student, 0), pictures.ids[start:stop]]
        whole = self.kept / f"{fingerprint(*which, self.student.frozen_views)}.safetensors"
        path = whole if views or whole.exists() else self.kept / f"{fingerprint(*which, 0)}.safetensors"
        if not path.exists():
            pixels = pictures.pixels(start, stop, self.student.resolution)
            made = features_of(pixels, pictures.numbers[start:stop], self._opened(), self._manifest(), views)
            unfinished = path.with_suffix(".part")
            save_file({"features": made}, unfinished)
            unfinished.replace(path)
            log.info("features of %d images", stop)
        seen = load_file(path)["features"]
        return seen if views else seen[:, :1]

    def _opened(self) -> Backbone:
        if self._backbone is None:
            self._backbone = timm_backbone(self.student, 0)
        return self._backbone

    def _manifest(self) -> FeaturesManifest:
        views = self.student.frozen_views
        return FeaturesManifest(self._opened().card, "", views, seed=0, flip=True, policy="randaugment")
