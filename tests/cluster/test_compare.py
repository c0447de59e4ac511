"""A comparison as a user gives it: on one run's rows, stopped or with more rows given again, refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import toy

from coreg_ray.commands import compare
from coreg_ray.errors import UserError
from coreg_ray.run.comparison import PAGE, RUNS, TABLE
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.records import RowsManifest

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was annotated and has its rows."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    config = toy.prepare_run(folder, toy.toy(count=80), method=toy.method(epochs=3, warmup_epochs=1))
    run = RunFolder.at(str(folder))
    run.write_config(config)
    for split in ("pool", "test"):
        run.write_rows_manifest(split, RowsManifest(toy.SIDE, ""))
    run.update_metrics({"test/zero_shot_accuracy": 0.25})
    return folder


def compared(output: Path, *words: str) -> list[dict[str, str]]:
    """The lines of the table after a comparison with these words."""
    compare.main([str(output), *words])
    return list(csv.DictReader((output / TABLE).open()))


def test_rows_are_trained_once_and_further_ones_are_added(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = compared(output, "--kinds", "coreg,partial")
    assert [(line["name"], line["status"]) for line in lines] == [("coreg", "finished"), ("partial", "finished")]
    assert all(float(line["passes_per_row"]) > 8 and float(line["memory_mb"]) > 100 for line in lines)
    assert "use --seeds 0,1,2" in capsys.readouterr().out
    assert "methods compared" in (output / PAGE).read_text(encoding="utf-8")
    first = RunFolder.at(str(output / RUNS / "coreg-0"))
    before = first.read_history()
    assert sorted(path.name for path in (output / RUNS).iterdir()) == ["coreg-0", "partial-0"]  # nothing of Tune's
    rows = tmp_path / "rows.yaml"
    rows.write_text("coreg: {}\nno prototypes: {method.prototype_weight: 0.0}\n")
    again = compared(output, "--variants", str(rows), "--seeds", "0")
    assert first.read_history() == before  # nothing was trained again, not even its times are others
    assert [line["name"] for line in again] == ["coreg", "no prototypes"]
    assert again[0]["test/accuracy"] == lines[0]["test/accuracy"]
    with pytest.raises(UserError, match=r"methods/coreg-0 holds a run with other settings \(method.epochs"):
        compared(output, "--kinds", "coreg", "--method.epochs", "4")


def test_a_row_that_cannot_be_trained_says_why_and_is_tried_once(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = compared(output, "--kinds", "distil")  # these sets were made without soft labels
    assert line["status"] == "failed"
    assert "lack soft_classes, soft_shares" in line["error"]
    assert "1 failed" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_before_anything_starts(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="magic is no kind of method; use some of coreg"):
        compared(output, "--kinds", "coreg,magic")
    with pytest.raises(UserError, match="which run"):
        compare.main(["--kinds", "coreg"])
    with pytest.raises(UserError, match=r"holds no config.yaml, so it is no run"):
        compare.main([str(tmp_path / "nothing")])
    rows = tmp_path / "rows.yaml"
    rows.write_text("near: {method.neighbours: 5}\n")
    with pytest.raises(UserError, match=r"holds no embeddings, which method.neighbours"):
        compared(output, "--variants", str(rows))
    assert not (output / RUNS / "near-0").exists()
    rows.write_text("bad: {method.kind: coreg, method.elr.weight: 3, method.labels: soft}\n")
    with pytest.raises(UserError, match="row bad: "):
        compared(output, "--variants", str(rows))
    with pytest.raises(UserError, match=r"student.resolution decides annotations, candidate sets or images"):
        compared(output, "--student.resolution", "8")
    with pytest.raises(UserError, match="are no seeds"):
        compared(output, "--seeds", "a")
