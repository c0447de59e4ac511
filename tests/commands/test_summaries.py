"""What commands say at their end: what to do next, in words that a shell takes and that fit what has come of it."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import pytest

from coreg_ray.commands import annotate, pipeline
from coreg_ray.commands.base import next_command

FIGURES: dict[str, Any] = {
    "images": 40, "encoded_images": 40, "rejected_images": 0, "missing_images": 0, "rows": 40, "mean_candidates": 1.5,
    "singletons": 0.5, "vote_entropy": 1.0, "agreement": 0.9,
}  # fmt: skip
NOTHING: dict[str, Any] = {
    "rows": 0, "mean_candidates": None, "singletons": None, "vote_entropy": None, "agreement": None,
}  # fmt: skip


def told(run: str = "runs/x", **changes: Any) -> list[str]:
    """The lines about an annotation."""
    return annotate.summary({f"annotation/{name}": value for name, value in (FIGURES | changes).items()}, run).split(
        "\n"
    )


@pytest.fixture(autouse=True)
def _called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["coreg-ray", "annotate"])


@pytest.mark.parametrize("run", ["runs/a b", "runs/it's; rm -rf $HOME", "s3://b/x?scheme=http&region=eu"])
def test_the_next_command_is_quoted_for_a_shell(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/my checkout/jobs/pipeline.py"])
    line = pipeline.summary({"time/annotate_s": 60.0, "time/train_s": 120.0}, run).split("\n")[-1]
    _, python, script, option, model, *_ = shlex.split(line)
    assert (python, script, option) == ("python", "/opt/my checkout/jobs/predict.py", "--model")
    assert model == (f"{run}/model" if "?" not in run else "s3://b/x/model?scheme=http&region=eu")
    *_, annotations, output, folder = shlex.split(told(run)[-1])
    assert annotations == model.replace("/model", "/annotations")
    assert (output, folder) == ("--output", "DIR")


def test_it_holds_no_credentials() -> None:
    line = next_command("train", "--annotations", "s3://KEY:SECRET@bucket/a")
    assert line == "Next: coreg-ray train --annotations s3://bucket/a"


def test_a_run_over_votes_knows_no_zero_shot_accuracy() -> None:
    trained = {"time/annotate_s": 60.0, "time/train_s": 120.0, "test/accuracy": 0.9}
    assert "Test accuracy 0.900; votes are about the pool alone." in pipeline.summary(trained, "runs/x").split("\n")
    compared = pipeline.summary({**trained, "test/zero_shot_accuracy": 0.5}, "runs/x")
    assert "the annotator alone 0.500: 0.20 of its errors are left" in compared


def test_manual_labels_are_not_denied() -> None:
    times = {"time/annotate_s": 60.0, "time/train_s": 120.0}
    assert pipeline.summary(times, "x").startswith("Trained two networks without a manual label in 3.0 minutes.\n")
    reviewed = pipeline.summary(times, "x", "s3://KEY:SECRET@bucket/review.csv")
    assert reviewed.startswith("Trained two networks with the manual labels of s3://bucket/review.csv in 3.0 minutes.")


def test_test_images_that_lie_in_the_pool_are_said_and_none_is_no_line() -> None:
    shared = {"test/images": 40, "test/images_in_pool": 2}
    trained = {"time/annotate_s": 60.0, "time/train_s": 120.0, "test/accuracy": 0.9, "test/zero_shot_accuracy": 0.5}
    said = "2 of the 40 test images (5%) lie in the pool too, byte for byte"
    assert said in pipeline.summary({**trained, **shared}, "runs/x")
    assert said in annotate.summary({f"annotation/{k}": v for k, v in FIGURES.items()} | shared, "runs/x")
    for figures in ({}, {**shared, "test/images_in_pool": 0}):
        assert "lie in the pool" not in pipeline.summary({**trained, **figures}, "runs/x")


def test_training_is_next_only_where_there_is_something_to_train_on() -> None:
    assert told()[-1].startswith("Next: coreg-ray train --annotations runs/x/annotations ")
    lines = told(encoded_images=0, rejected_images=40, **NOTHING)
    assert lines[0] == "40 images: 0 annotated now, 40 rejected, 0 without an answer yet."
    assert lines[-1] == "Nothing can be trained on: runs/x/rejects says why each image was rejected."
    lines = told(encoded_images=0, missing_images=40, **NOTHING)
    assert lines[-1] == "Next: the same command again, for the images without an answer"
    assert told(missing_images=1)[-1] == lines[-1]
    assert told(encoded_images=0)[-1].startswith("Next: coreg-ray train")  # all of them were annotated before
