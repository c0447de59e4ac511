"""Test images that are the pool's own are counted before training, and refused where there are no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from coreg_ray.annotation.arrow import write_table
from coreg_ray.annotation.parts import Part, annotation_table
from coreg_ray.cluster.overlap import pool_overlap
from coreg_ray.cluster.pipeline import annotate_pool, run_pipeline
from coreg_ray.commands import tune
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.ids import content_hash, row_numbers
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import Overlap


def annotated(run: RunFolder, split: Split, contents: list[str]) -> None:
    """Two annotators' answers about images that are named otherwise in each split, two images a part."""
    ids = [f"{split}/{number}" for number in range(len(contents))]
    hashes = [content_hash(content.encode()) for content in contents]
    for name in ("clip", "chat"):
        for part in range(0, len(ids), 2):
            some = slice(part, part + 2)
            table = annotation_table(ids[some], hashes[some], name, np.zeros((len(ids[some]), 1), np.int32))
            write_table(run.own("annotations", split) / name, Part(0, f"{part:016x}", "x").name, table)
    run.write_used(split, ["clip", "chat"])
    labels = pa.table({"row": row_numbers(ids), "label": np.zeros(len(ids), np.int32)})
    write_table(run.own("labels", split), "labels.parquet", labels)


@pytest.mark.usefixtures("ray_cluster")
def test_copies_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder.at(tmp_path)
    annotated(run, "pool", ["a", "b", "c", "d", "e"])
    annotated(run, "test", ["e", "x", "b", "y"])
    assert pool_overlap(run) == Overlap(4, 2)
    assert "2 of the 4 test images (50%) lie in the pool too" in caplog.text


@pytest.mark.usefixtures("ray_cluster")
def test_where_all_are_copies_nothing_is_trained(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path)
    annotated(run, "pool", ["a", "b", "c"])
    annotated(run, "test", ["c", "a"])
    with pytest.raises(UserError, match="all 2 labelled test images lie in the pool, byte for byte"):
        pool_overlap(run)


def test_one_folder_for_both_is_refused_before_the_output_is_touched(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    where = {"kind": "folder", "path": str(tmp_path / "images")}
    config = Config(source={**where, "classes": ["cat", "dog"]}, test=where, output=str(tmp_path / "run"))
    for command in (lambda: run_pipeline(config), lambda: annotate_pool(config, RunFolder.at(config.output))):
        with pytest.raises(UserError, match="lie in the pool"):
            command()
    options = [f"--{place}.{name}={value}" for place in ("source", "test") for name, value in where.items()]
    with pytest.raises(UserError, match="lie in the pool"):
        tune.main([*options, '--source.classes=["cat", "dog"]', "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
