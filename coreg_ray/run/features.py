"""What says which features lie in a run folder: of which frozen backbone, and of which views."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from coreg_ray.ids import fingerprint
from coreg_ray.run.records import from_json


@dataclass(frozen=True)
class BackboneCard:
    """A frozen network whose features students learn from: all that it takes to build it again, but for its weights.

    Attributes:
        name: of a timm model, or `annotator`. resolution: side of its images, in pixels. features: F. mean, std: (3,)
            in 0..1. weights: digest. tower: of `annotator`, what open_clip builds its image encoder from.
        fit: how images are brought to its size (fields of `images.decode.Fit`); None: as everywhere, bicubic to a
            square.
    """

    name: str
    resolution: int
    features: int
    mean: list[float]
    std: list[float]
    weights: str
    tower: dict[str, Any] | None = None
    fit: dict[str, Any] | None = None


@dataclass(frozen=True)
class FeaturesManifest:
    """`features/manifest.json`: which features of which views these are.

    Attributes:
        given: what names the backbone's weights without loading them. views: V, half weak and half strong; 0 where the
            image alone is stored. seed, flip, policy: of the views.
    """

    backbone: BackboneCard
    given: str
    views: int
    seed: int
    flip: bool
    policy: str

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> FeaturesManifest:
        """The manifest whose fields these are."""
        return from_json(cls, {**content, "backbone": from_json(BackboneCard, content["backbone"])})

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all that a feature depends on but its image."""
        return fingerprint({name: value for name, value in asdict(self).items() if name != "given"})

    def differences(self, other: FeaturesManifest) -> list[str]:
        """`name value, not value` for all that another manifest says otherwise."""
        one, another = ({**asdict(entry), **asdict(entry.backbone)} for entry in (self, other))
        names = [name for name in one if name not in ("backbone", "given") and one[name] != another[name]]
        return [f"{name} {one[name]}, not {another[name]}" for name in names]
