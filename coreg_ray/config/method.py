"""The section `method` of the configuration: which method, its schedule and constants."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from coreg_ray.config.kinds import DistilConfig, DivideMixConfig, PartialConfig, PicoConfig, is_of_a_kind
from coreg_ray.config.sections import Section, file


class MethodConfig(Section):
    """Which method, its schedule and constants (Co-Reg's paper, sections 3 and 4; epochs count from 0)."""

    kind: Literal["coreg", "dividemix", "distil", "partial", "pico"] = Field(
        "coreg", description="the method, a file of methods/"
    )
    labels: Literal["candidates", "single", "soft"] = Field(
        "candidates",
        description="what it learns from: candidate sets, of each set the likeliest class, or shares of all classes "
        "(distil, which always does)",
    )
    epochs: int = Field(100, ge=1, description="passes over the rows, warm-up included")
    warmup_epochs: int = Field(50, ge=0, description="epochs of partial cross-entropy, each network alone")
    contrast_delay: int = Field(10, ge=0, description="epochs after warm-up before the contrastive branch joins")
    batch_size: int = Field(256, ge=2, description="labelled rows per step and network")
    warmup_batch_size: int = Field(512, ge=2, description="rows per warm-up step and network")
    learning_rate: float = Field(0.01, gt=0, description="SGD learning rate at the start of the cosine")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0, description="SGD weight decay")
    clean_threshold: float = Field(0.5, ge=0, lt=1, description="rows with a higher clean probability are labelled")
    temperature: float = Field(0.5, gt=0, description="sharpening temperature of pseudo-labels")
    weak_views: int = Field(1, ge=1, le=2, description="weak views per network for pseudo-labels; the paper has 2")
    lambda_u: float = Field(1.0, ge=0, description="weight of the consistency term")
    ramp_epochs: int = Field(16, ge=0, description="epochs over which lambda_u ramps up after warm-up")
    mixup_alpha: float = Field(4.0, gt=0, description="both parameters of mixup's beta distribution")
    loss_history: int = Field(5, ge=1, le=100, description="epochs of losses averaged before the mixture is fitted")
    prototype_weight: float = Field(0.1, ge=0, description="weight of the prototype loss")
    prototype_momentum: float = Field(0.999, ge=0, lt=1, description="momentum of the class prototypes")
    prototype_temperature: float = Field(0.3, gt=0, description="temperature of prototype similarities")
    contrast_weight: float = Field(0.1, ge=0, description="weight of the noise-tolerant contrastive loss")
    contrast_temperature: float = Field(0.07, gt=0, description="temperature of the contrastive loss")
    key_momentum: float = Field(0.999, ge=0, lt=1, description="momentum of the key encoder; 0.99 for small sets")
    queue_size: int = Field(8192, ge=0, description="keys kept for contrast, per network")
    prior: str = file(
        "uniform",
        words=("uniform", "annotator"),
        description="class prior of alignment: uniform, annotator, or a JSON file",
    )
    order: Literal["concurrent", "sequential"] = Field("concurrent", description="how the networks take turns")
    exchanges: int = Field(4, ge=1, description="rounds per epoch after which concurrent networks swap weights")
    trusted_share: float = Field(0.25, ge=0.05, le=0.9, description="share of manual labels in a labelled batch")
    dividemix: DivideMixConfig = DivideMixConfig()
    distil: DistilConfig = DistilConfig()
    partial: PartialConfig = PartialConfig()
    pico: PicoConfig = PicoConfig()

    def of_others(self) -> list[str]:
        """The sections of kinds that this method is not."""
        fields = type(self).model_fields.items()
        return [name for name, field in fields if is_of_a_kind(field) and name != self.kind]

    @property
    def learns_from(self) -> Literal["candidates", "single", "soft"]:
        """`labels`, as the kind understands it."""
        return "soft" if self.kind == "distil" and self.labels == "candidates" else self.labels

    @model_validator(mode="after")
    def _of_its_kind(self) -> MethodConfig:
        for name in self.of_others():
            given, untouched = getattr(self, name), type(self).model_fields[name].default
            changed = [key for key in type(given).model_fields if getattr(given, key) != getattr(untouched, key)]
            if changed:
                raise ValueError(
                    f"{name}.{changed[0]}={getattr(given, changed[0])} is a setting of method.kind={name}, and this is "
                    f"method.kind={self.kind}; leave it out or choose that kind"
                )
        if self.labels == "soft" and self.kind != "distil":
            raise ValueError(
                f"labels=soft with method.kind={self.kind}: it learns from sets of classes; use candidates or single, "
                "or method.kind distil"
            )
        return self

    @model_validator(mode="after")
    def _schedule(self) -> MethodConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} exceeds epochs={self.epochs}; lower warmup_epochs or raise epochs"
            )
        return self
