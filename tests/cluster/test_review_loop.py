"""The review loop through the tables: reviewed images of one run are the manual labels of the next."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from finished_run import finished_run, parquet, run_config
from toy import CLASSES

from coreg_ray.cluster.candidates import build_candidates
from coreg_ray.errors import UserError
from coreg_ray.report.page import write_report
from coreg_ray.run.folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = finished_run(RunFolder.at(tmp_path_factory.mktemp("run")), CLASSES)
    write_report(folder)
    return folder


def fill_in(run: RunFolder, path: Path, count: int, further: str = "") -> list[str]:
    """Write a class into the first rows of review.csv, as a person would; returns their ids."""
    rows = list(csv.DictReader(io.StringIO(run.read("review.csv").decode())))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | ({"label": CLASSES[2]} if place < count else {}) for place, row in enumerate(rows))
        file.write(further)
    return [row["image_id"] for row in rows[:count]]


def test_reviewed_images_are_trusted_by_the_next_run(run: RunFolder, tmp_path: Path) -> None:
    ids = fill_in(run, tmp_path / "review.csv", 7)
    output = RunFolder.at(tmp_path / "second")
    source = {"kind": "folder", "path": "pool", "classes": CLASSES, "manual_labels": str(tmp_path / "review.csv")}
    build_candidates(run_config(output, CLASSES, source=source), output, annotated=run)
    table = parquet(output / "candidates").to_pylist()
    assert sorted(row["image_id"] for row in table if row["trusted"]) == sorted(ids)
    assert all(row["candidates"] == [2] for row in table if row["trusted"])


def test_labels_of_images_that_were_never_annotated_are_refused(run: RunFolder, tmp_path: Path) -> None:
    fill_in(run, tmp_path / "review.csv", 3, further=f"pool/elsewhere.png,{CLASSES[0]}\n")
    output = RunFolder.at(tmp_path / "second")
    source = {"kind": "folder", "path": "pool", "classes": CLASSES, "manual_labels": str(tmp_path / "review.csv")}
    with pytest.raises(UserError, match=r"pool does not hold \('pool/elsewhere.png'\)"):
        build_candidates(run_config(output, CLASSES, source=source), output, annotated=run)
