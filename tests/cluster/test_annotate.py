"""The way of the images through Ray, on the embedded digits and a random model."""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from toy_clip import write_toy_clip

from coreg_ray.annotation.clip import TextTable, votes
from coreg_ray.cluster import candidates, pipeline, tasks
from coreg_ray.cluster.annotate import annotate, annotate_splits
from coreg_ray.cluster.candidates import build_candidates, zero_shot
from coreg_ray.cluster.estimate import estimate
from coreg_ray.cluster.rows import write_rows
from coreg_ray.config import Config
from coreg_ray.embedded.digits import CLASS_NAMES, digits
from coreg_ray.errors import UserError
from coreg_ray.ids import row_number
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import CandidateFigures
from coreg_ray.run.storage import Folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_toy_clip(tmp_path_factory.mktemp("toy"))


def config(toy: dict[str, Any], **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "source": {"kind": "digits", "prompts": ["a {}", "the digit {}"]},
        "test": {"kind": "digits"},
        "annotator": toy,
        "student": {"resolution": 8},
    }
    return Config(**{**settings, **changes})


def table(folder: Folder) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in folder.files(".parquet")]).sort_by("image_id")


@pytest.fixture(scope="module")
def annotated(toy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, _ray_session: None) -> RunFolder:
    output = RunFolder.at(tmp_path_factory.mktemp("run"))
    figures = annotate(config(toy), "pool", output)
    assert (figures.images, figures.encoded_images, figures.rejected_images) == (1437, 1437, 0)
    assert figures.spent is None
    return output


def test_every_digit_is_annotated_once_and_votes_follow_from_stored_embeddings(annotated: RunFolder) -> None:
    answers = table(annotated / "annotations")
    assert answers["image_id"].to_pylist() == sorted(digits("train")[0])
    (folder,) = annotated.read_used("pool")
    card = folder.read_json("manifest.json")
    assert card["prompts"] == ["a {}", "the digit {}"]
    text = TextTable.from_bytes(folder.read("text.safetensors"), card["details"]["scale"], 0.0)
    embedding = torch.tensor(np.stack(answers["embedding"].to_numpy()))
    assert embedding.dtype == torch.float16
    assert votes(embedding, text).tolist() == answers["votes"].to_pylist()


def test_candidates_carry_counts_scores_and_quality(annotated: RunFolder, toy: dict[str, Any]) -> None:
    made = build_candidates(config(toy), annotated)
    rows = table(annotated / "candidates")
    source = {row["image_id"]: row["votes"] for row in table(annotated / "annotations").to_pylist()}
    for row in rows.to_pylist():
        given = source[row["image_id"]]
        assert row["candidates"] == sorted(set(given))
        assert row["votes"] == [given.count(label) for label in row["candidates"]]
        assert row["row"] == row_number(row["image_id"])
    assert not any(rows["trusted"].to_pylist())
    assert annotated.read_candidate_manifest() == made
    assert annotated.candidates.read_json("manifest.json")["num_classes"] == 10
    assert made.class_names == list(CLASS_NAMES)
    assert sum(made.prior) == pytest.approx(1)
    truth = dict(zip(*(column for column in (digits("train")[0], digits("train")[2].tolist())), strict=True))
    covered = np.mean([truth[row["image_id"]] in row["candidates"] for row in rows.to_pylist()])
    assert made.quality.coverage == pytest.approx(covered)


