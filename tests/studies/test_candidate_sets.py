"""The study of candidate sets: it trains what is missing, reads what is there, and says it in a line a way."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from coreg_ray.studies import candidate_sets


def test_trainings_are_added_once_and_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "study.jsonl"
    ways = ["--ways", "union", "label_model+weights", "--student", "head", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["study", "--output", str(file), "--seeds", "0", *ways])
    caplog.set_level(logging.INFO)
    candidate_sets.main()
    first = file.read_text()
    union, modelled = map(json.loads, first.splitlines())
    assert union["coverage"] == pytest.approx(0.892, abs=1e-3)
    assert union["candidates"] > modelled["candidates"] > 1
    assert union["accuracy"] != modelled["accuracy"]
    candidate_sets.main()
    assert file.read_text() == first
    assert caplog.messages[-1].startswith("head, 1 epochs, label_model+weights")
