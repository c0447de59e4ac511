"""The section of the method: schedule and constants, and which of them are fitted to the pool where nobody gives them.

The constants are those of the paper (arXiv 2406.18550) and of its authors' published settings, but for what
`methods/coreg.py` opens with.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from coreg_ray.config.kinds import (
    DistilConfig,
    DivideMixConfig,
    ElrConfig,
    IllConfig,
    MethodKind,
    PartialConfig,
    PicoConfig,
    is_of_a_kind,
)
from coreg_ray.config.sections import Section, file

FITTED = (  # settings that are empty until the pool is known (fit_to_pool.py), in the order in which errors name them
    *("epochs", "warmup_epochs", "contrast_delay", "ramp_epochs", "batch_size", "warmup_batch_size"),
    *("learning_rate", "key_momentum", "queue_size"),
)


def _fitted(description: str, **limits: Any) -> Any:
    return Field(None, description=f"{description}; empty: fitted to the pool", **limits)


class MethodSettings(Section):
    """Which method, its schedule and constants (epochs count from 0), as a person gives them."""

    kind: MethodKind = Field("coreg", description="the method, a file of methods/")
    labels: Literal["candidates", "single", "soft"] = Field(
        "candidates",
        description="what it learns from: candidate sets, of each set the likeliest class, or shares of all classes "
        "(distil, which always does)",
    )
    epochs: int | None = _fitted("passes over the rows, warm-up included", ge=1)
    warmup_epochs: int | None = _fitted("epochs of partial cross-entropy, each network alone", ge=0)
    contrast_delay: int | None = _fitted("epochs after warm-up before the contrastive branch joins", ge=0)
    batch_size: int | None = _fitted("labelled rows per step and network", ge=2)
    warmup_batch_size: int | None = _fitted("rows per warm-up step and network", ge=2)
    learning_rate: float | None = _fitted("SGD learning rate at the start of the cosine", gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0, description="SGD weight decay")
    clean_threshold: float = Field(0.5, ge=0, lt=1, description="rows with a higher clean probability are labelled")
    clean: Literal["mixture", "confident"] = Field(
        "mixture",
        description="coreg, dividemix: what finds sets sound: two components of their losses, or confident learning "
        "after a warm-up in which each network sees half of the rows",
    )
    neighbours: int = Field(
        0, ge=0, le=1000, description="coreg, dividemix: rows nearest to a doubtful one that have a say in its label"
    )
    temperature: float = Field(0.5, gt=0, description="sharpening temperature of pseudo-labels")
    weak_views: int = Field(1, ge=1, le=2, description="weak views per network for pseudo-labels; the paper has 2")
    lambda_u: float = Field(1.0, ge=0, description="weight of the consistency term")
    ramp_epochs: int | None = _fitted("epochs over which lambda_u ramps up after warm-up", ge=0)
    mixup_alpha: float = Field(4.0, gt=0, description="both parameters of mixup's beta distribution")
    loss_history: int = Field(5, ge=1, le=100, description="epochs of losses averaged before the mixture is fitted")
    prototype_weight: float = Field(0.1, ge=0, description="weight of the prototype loss")
    prototype_momentum: float = Field(0.999, ge=0, lt=1, description="momentum of the class prototypes")
    prototype_temperature: float = Field(0.3, gt=0, description="temperature of prototype similarities")
    contrast_weight: float = Field(0.1, ge=0, description="weight of the noise-tolerant contrastive loss")
    contrast_temperature: float = Field(0.07, gt=0, description="temperature of the contrastive loss")
    key_momentum: float | None = _fitted("momentum of the key encoder", ge=0, lt=1)
    queue_size: int | None = _fitted("keys kept for contrast, per network", ge=0)
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
    elr: ElrConfig = ElrConfig()
    ill: IllConfig = IllConfig()

    def of_others(self) -> list[str]:
        """The sections of kinds that this method is not."""
        fields = type(self).model_fields.items()
        return [name for name, field in fields if is_of_a_kind(field) and name != self.kind]

    @property
    def learns_from(self) -> Literal["candidates", "single", "soft"]:
        """`labels`, as the kind understands it."""
        return "soft" if self.kind == "distil" and self.labels == "candidates" else self.labels

    @model_validator(mode="after")
    def _of_its_kind(self) -> MethodSettings:
        for name in self.of_others():
            given, untouched = getattr(self, name), type(self).model_fields[name].default
            changed = [key for key in type(given).model_fields if getattr(given, key) != getattr(untouched, key)]
            if changed:
                raise ValueError(
                    f"{name}.{changed[0]}={getattr(given, changed[0])} is a setting of method.kind={name}, and this is "
                    f"method.kind={self.kind}; leave it out or choose that kind"
                )
        if self.clean == "confident" and self.kind not in ("coreg", "dividemix"):
            raise ValueError(
                f"clean=confident with method.kind={self.kind}: it does not hand rows that are found sound to another "
                "network; use clean=mixture, or method.kind coreg or dividemix"
            )
        if self.neighbours and self.kind not in ("coreg", "dividemix"):
            raise ValueError(
                f"neighbours={self.neighbours} with method.kind={self.kind}: it makes no labels for doubtful rows; use "
                "neighbours=0, or method.kind coreg or dividemix"
            )
        if self.distil.prompt is not None and self.labels == "single":
            raise ValueError(
                f"distil.prompt={self.distil.prompt!r} with labels=single: that learns one class of each set; leave "
                "one of them out, or ask that prompt alone (source.prompts)"
            )
        if self.labels == "soft" and self.kind != "distil":
            raise ValueError(
                f"labels=soft with method.kind={self.kind}: it learns from sets of classes; use candidates or single, "
                "or method.kind distil"
            )
        return self

    @model_validator(mode="after")
    def _schedule(self) -> MethodSettings:
        epochs, warmup = self.epochs, self.warmup_epochs
        if epochs is not None and warmup is not None and warmup > epochs:
            raise ValueError(f"warmup_epochs={warmup} exceeds epochs={epochs}; lower warmup_epochs or raise epochs")
        if self.clean == "confident" and warmup == 0:
            raise ValueError(
                "clean=confident with warmup_epochs=0: it judges by what networks have learned in the warm-up; "
                "raise warmup_epochs, or use clean=mixture"
            )
        return self

    @property
    def empty(self) -> list[str]:
        """Names of the settings that are still to be fitted to a pool."""
        return [name for name in FITTED if getattr(self, name) is None]

    def whole(self) -> MethodConfig:
        """The same, for training.

        Raises:
            ValueError: some settings are empty.
        """
        if self.empty:
            names = ", ".join(f"method.{name}" for name in self.empty)
            raise ValueError(f"{names} not set: fit them to the pool (config.fit_to_pool) or give their values")
        return MethodConfig(**self.model_dump())


class MethodConfig(MethodSettings):
    """The section when it is whole, as training takes it; what is not given is the paper's."""

    epochs: int = Field(100, ge=1)
    warmup_epochs: int = Field(50, ge=0)
    contrast_delay: int = Field(10, ge=0)
    batch_size: int = Field(256, ge=2)
    warmup_batch_size: int = Field(512, ge=2)
    learning_rate: float = Field(0.01, gt=0)
    ramp_epochs: int = Field(16, ge=0)
    key_momentum: float = Field(0.999, ge=0, lt=1)
    queue_size: int = Field(8192, ge=0)
