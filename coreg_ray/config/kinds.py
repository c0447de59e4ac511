"""Settings of one kind of method each: sections below `method` that only that kind reads.

Constants that several kinds share are flat settings of `method`. What each means: the head of `methods/<kind>.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


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
