"""`coreg-ray show`: where a run stands while it runs and afterwards, what it takes on disk, runs side by side."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import s3_server

from coreg_ray.commands import show
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.report.overview import as_figure, as_time, differences, overview
from coreg_ray.run.contents import as_size, places
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.lock import locked
from coreg_ray.run.records import CandidateFigures, CandidateManifest

EPOCHS, WARMUP = 10, 4


def begun(folder: RunFolder, **method: Any) -> RunFolder:
    """A run folder with nothing but its settings."""
    settings = {"epochs": EPOCHS, "warmup_epochs": WARMUP} | method
    folder.write_config(Config.model_validate({"output": folder.path, "method": settings}))
    return folder


def annotated(folder: RunFolder) -> RunFolder:
    manifest = CandidateManifest(["cat", "dog"], None, CandidateFigures(rows=30), [0.5, 0.5])
    folder.candidates.write_json("manifest.json", manifest.as_json())
    return folder


def trained(folder: RunFolder, epochs: int) -> RunFolder:
    """So many epochs, of a second each in warm-up and three thereafter."""
    seconds = [1.0 if epoch < WARMUP else 3.0 for epoch in range(epochs)]
    folder.write_history(
        [
            {"epoch": epoch, "test/accuracy": 0.9, "time/epoch_s": s, "time/train_s": s}
            for epoch, s in enumerate(seconds)
        ]
    )
    return folder


def finished(folder: RunFolder) -> RunFolder:
    trained(annotated(folder), EPOCHS)
    folder.write("model/model.json", "{}")
    folder.write("report.html", "x" * 2000)
    folder.update_metrics({"test/accuracy": 0.9321, "time/train_s": 4000.0, "annotation/images": 12345})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return begun(RunFolder.at(tmp_path / "run"))


def parts(folder: RunFolder, images: int) -> RunFolder:
    """Annotations of so many images, ten in a file."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"image_id": [str(number) for number in range(10)]}), stream)
    for number in range(images // 10):
        folder.own("annotations", "pool").write(f"clip/{number:04d}.parquet", stream.getvalue())
        folder.own("annotations", "pool").write(f"other/{number:04d}.parquet", stream.getvalue())
    return folder


@pytest.mark.parametrize(
    ("made", "while_it_runs", "afterwards"),
    [
        (lambda run: run, "annotating, no images answered", "stopped while annotating, no images answered"),
        (lambda run: parts(run, 30), "annotating, 30 images answered", "stopped while annotating, 30 images answered"),
        (lambda run: parts(run, 400), "annotating, about 400", "stopped while annotating, about 400"),
        (annotated, "annotated; before the first of 10 epochs", "annotated, not trained"),
        (lambda run: trained(annotated(run), 3), "training, epoch 4 of 10", "stopped after epoch 3 of 10"),
        (lambda run: trained(annotated(run), 10), "trained; model and report are being written", "trained; model and"),
        (finished, "finished: 10 of 10 epochs trained", "finished: 10 of 10 epochs trained"),
    ],
)
def test_the_state_of_a_run(
    run: RunFolder, made: Callable[[RunFolder], RunFolder], while_it_runs: str, afterwards: str
) -> None:
    made(run)
    told = overview(run.path)
    assert told.state.startswith(afterwards)
    assert told.working is None
    with locked(run, run.path):
        told = overview(run.path)
        assert told.state.startswith(while_it_runs)
        assert told.working is not None
        assert told.working.startswith("process ")


@pytest.mark.parametrize(
    ("epochs", "left"),
    [(0, None), (2, "more than 8 s: epochs after the warm-up take longer"), (4, "more than 6 s: "), (6, "about 12 s"),
     (10, None)],
)  # fmt: skip
def test_the_time_that_is_left(run: RunFolder, epochs: int, left: str | None) -> None:
    told = overview(trained(annotated(run), epochs).path).left
    assert told == left if left is None else (told or "").startswith(left)


def test_a_run_is_told_in_a_table(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    parts(finished(run), 20)
    run.write("notes.txt", "mine")
    run.link(rows=RunFolder.at(f"{run.path}-other") / "rows")
    show.main([run.path])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == run.path
    assert lines[1] == "  state      finished: 10 of 10 epochs trained, model and report written"
    for line in (
        "  test/accuracy      0.9000",
        "  annotation/images  12,345",
        "  time/train_s       67 min",
    ):
        assert line in lines
    kept = next(line for line in lines if line.split()[:1] == ["report.html"])
    assert kept.split("  ")[-1] == "the report"
    assert "2.0 kB" in kept
    goes = next(line for line in lines if line.split()[:1] == ["candidates/"])
    assert goes.endswith("may be deleted (the same command makes them again from annotations/)")
    assert any("notes.txt" in line and "none of coreg-ray's" in line for line in lines)
    assert any(line.split()[:1] == ["rows/"] and line.endswith("lies in " + run.path + "-other/rows") for line in lines)
    with locked(run, run.path):
        show.main([run.path])
    assert "may be deleted" not in (during := capsys.readouterr().out)
    assert "delete nothing while it runs" in during


def test_sizes_are_those_of_all_files_below(run: RunFolder) -> None:
    run.write("checkpoints/epoch-000001/a", b"x" * 1000)
    run.write("checkpoints/epoch-000002/b", b"x" * 500)
    sizes = {place.name: place.size for place in places(run)}
    assert sizes["checkpoints/"] == 1500
    assert sizes["config.yaml"] == run.size("config.yaml")
    assert list(sizes) == sorted(sizes, key=lambda name: (-(sizes[name] or 0), name))


def test_runs_side_by_side_show_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = finished(begun(RunFolder.at(tmp_path / "search/one")))
    other = trained(annotated(begun(RunFolder.at(tmp_path / "search/other"), learning_rate=0.5)), 6)
    show.main([one.path, other.path])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["one", "other"]
    assert ["method.learning_rate", "null", "0.5"] in lines
    assert ["annotation/images", "12,345", "-"] in lines
    assert ["test/accuracy", "0.9000", "0.9000"] in lines
    assert not [line for line in lines if line[:1] in (["output"], ["method.epochs"])]
    assert differences([overview(one.path), overview(one.path)]) == {}


def test_a_run_on_an_object_store(capsys: pytest.CaptureFixture[str]) -> None:
    with s3_server("runs") as uri:
        given = uri("digits")
        finished(begun(RunFolder.at(given)))
        show.main([given])
        told = capsys.readouterr().out
    assert "finished: 10 of 10 epochs trained" in told
    assert "report.html" in told
    assert "test:test@" not in told


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist, or is empty; give the folder"):
        overview(str(tmp_path / "nowhere"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"photos holds a.jpg, but no config.yaml; give the folder"):
        overview(str(tmp_path / "photos"))


@pytest.mark.parametrize(
    ("shown", "text"),
    [(as_size(0), "0 B"), (as_size(999), "999 B"), (as_size(1234), "1.2 kB"), (as_size(999_700), "1.0 MB"),
     (as_size(123_456_789), "123 MB"), (as_size(5 * 10**15), "5000 TB"), (as_time(9.6), "10 s"),
     (as_time(150), "2 min"), (as_time(7500), "2 h 5 min"), (as_figure(0.12345), "0.1235"),
     (as_figure(12345), "12,345"), (as_figure(12345.67), "12,345.7"), (as_figure("warmup"), "warmup")],
)  # fmt: skip
def test_numbers_as_people_read_them(shown: str, text: str) -> None:
    assert shown == text


@pytest.mark.parametrize(
    ("paths", "names"),
    [(["a/b/one", "a/b/two"], ["one", "two"]), (["a/one/x", "a/two/x"], ["one/x", "two/x"]),
     (["x", "y/x"], ["x", "y/x"]), (["a/one", "a/one/b"], ["one", "one/b"])],
)  # fmt: skip
def test_names_of_runs_are_as_short_as_they_may_be(paths: list[str], names: list[str]) -> None:
    assert show.short_names(paths) == names


def test_it_loads_neither_torch_nor_ray(run: RunFolder) -> None:
    finished(run)
    program = (
        "import sys; from coreg_ray.commands import show; show.main(sys.argv[1:]); "
        "sys.stderr.write(str({'torch', 'ray'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, run.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert done.stderr == "set()"
