"""Which rows a comparison has, and what its figures allow to say."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from coreg_ray.errors import UserError
from coreg_ray.run.comparison import FAILED, FINISHED, Outcome
from coreg_ray.search.comparison import (
    as_csv,
    as_table,
    conclusion,
    decided_by,
    default_rows,
    rows_of_kinds,
    rows_of_variants,
    summaries,
)


def outcome(name: str, seed: int, both: float | None, **more: Any) -> Outcome:
    last = {"criterion/combined": 0.5 + seed / 100}
    if both is not None:
        last |= {"test/accuracy": both, "test/accuracy_a": both - 0.01, "test/accuracy_b": both - 0.02}
    given: dict[str, Any] = {"passes": 100.0, "seconds": 9.5, "memory_mb": 400.0, "epochs_to_annotator": 3} | more
    return Outcome(name, "coreg", "candidates", seed, given.pop("status", FINISHED), last, **given)


APART = [outcome("coreg", seed, 0.9 + seed / 1000) for seed in range(3)] + [
    outcome("distil", seed, 0.7 + seed / 1000) for seed in range(3)
]
ALIKE = [outcome("coreg", seed, 0.9 + seed / 50) for seed in range(3)] + [
    outcome("elr", seed, 0.91 + seed / 50) for seed in range(3)
]


def said(outcomes: list[Outcome], annotator: float | None = 0.8, images: int | None = 360) -> str:
    return conclusion(summaries(outcomes), decided_by(outcomes), annotator, images)


def test_a_row_is_ahead_only_by_more_than_its_spread() -> None:
    assert said(APART).startswith("coreg is right for 0.901 of the test images (±0.031 for their choice), 0.101 above")
    assert said(APART).endswith("it is ahead of every other row by more than the spread over seeds.")
    assert "elr is right for 0.930" in said(ALIKE)
    assert said(ALIKE).endswith("it is not apart from coreg by more than the spread over seeds.")


def test_one_seed_tells_nothing_apart_and_a_worse_result_is_called_one() -> None:
    assert said([outcome("coreg", 0, 0.75), outcome("elr", 0, 0.5)]).endswith("use --seeds 0,1,2.")
    assert "0.050 below the annotator alone (0.800)" in said([outcome("coreg", 0, 0.75)])
    assert said([outcome("x", 0, None, status=FAILED)]) == "No run has finished, so there is nothing to say."


def test_without_labels_rows_are_ranked_by_a_criterion_and_that_is_said() -> None:
    outcomes = [outcome("coreg", 0, None), outcome("elr", 1, None)]
    assert decided_by(outcomes) == "criterion/combined"
    assert said(outcomes, None).startswith("Without labels elr has the highest criterion/combined (0.510)")
    assert "says nothing about how right they are" in said(outcomes, None)


def test_the_table_has_a_line_a_run_and_empty_cells_for_what_is_not_known() -> None:
    failed = outcome("pico", 0, None, status=FAILED, passes=None, epochs_to_annotator=None, error="=1+1")
    lines = list(csv.DictReader(io.StringIO(as_csv([*APART, failed]))))
    assert [line["name"] for line in lines] == ["coreg"] * 3 + ["distil"] * 3 + ["pico"]
    assert list(lines[0])[:8] == [
        *("name", "kind", "labels", "seed", "status", "test/accuracy", "test/accuracy_a", "test/accuracy_b")
    ]
    assert (lines[0]["passes_per_row"], lines[0]["epochs_to_annotator"]) == ("100.0", "3")
    assert (lines[6]["status"], lines[6]["test/accuracy"], lines[6]["passes_per_row"]) == ("failed", "", "")
    assert lines[6]["error"] == "'=1+1"  # no formula in a spreadsheet
    assert "1 failed" in as_table(summaries([failed]), "test/accuracy")


def test_rows_come_from_kinds_or_a_file() -> None:
    names = [row.name for row in default_rows(["coreg", "dividemix", "elr"])]
    assert names == ["coreg", "coreg-single", "dividemix", "dividemix-single", "elr"]
    assert [row.changes for row in rows_of_kinds(["coreg", "elr"])] == [{}, {"preset": "method-elr"}]
    rows = rows_of_variants({"no contrast": {"method.contrast_weight": 0}, "as it is": None}, "x.yaml", frozen=True)
    assert [(row.name, row.changes) for row in rows] == [
        ("no contrast", {"method.contrast_weight": 0}), ("as it is", {}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "frozen", "message"),
    [
        ({}, False, "must hold rows"),
        (["coreg"], False, "must hold rows"),
        ({"../x": {}}, False, "makes no folder"),
        ({"x": 3}, False, "x holds 3; write settings"),
        ({"x": {"source.path": "y"}}, False, "source.path decides annotations"),
        ({"x": {"student.resolution": 8}}, False, "student.resolution decides"),
        ({"x": {"student.frozen_views": 4}}, True, "student.frozen_views decides"),
    ],
)
def test_files_of_rows_that_cannot_be_compared_are_refused(tree: Any, frozen: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows_of_variants(tree, "x.yaml", frozen)
