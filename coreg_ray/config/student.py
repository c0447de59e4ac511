"""The section of the student: which network is trained, from what, and what is put in front of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from coreg_ray.config.sections import Section, running, starting

PREACT_RESNETS = ("preact_resnet10", "preact_resnet18")  # which this project builds itself
ANNOTATOR = "annotator"  # the student's name that stands for the annotator's own image encoder


class StudentConfig(Section):
    """The small classifier that is trained, twice."""

    name: str = Field(
        "preact_resnet18",
        description="preact_resnet18 or preact_resnet10, any timm model by name, or `annotator`",
    )
    pretrained: str | None = starting(
        None, words=("hub",), description="timm only: `hub` for the model's hub weights, or a local file"
    )
    frozen: bool = Field(False, description="timm only: it stays as it is, and small heads learn from its features")
    frozen_views: int = Field(
        8, ge=2, le=64, multiple_of=2, description="frozen: stored views of an image, half weak and half strong"
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="frozen: share of the features that a strong view is without, drawn anew each time"
    )
    backbone_learning_rate: float | None = Field(
        None, gt=0, description="timm, not frozen: where its cosine starts; empty: as method.learning_rate"
    )
    batch_norm: Literal["trained", "frozen"] = Field(
        "trained", description="timm, not frozen; frozen: its batch-norm statistics stay those of its weights"
    )
    warm_start: int = Field(
        0, ge=0, description="timm, not frozen: first epochs in which the backbone is held and only heads learn"
    )
    resolution: int = Field(32, ge=8, le=512, description="side of the images it sees, in pixels")
    width: int = Field(
        64, ge=4, le=512, description="channels of a preact_resnet's first stage; heads have 8 times as many units"
    )
    projection: int = Field(128, ge=2, description="size of the projected features")
    views: Literal["auto", "randaugment", "hole", "weak"] = Field(
        "auto", description="strong views; auto follows the source; weak: those of weak views alone"
    )
    flip: bool | None = Field(None, description="mirror images in views; empty: not where it changes the class")
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    compile: bool = running(False, description="torch.compile the networks; takes a minute or more first")

    @property
    def on_features(self) -> bool:
        """Whether the networks are heads over features that were computed before."""
        return self.frozen or self.name == ANNOTATOR

    @model_validator(mode="after")
    def _backbone(self) -> StudentConfig:
        if self.frozen and self.name in PREACT_RESNETS:
            raise ValueError(
                f"frozen=true with name={self.name}: it has no published weights; name a timm model with its "
                "weights (student.name, student.pretrained), or `annotator`"
            )
        if self.name == ANNOTATOR and self.pretrained:
            raise ValueError(
                f"pretrained={self.pretrained} with name=annotator: the annotator brings its own weights; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _fine_tuned(self) -> StudentConfig:
        """What is for backbones that learn is refused where there is none."""
        if self.on_features or self.name in PREACT_RESNETS:
            for name in ("backbone_learning_rate", "batch_norm", "warm_start"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name}={getattr(self, name)} needs a timm model that learns; leave it out, or set "
                        "student.name and student.frozen false"
                    )
        return self
