"""Settings of one kind of method each: sections below `method` that only that kind reads.

Constants that several kinds share are flat settings of `method`. What each means: the head of `methods/<kind>.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

MethodKind = Literal["coreg", "dividemix", "distil", "partial", "pico", "elr", "ill"]


TITLES: dict[str, str] = {  # what people call them
    "coreg": "Co-Reg", "dividemix": "DivideMix", "distil": "Distilled annotator", "partial": "Partial labels",
    "pico": "PiCO", "elr": "ELR", "ill": "ILL",
}  # fmt: skip


class KindSection(BaseModel):
    """A frozen section that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def is_of_a_kind(field: FieldInfo) -> bool:
    """Whether a setting of `method` is the section of one kind."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, KindSection)


class DivideMixConfig(KindSection):
    """DivideMix (methods/dividemix.py)."""

    penalty: float = Field(1.0, ge=0, description="dividemix: weight of the penalty that holds the prior")


class PartialConfig(KindSection):
    """The partial-label family (methods/partial.py)."""

    loss: Literal["cc", "proden", "crdpll"] = Field("crdpll", description="partial: which of the family")
    robust: bool = Field(False, description="partial: weight what is not in S by the clean probability (crdpll)")
    weight: float = Field(1.0, ge=0, description="partial: weight of consistency once it has ramped up (crdpll)")


class DistilConfig(KindSection):
    """Distilling the annotator (methods/distil.py)."""

    loss: Literal["cross_entropy", "candidates"] = Field(
        "cross_entropy", description="distil: to soft labels, or -log of the mass that they share, and entropy"
    )
    confidence: float = Field(0.0, ge=0, le=1, description="distil: what the student itself decides of the target")
    prompt: str | None = Field(
        None, min_length=1, description="distil: the prompt whose probabilities are learnt; empty: the mean of all"
    )


class PicoConfig(KindSection):
    """PiCO, ALIM and PiCO+ (methods/pico.py); starts are shares of `method.epochs`."""

    importance: Literal["none", "onehot", "scale"] = Field(
        "none", description="pico: ALIM: classes outside a set count too, by their best vote (onehot) or all (scale)"
    )
    plus: bool = Field(False, description="pico: PiCO+: rows far from their prototype are unreliable")
    start: float = Field(0.01, ge=0, le=1, description="pico: from when on prototypes vote; published for plus: 0.06")
    momentum: float = Field(0.95, ge=0, le=1, description="pico: of confidences, at the start")
    final_momentum: float = Field(0.8, ge=0, le=1, description="pico: of confidences, at the end")
    prototype_momentum: float = Field(0.99, ge=0, lt=1, description="pico: momentum of the class prototypes")
    temperature: float = Field(0.07, gt=0, description="pico: of prototype similarities")
    contrast_weight: float = Field(0.5, ge=0, description="pico: weight of contrast; plus: until prototypes vote")
    importance_start: float = Field(0.08, ge=0, le=1, description="pico: ALIM: from when on classes outside count")
    mixup_weight: float = Field(1.0, ge=0, description="pico: ALIM, plus: weight of the loss of mixed views")
    reliable_weight: float = Field(2.0, ge=0, description="pico: plus: weight of the loss of reliable rows")
    unreliable_weight: float = Field(0.1, ge=0, description="pico: plus: weight of the loss of unreliable rows")
    reliable_contrast_weight: float = Field(1.0, ge=0, description="pico: plus: weight of contrast from then on")
    neighbours: int = Field(16, ge=1, description="pico: plus: positives of an unreliable row; published 5 to 16")
    neighbours_start: float = Field(0.125, ge=0, le=1, description="pico: plus: from when on it has them")

    @model_validator(mode="after")
    def _one_of_two(self) -> PicoConfig:
        if self.plus and self.importance != "none":
            raise ValueError(
                f"importance={self.importance} (ALIM) and plus=true (PiCO+) are two ways to bear wrong sets; choose one"
            )
        return self


class ElrConfig(KindSection):
    """ELR and ELR+ (methods/elr.py)."""

    momentum: float = Field(0.7, ge=0, le=1, description="elr: of a row's early prediction; published 0.7 to 0.9")
    weight: float = Field(3.0, ge=0, description="elr: of the term that holds it; published 1 to 7")
    plus: bool = Field(False, description="elr: ELR+: mixed views, and targets by the other network's moving average")
    average: float = Field(0.997, ge=0, lt=1, description="elr: plus: momentum of the moving average of weights")
    average_ramp: float = Field(0.5, ge=0, le=1, description="elr: plus: share of epochs over which it gets there")
    ramp: float = Field(0.0, ge=0, le=1, description="elr: plus: share of epochs over which the weight gets there")


class IllConfig(KindSection):
    """ILL (methods/ill.py)."""

    scale: float | None = Field(
        None, gt=0, description="ill: how sure transitions can get; empty: log(K - 1) + 4, which starts at 0.98"
    )
    balance: float = Field(0.1, ge=0, description="ill: weight of the term that holds the prior")
