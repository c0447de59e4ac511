"""The study of fine-tuning on its small twin: what it writes, what it skips and what it refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from coreg_ray.config import StudentConfig
from coreg_ray.errors import UserError
from coreg_ray.studies import finetuning


def asked(output: Path, *variants: str, smoke: bool = True) -> argparse.Namespace:
    size = {"rows": 60, "epochs": 2, "warmup": 1}
    return argparse.Namespace(data=None, output=output, variant=list(variants), seeds=[0], smoke=smoke, **size)


def test_every_variant_is_a_network_that_learns() -> None:
    for changes in finetuning.VARIANTS.values():
        assert not StudentConfig.model_validate({"name": finetuning.NAME, **changes}).on_features


def test_what_is_missing_is_run_and_told(tmp_path: Path) -> None:
    output = tmp_path / "lines.jsonl"
    (first,) = finetuning.study(asked(output, "fifth"))
    assert [json.loads(line) for line in output.read_text().splitlines()] == [first]
    assert set(first) == {"variant", "seed", "rows", "epochs", "warmup_epochs", "curve", "seconds"}
    assert len(first["curve"]) == 2
    kept, _ = finetuning.study(asked(output, "fifth", "equal, frozen norm"))
    assert kept == first
    other = {**first, "seed": 1, "curve": [0.5, 0.25]}
    end = first["curve"][1]
    assert finetuning.table([first, other])[2] == f"| fifth | 60 | 2 | 1 | {(end + 0.25) / 2:.3f} | {end:.3f} 0.250 |"


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--variant slow is unknown; the variants are held, equal"):
        finetuning.study(asked(tmp_path / "x", "slow"))
    with pytest.raises(UserError, match="--data is missing"):
        finetuning.study(asked(tmp_path / "x", smoke=False))