def test_candidate_sets_are_made_anew_only_when_something_changed_that_they_are_made_of(
    annotated: RunFolder, toy: dict[str, Any], tmp_path: Path
) -> None:
    output = RunFolder.at(tmp_path / "run")

    names: list[str | None] = []

    def made(**changed: Any) -> tuple[CandidateFigures, pa.Table, list[int]]:
        manifest = build_candidates(config(toy, **changed), output, annotated)
        names.append(manifest.fingerprint)
        times = [Path(path).stat().st_mtime_ns for path in (output / "candidates").files(".parquet")]
        return manifest.quality, table(output / "candidates"), times

    first, again = made(), made()
    assert again == first
    cumulative = made(candidates={"mode": "cumulative"})
    assert cumulative[0].mean_candidates != first[0].mean_candidates
    source = {"kind": "digits", "prompts": ["a {}", "the digit {}"], "manual_labels": str(tmp_path / "labels.csv")}
    for number in (0, 1):
        name = digits("train")[0][number]
        (tmp_path / "labels.csv").write_text(f"image_id,label\n{name},{CLASS_NAMES[7]}\n")
        sets = made(source=source)[1]
        assert sets.filter(sets["trusted"])["image_id"].to_pylist() == [name]
    back = made()
    assert back[1] == first[1]
    assert not set(back[2]) & set(first[2])
    Path((output / "candidates").files(".parquet")[0]).unlink()
    assert made()[1] == first[1]
    assert names[0] == names[1] == names[5] == names[6]
    assert len({*names}) == 4  # another mode, and two files of manual labels by the same name


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("killed", [False, True])
def test_sets_of_an_earlier_version_are_known_again_if_they_come_out_the_same(
    annotated: RunFolder, toy: dict[str, Any], tmp_path: Path, killed: bool
) -> None:
    output = RunFolder.at(tmp_path / "run")
    whole = build_candidates(config(toy), output, annotated)
    names, file = output.candidates.entries(), output.candidates.files(".parquet")[0]
    contents = {path: Path(path).read_bytes() for path in output.candidates.files(".parquet")}

    def as_before() -> None:
        for path, content in contents.items():
            Path(path).write_bytes(content)
        left = {"fingerprint": "of an earlier version", "made_from": "its mark", "sets": None, "known_as": None}
        output.candidates.write_json("manifest.json", whole.as_json() | left)

    as_before()
    if killed:  # while they were made again
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(candidates, "_make", interrupted)
            with pytest.raises(KeyboardInterrupt):
                build_candidates(config(toy), output, annotated)
        assert output.candidates.entries() == ["before.json"]
    again = build_candidates(config(toy), output, annotated)
    assert again.fingerprints == [whole.fingerprint, "of an earlier version"]
    assert output.candidates.entries() == names
    as_before()
    sets = pq.read_table(file)
    trusted = pa.array([True] + [False] * (len(sets) - 1))
    pq.write_table(sets.set_column(sets.column_names.index("trusted"), "trusted", trusted), file)
    assert build_candidates(config(toy), output, annotated).fingerprints == [whole.fingerprint]


def test_borrowed_embeddings_that_are_not_finite_are_rejects_of_who_borrows_them(
    annotated: RunFolder, toy: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(annotated.path, tmp_path / "lender")
    lender, output = RunFolder.at(tmp_path / "lender"), RunFolder.at(tmp_path / "run")
    path = (lender / "annotations").files(".parquet")[0]

    def damaged(count: int) -> list[str]:
        rows = pq.read_table(path)
        embedding = np.stack(rows["embedding"].to_numpy())
        embedding[:count] = np.nan
        column = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1])
        pq.write_table(rows.set_column(rows.column_names.index("embedding"), "embedding", column), path)
        return rows["image_id"].to_pylist()[:count]

    bad = damaged(10)
    assert build_candidates(config(toy), output, lender).quality.rows == 1437 - 10
    assert sorted(table(output / "rejects")["image_id"].to_pylist()) == sorted(bad)
    assert not set(bad) & set(table(output / "candidates")["image_id"].to_pylist())
    damaged(20)
    with pytest.raises(UserError, match=r"to 20 of 1437 pool images are not finite"):
        build_candidates(config(toy, seed=1), output, lender)


def test_answers_about_other_images_are_refused_before_anything_starts(
    annotated: RunFolder, toy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "connect", lambda: pytest.fail("Ray is not needed for that"))
    before = {path: Path(path).read_bytes() for path in annotated.files() if "/annotations/" in path}
    source = {"kind": "folder", "path": str(tmp_path), "classes": list(CLASS_NAMES)}
    other = config(toy, source=source, output=annotated.path, test={"kind": None})
    for work in (pipeline.annotate_pool, estimate, lambda config, run: annotate(config, "pool", run)):
        with pytest.raises(UserError, match=r"annotations of other pool images \(source.kind 'digits' -> 'folder'"):
            work(other, annotated)
    assert {path: Path(path).read_bytes() for path in before} == before


