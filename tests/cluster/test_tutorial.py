"""docs/tutorial.py as a person runs it: from images in a folder to labels, a model and a comparison."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest

import coreg_ray

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.py"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_cluster")]


def test_the_tutorial_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(TUTORIAL), str(tmp_path / "work")])
    made = runpy.run_path(str(TUTORIAL), run_name="__main__")
    run, labels, comparison = made["run"], made["labels"], made["comparison"]
    assert [epoch["phase"] for epoch in run.history] == ["warmup"] * 3 + ["coreg"] * 3
    assert run.state.startswith("finished: 6 of 6 epochs")
    assert run.figures["test/accuracy"] > 0.2  # ten classes; the sixth epoch of a tiny network
    assert len(labels) == 600
    assert len(list(csv.DictReader((tmp_path / "work/labels.csv").open()))) == 600
    assert len(made["classes"]) == 5
    assert [(row["name"], row["status"]) for row in comparison.rows] == [("coreg", "finished"), ("partial", "finished")]
    assert len(comparison.run("partial").history) == 4
    assert "<td>partial</td>" in comparison._repr_html_()
    assert comparison.conclusion in capsys.readouterr().out
    with pytest.raises(coreg_ray.UserError, match="no run 'pico' with seed 0; there are coreg 0, partial 0"):
        comparison.run("pico")
