"""The sections about what a run writes: checkpoints, the model, the report. None of them decides a result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coreg_ray.config.sections import Section


class CheckpointConfig(Section):
    """When the state of the method is written; the best by `criterion/combined` is kept besides the last ones."""

    every: int = Field(1, ge=1, description="epochs between checkpoints")
    keep: int = Field(2, ge=1, description="last checkpoints kept")


class ExportConfig(Section):
    """How the trained model is written; never part of a run's fingerprint."""

    network: Literal["auto", "a", "b", "ensemble"] = Field(
        "auto", description="which network is deployed; auto: the better one by what needs no labels"
    )
    calibrate: bool = Field(True, description="fit a temperature on the purified labels")
    onnx: bool | None = Field(None, description="also write model.onnx; empty: when the onnx extra is installed")
    int8: bool | None = Field(
        None, description="also write model-int8.onnx, where it answers alike and faster; empty: where model.onnx is"
    )
    abstain: float | None = Field(
        0.95, gt=0, lt=1, description="wished share of right answers, for a threshold below which none is given"
    )
    program: bool = Field(False, description="also write model.pt2, a torch.export program")


class ReportConfig(Section):
    """What the report shows; never part of a run's fingerprint."""

    pictures: int = Field(12, ge=0, le=200, description="pictures in each gallery; 0 for private pools")
    images: int = Field(4096, ge=0, description="most images of a split that both networks are asked about")
    baselines: bool = Field(True, description="train a linear probe and a distilled student to compare with")
    review: int = Field(100, ge=0, description="images in review.csv, for a human look")