def test_rows_hold_pixels_and_no_labels(annotated: RunFolder, toy: dict[str, Any]) -> None:
    larger = config(toy, student={"resolution": 9})
    assert write_rows(larger, "test", annotated) == 360
    assert write_rows(config(toy), "test", annotated) == 360
    rows = pa.concat_tables([pq.read_table(path) for path in annotated.rows("test").files(".parquet")])
    assert rows.column_names == ["row", "key", "image"]
    assert rows["image"].type == pa.binary(8 * 8 * 3)
    assert sorted(rows["row"].to_pylist()) == sorted(map(row_number, digits("test")[0]))


@pytest.mark.cluster
def test_one_pass_over_both_splits_makes_annotations_and_rows_and_finds_what_is_missing(
    annotated: RunFolder, toy: dict[str, Any], tmp_path: Path
) -> None:
    output = RunFolder.at(tmp_path)
    first = annotate_splits(config(toy), ["pool", "test"], output, rows=True)
    assert {split: figures.encoded_images for split, figures in first.items()} == {"pool": 1437, "test": 360}
    assert table(output / "annotations" / "pool") == table(annotated / "annotations")
    assert sorted(table(output / "annotations" / "test")["image_id"].to_pylist()) == sorted(digits("test")[0])
    splits: tuple[Split, Split] = ("pool", "test")
    rows = {split: rows_of(output, split) for split in splits}
    assert sorted(rows["pool"]) == sorted(map(row_number, digits("train")[0]))
    lost = [Path((output / "rows/pool").files(".parquet")[0]), Path((output / "annotations/test").files(".parquet")[0])]
    count = pq.read_metadata(lost[1]).num_rows
    kept = {path: Path(path).stat().st_mtime_ns for path in (output / "rows/pool").files(".parquet")[1:]}
    for path in lost:
        path.unlink()
    again = annotate_splits(config(toy), ["pool", "test"], output, rows=True)
    assert (again["pool"].encoded_images, again["test"].encoded_images) == (0, count)
    assert {split: rows_of(output, split) for split in splits} == rows
    assert {path: Path(path).stat().st_mtime_ns for path in kept} == kept


def rows_of(output: RunFolder, split: Split) -> dict[int, bytes]:
    """Pixels by row number; a row that occurs twice fails."""
    rows = pa.concat_tables([pq.read_table(path) for path in output.rows(split).files(".parquet")])
    assert len(set(rows["row"].to_pylist())) == len(rows)
    return dict(zip(rows["row"].to_pylist(), rows["image"].to_pylist(), strict=True))


def test_scoring_without_annotations_says_what_to_do_first(
    toy: dict[str, Any], tmp_path: Path, ray_cluster: None
) -> None:
    with pytest.raises(UserError, match="annotate the test images first"):
        zero_shot(config(toy), RunFolder.at(tmp_path))


def test_long_work_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert list(tasks.told(iter("abc"), 3, "looking, part")) == ["a", "b", "c"]
        assert not caplog.messages  # it was quick
        monkeypatch.setattr(tasks, "_LINE_EVERY_S", 0)
        assert list(tasks.told(iter("abc"), 3, "looking, part")) == ["a", "b", "c"]
    assert caplog.messages == ["looking, part 1 of 3", "looking, part 2 of 3", "looking, part 3 of 3"]


@pytest.mark.usefixtures("ray_cluster")
def test_who_holds_on_to_a_mistake_holds_no_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[threading.Thread]] = []

    class Executor(threading.Thread):
        """Like Ray Data's, which knows the actors of its pipeline, and ends a little later than the pipeline."""

        def run(self) -> None:
            time.sleep(0.2)

    def failing(*_: Any) -> Any:
        executor = Executor(name="StreamingExecutor-1")
        executor.start()
        alive.append(weakref.ref(executor))
        raise UserError("the server refuses")

    monkeypatch.setattr(tasks, "_sums", failing)
    with pytest.raises(UserError, match="the server refuses") as held:
        tasks.watch(ray.data.from_items([1]), 1, "annotating")
    assert held.value.__context__ is None
    assert alive[0]() is None
