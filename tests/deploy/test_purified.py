"""Rows of purified labels: who decides, what they say of it, and that what the networks think is kept ragged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import finished_run, run_config
from labelled_run import NAMES, PICTURES, facts, logits_for
from toy import method

from coreg_ray.annotation.arrow import lists
from coreg_ray.config import CandidatesConfig, Config
from coreg_ray.deploy.predictions import Pair
from coreg_ray.deploy.purified import (
    SCHEMA,
    Making,
    annotated_labels,
    calibrated,
    dense,
    mark_of,
    purified_labels,
    ragged,
)
from coreg_ray.errors import UserError
from coreg_ray.pure.combine import BELIEVED_DOUBT
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.voters import VOTERS_JSON, Voters

IDS = list(PICTURES)
MAKING = Making(NAMES, doubt=0.1)


def rows(logits: torch.Tensor, clean: torch.Tensor | None = None) -> dict[str, dict]:
    unknown = torch.full((2, len(IDS)), torch.nan)
    table, _ = purified_labels(facts(IDS), logits, unknown if clean is None else clean, MAKING)
    assert table.schema == SCHEMA
    return {row["image_id"]: row for row in table.to_pylist()}


def test_networks_that_know_nothing_leave_the_annotators_labels_and_sure_ones_overrule_them() -> None:
    own = [max(votes, key=lambda number: (votes[number], -number)) for _, votes in PICTURES.values()]
    made = rows(torch.zeros(2, len(IDS), len(NAMES)))
    for (image_id, row), number in zip(made.items(), own, strict=True):
        assert row["label"] == NAMES[number]
        assert not row["changed"]
        assert row["annotator_label"] == (None if image_id == "2.JPG" else NAMES[number])
    elsewhere = rows(logits_for([5] * len(IDS), sure=20.0))
    assert {image_id: row["label"] for image_id, row in elsewhere.items() if image_id != "2.JPG"} == dict.fromkeys(
        (image_id for image_id in IDS if image_id != "2.JPG"), "Cat"
    )
    assert [row["changed"] for row in elsewhere.values()] == [True, True, True, False, True, False, True]


def test_a_manual_label_stays_whatever_the_networks_think() -> None:
    row = rows(logits_for([0] * len(IDS), sure=50.0))["2.JPG"]
    assert (row["label"], row["probability"], row["status"]) == ("CON", 1.0, "trusted")
    assert (row["annotator_label"], row["changed"]) == (None, False)


def test_the_status_says_how_far_to_trust_a_label() -> None:
    clean = torch.tensor([[0.4, 0.4, torch.nan, 0.1, 0.9, 0.9, 0.5]] * 2)
    clean[1, 0] = 0.7
    made = rows(torch.zeros(2, len(IDS), len(NAMES)), clean)
    status = ["clean", "doubtful", "doubtful", "trusted", "outlier", "clean", "doubtful"]
    assert [row["status"] for row in made.values()] == status
    first, unknown = made["one/1.png"], made["two/deep/1.png"]
    assert (first["clean_a"], first["clean_b"]) == (pytest.approx(0.4), pytest.approx(0.7))
    assert (unknown["clean_a"], unknown["clean_b"]) == (None, None)


def test_candidates_are_names_and_networks_agree_where_they_name_one_class() -> None:
    logits = logits_for([0] * len(IDS)).clone()
    logits[1, 1] = torch.eye(len(NAMES))[3]
    made = rows(logits)
    assert made["two/1.png"]["candidates"] == ["a/b", "CON"]
    assert [row["agree"] for row in made.values()] == [True, False, *[True] * 5]


def test_without_networks_labels_are_the_annotators_and_what_they_would_know_is_missing() -> None:
    made = annotated_labels(facts(IDS), MAKING)
    assert made.schema == SCHEMA
    row = {row["image_id"]: row for row in made.to_pylist()}
    assert row["two/1.png"]["label"] == row["two/1.png"]["annotator_label"] == "a/b"
    assert row["two/1.png"]["probability"] == pytest.approx(2 / 3)
    assert row["two/deep/1.png"]["label"] == ".."  # of equal votes the lowest class
    for column in ("clean_a", "clean_b", "agree"):
        assert made[column].null_count == len(IDS)
    assert [entry["status"] for entry in made.to_pylist()] == [
        *["doubtful"] * 3,
        "trusted",
        "outlier",
        *["doubtful"] * 2,
    ]


def test_distributions_are_kept_ragged_up_to_what_is_next_to_nothing() -> None:
    probs = torch.tensor([[0.7, 0.2995, 0.0005], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]])
    table = ragged(probs)
    assert table["classes"].to_pylist() == [[0, 1], [0, 1, 2], [2]]
    back = torch.from_numpy(dense(table, 3))
    torch.testing.assert_close(back, probs, rtol=0, atol=1e-3)
    torch.testing.assert_close(back.sum(dim=1), torch.ones(3))
    many = torch.full((1, 4000), 1 / 4000)
    assert ragged(many)["classes"].to_pylist() == [list(range(4000))]  # all are the largest


def test_where_the_scores_are_a_posterior_they_and_not_the_votes_say_the_annotators_label() -> None:
    table = facts(["two/1.png"])  # two votes for a/b, one for CON
    scores = lists(np.array([2]), np.array([0.25, 0.5], np.float16))
    table = table.set_column(table.column_names.index("scores"), "scores", scores)
    assert annotated_labels(table, MAKING)["label"].to_pylist() == ["a/b"]
    believed = annotated_labels(table, Making(NAMES, by_scores=True))
    assert believed["label"].to_pylist() == ["CON"]
    assert believed["probability"].to_pylist() == [pytest.approx(0.5)]


def test_what_labels_are_made_from_is_marked_and_doubt_has_its_limits(tmp_path: Path) -> None:
    run = finished_run(RunFolder.at(tmp_path))
    config = run.read_config()
    assert config is not None
    mark = mark_of(run, config)
    assert mark == mark_of(run, config)
    stricter = method(epochs=4, clean_threshold=0.9).model_dump()
    assert mark != mark_of(run, run_config(run, config.source.classes, method=stricter))  # type: ignore[arg-type]
    assert [Making.of(run, config, doubt).doubt for doubt in (None, 0.0, 0.2, 0.9)] == [0.1, 0.001, 0.2, 0.3]
    pair = Pair.of(run)
    assert pair is not None
    making = calibrated(Making.of(run, config, 0.2), run, pair)
    assert 1 / 8 <= making.temperature <= 8
    (run.checkpoints / "epoch-000003").delete()
    assert mark != mark_of(run, config)  # another checkpoint
    run.checkpoints.delete()
    with pytest.raises(UserError, match=r"no whole checkpoint.*train first"):
        mark_of(run, config)


def test_a_label_model_that_is_believed_is_hardly_doubted_whatever_the_networks_find(tmp_path: Path) -> None:
    run = finished_run(RunFolder.at(tmp_path))
    config = run.read_config()
    assert config is not None
    posterior = config.model_copy(update={"candidates": CandidatesConfig.model_validate({"mode": "label_model"})})

    def made(reason: str | None, config: Config) -> Making:
        run.candidates.delete(VOTERS_JSON)
        if reason is not None:
            run.candidates.write_json(VOTERS_JSON, Voters([], reason).as_json())
        return Making.of(run, config, 0.25)

    believed = made("", posterior)
    assert (believed.believed, believed.doubt, believed.holdout) == (True, BELIEVED_DOUBT, 0.1)
    assert [made(reason, posterior).doubt for reason in ("is not believed", None)] == [0.25, 0.25]
    assert made("", config).doubt == 0.25  # the sets are the votes' union, whose scores are no posterior
    pair = Pair.of(run)
    assert pair is not None
    asked, as_before = calibrated(believed, run, pair), calibrated(made("", config), run, pair)
    assert asked.confusions is None
    assert as_before.confusions is not None
    for making, label_model in ((asked, True), (as_before, False)):
        assert making.evidence is not None
        assert (making.evidence.believed, making.evidence.doubt) == (label_model, 0.25)
        assert 10 <= making.evidence.images <= 30  # at least half of a tenth of 240
