"""Heads over a frozen backbone through Ray, at the size of the preset's twin that needs no download."""

from __future__ import annotations

from pathlib import Path

import pytest

from coreg_ray.cluster.pipeline import run_pipeline
from coreg_ray.commands.base import Command, load
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder


def command(output: Path, *more: str) -> Command:
    return load(["--preset", "photos-smoke", "--output", str(output), *more], Command)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_the_whole_way_its_restart_and_what_is_refused(tmp_path: Path, ray_cluster: None) -> None:
    output = tmp_path / "run"
    figures = run_pipeline(command(output, "--export.onnx", "false"))
    run = RunFolder.at(output)
    assert [row["phase"] for row in run.read_history()] == ["warmup"] * 3 + ["coreg"] * 3
    assert figures["test/accuracy"] > 0.3  # random features, six epochs
    assert run.model.read_json("model.json")["format"] == 2
    parts = {name: run.features.read(name) for name in _names(run)}

    (lost,) = [name for name in parts if name.startswith("test/")][:1]
    run.features.delete(lost)
    history = run.read_history()
    again = run_pipeline(command(output, "--export.onnx", "false"))
    assert again["annotation/encoded_images"] == 0
    assert {name: run.features.read(name) for name in _names(run)} == parts
    assert run.read_history() == history

    manifest = run.features.read_json("manifest.json")
    run.features.write_json("manifest.json", manifest | {"views": 6})
    with pytest.raises(UserError, match=r"holds features of another backbone or of other views .views 6, not 4."):
        run_pipeline(command(output, "--export.onnx", "false"))

    small = tmp_path / "small"
    with pytest.raises(UserError, match=r"the pool has 1437 images, fewer than two batches of method.batch_size=800"):
        run_pipeline(command(small, "--method.batch_size", "800"))
    assert not (small / "annotations/pool").exists() or not list((small / "annotations").rglob("*.parquet"))


def _names(run: RunFolder) -> list[str]:
    return [path.removeprefix(f"{run.features.path}/") for path in run.features.files(".parquet")]
