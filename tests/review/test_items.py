"""What the page tells of each image: as much as the run's tables hold, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from review_run import ANIMALS, answers, as_csv, review_run

from coreg_ray.annotation.arrow import write_table
from coreg_ray.review.items import Items, read_items, read_table_of
from coreg_ray.run.folder import RunFolder

IDS = ["a.png", "b.png", "c.png"]
SOURCE: dict[str, Any] = {"kind": "folder", "path": "pool"}


def items_of(run: RunFolder) -> Items:
    return read_items(run, read_table_of(run, run.path))


def test_answers_and_confidences_come_from_the_list_and_the_candidate_sets(tmp_path: Path) -> None:
    items = items_of(review_run(RunFolder.at(tmp_path), SOURCE, IDS))
    assert items.columns["suggestion"] == [0, 1, 2]
    assert items.columns["a"] == [0, 1, 2]
    assert items.columns["b"] == [1, 1, 2]  # the first divides the networks
    assert items.columns["a_confidence"] == [0.61] * 3
    assert items.columns["annotator"] == [1, 1, 2]
    assert items.columns["candidates"][0] == [(0, 0.7), (1, 0.2)]
    assert items.columns["annotator_confidence"] == [0.2, 0.7, 0.7]
    assert not {"status", "changed", "agree"} & items.columns.keys()  # filters that would have nothing to show


def test_numbers_that_are_none_do_not_reach_the_page(tmp_path: Path) -> None:
    run = review_run(RunFolder.at(tmp_path), SOURCE, IDS)
    sets = {"image_id": IDS, "candidates": [[0, 1], [1], [7]], "scores": [[None, float("nan")], [0.5], [0.5]]}
    write_table(run.candidates, "0.parquet", pa.table(sets))
    run.write("review.csv", run.read("review.csv").replace(b"0.6100", b"nan", 1).replace(b"0.6100", b"much", 1))
    items = items_of(run)
    assert items.columns["candidates"] == [[], [(1, 0.5)], []]
    assert items.columns["a_confidence"] == [None, None, 0.61]


def test_what_the_method_settled_is_told_where_it_is_kept(tmp_path: Path) -> None:
    run = review_run(RunFolder.at(tmp_path), SOURCE, IDS)
    rows = [("c.png", "outlier", True, False), ("x.png", "clean", True, True), ("a.png", "clean", False, True)]
    columns = dict(zip(("image_id", "status", "changed", "agree"), map(list, zip(*rows, strict=True)), strict=True))
    write_table(run / "purified", "0.parquet", pa.table(columns))
    (Path(run.path) / "purified/1.parquet").write_bytes(b"cut short")
    items = items_of(run)
    assert items.columns["status"] == ["clean", None, "outlier"]
    assert items.columns["changed"] == [False, None, True]


def test_an_answer_that_is_no_class_any_more_is_shown_and_offered_nowhere(tmp_path: Path) -> None:
    run = review_run(RunFolder.at(tmp_path), SOURCE, IDS)
    run.write("review.csv", as_csv(answers(IDS, [*ANIMALS[:2], "wolf"])))
    items = items_of(run)
    assert items.class_names == ANIMALS
    assert items.words == [*ANIMALS, "wolf"]
    assert items.columns["suggestion"] == [0, 1, 3]


def test_classes_are_those_that_the_list_mentions_where_nothing_else_names_them(tmp_path: Path) -> None:
    run = review_run(RunFolder.at(tmp_path), SOURCE, IDS)
    run.delete("candidates")
    assert items_of(run).class_names == ANIMALS
    run.write("model/model.json", '{"classes": ["dog", "cat", "fox", "owl"]}')
    assert items_of(run).class_names == ["dog", "cat", "fox", "owl"]


def test_a_list_with_two_columns_is_enough(tmp_path: Path) -> None:
    run = review_run(RunFolder.at(tmp_path), SOURCE, IDS)
    run.write("review.csv", "image_id,label\na.png,Cat \nb.png,\na.png,\n")
    items = items_of(run)
    assert items.ids == ["a.png", "b.png"]
    assert items.as_shown(items.labels["a.png"]) == "cat"
    assert set(items.columns) == {"candidates"}
