"""What one stage hands to the next: as figures of a run, and as JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coreg_ray.run.records import (
    AnnotateResult,
    CandidateFigures,
    CandidateManifest,
    PredictResult,
    RowsManifest,
    Spent,
    SplitAnnotation,
    TrainResult,
    from_json,
)

NEED_LABELS: dict[str, Any] = {
    "prompt_accuracy": [0.5, 0.75],
    "coverage": 0.875,
    "eta": 0.125,
    "zero_shot_accuracy": 0.625,
    "class_accuracy": [0.5, 0.75],
    "class_coverage": [0.75, 1.0],
}


def split(images: int, spent: Spent | None = None) -> SplitAnnotation:
    return SplitAnnotation(
        images=images, encoded_images=images - 2, rejected_images=1, missing_images=1, seconds=3.0, spent=spent
    )


POOL = {
    "annotation/images": 40,
    "annotation/encoded_images": 38,
    "annotation/rejected_images": 1,
    "annotation/missing_images": 1,
}


def test_what_was_paid_counts_the_test_images_in_this_run_as_in_all() -> None:
    pool = split(40, Spent(38, input_tokens=380, output_tokens=76, cost=2.0, requests_in_all=50, cost_in_all=2.5))
    test = split(10, Spent(8, input_tokens=80, output_tokens=16, cost=0.5, requests_in_all=9, cost_in_all=0.75))
    assert AnnotateResult(pool, test).metrics() == POOL | {
        "annotation/requests": 46,
        "annotation/input_tokens": 460,
        "annotation/output_tokens": 92,
        "annotation/cost": 2.5,
        "annotation/requests_in_all": 59,
        "annotation/cost_in_all": 3.25,
    }
    alone = AnnotateResult(pool).metrics()
    assert (alone["annotation/requests"], alone["annotation/cost"], alone["annotation/cost_in_all"]) == (38, 2.0, 2.5)


def test_a_first_run_has_spent_what_all_runs_have() -> None:
    pool, test = (split(n, Spent(n, cost=n / 4, requests_in_all=n, cost_in_all=n / 4)) for n in (40, 10))
    metrics = AnnotateResult(pool, test).metrics()
    assert metrics["annotation/requests"] == metrics["annotation/requests_in_all"] == 50
    assert metrics["annotation/cost"] == metrics["annotation/cost_in_all"] == 12.5


def test_without_a_chat_model_nothing_is_said_about_costs() -> None:
    assert AnnotateResult(split(40), split(10)).metrics() == POOL


def test_figures_that_need_labels_are_left_out_where_there_are_none() -> None:
    unlabelled = CandidateFigures(rows=8, rows_without_vote=1, mean_candidates=1.5, votes_per_class=[9, 7])
    content = unlabelled.as_json()
    assert not NEED_LABELS.keys() & content.keys()
    assert content["agreement"] is None  # one prompt alone; whoever reads it finds the name
    assert content["outlier_share"] is None
    labelled = CandidateFigures(rows=8, mean_candidates=1.5, **NEED_LABELS)
    assert labelled.as_json().keys() == content.keys() | NEED_LABELS.keys()
    assert labelled.metrics()["annotation/coverage"] == 0.875
    assert "annotation/coverage" not in unlabelled.metrics()
    for figures in (unlabelled, labelled):
        assert from_json(CandidateFigures, json.loads(json.dumps(figures.as_json()))) == figures


def test_a_manifest_comes_back_as_it_was_written() -> None:
    manifest = CandidateManifest(
        class_names=["cat", "dog"],
        fingerprint="0" * 16,
        quality=CandidateFigures(rows=8, warnings=["few rows"], **NEED_LABELS),
        prior=[0.25, 0.75],
        names=[["cat", "kitten"], ["dog"]],
        made_from="1" * 16,
        parts=2,
    )
    content = json.loads(json.dumps(manifest.as_json()))
    assert content["num_classes"] == 2
    assert CandidateManifest.from_json(content) == manifest


def test_what_another_version_wrote_can_be_read() -> None:
    older: dict[str, Any] = {"class_names": ["cat", "dog"], "num_classes": 2, "prior": [0.5, 0.5]}
    manifest = CandidateManifest.from_json(older | {"quality": {"rows": 3, "a later figure": 1}, "later": True})
    assert (manifest.quality.rows, manifest.fingerprint, manifest.parts) == (3, None, None)
    assert from_json(RowsManifest, {"side": 8, "images": "0" * 16, "later": True}) == RowsManifest(8, "0" * 16)


def test_training_reports_the_scores_of_its_last_epoch() -> None:
    figures: dict[str, float | str] = {"epoch": 3, "phase": "coreg", "loss/a": 0.5, "time/epoch_s": 2.0}
    scores: dict[str, float | str] = {"test/accuracy": 0.75, "criterion/label_free": 0.5}
    trained = TrainResult(figures | scores, world_size=2, start_epoch=1)
    assert trained.metrics() == scores | {"train/world_size": 2, "train/start_epoch": 1}


def test_speed_counts_what_was_predicted_now() -> None:
    done = PredictResult(images=100, predicted_images=30, rejected_images=5, seconds=2.0)
    assert done.images_per_s == pytest.approx(15)
