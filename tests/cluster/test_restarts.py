"""Annotation goes on where it stopped, notices what changed, and lets several annotators vote."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from chat_server import chat_server
from leftovers import all_actors, left_behind
from PIL import Image
from safetensors.torch import load_file, save_file
from toy_clip import write_toy_clip

from coreg_ray.cluster.annotate import annotate, annotate_splits
from coreg_ray.cluster.candidates import build_candidates, zero_shot
from coreg_ray.cluster.estimate import estimate
from coreg_ray.cluster.pipeline import annotate_pool
from coreg_ray.cluster.rows import write_rows
from coreg_ray.cluster.stages import prepare
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.config.texts import resolved_yaml
from coreg_ray.errors import UserError
from coreg_ray.report.page import write_report
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

JOBS = Path(__file__).parents[2] / "jobs"
pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(0, 100, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise + 155 * (level % 2)).save(path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_toy_clip(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 pictures, dark and bright in turn, and one broken file."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(40):
        picture(folder / f"ü{number % 3}" / f"{number:02d}.png", number)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def unlogged() -> Iterator[None]:
    """Nothing is logged: pytest would keep Ray Data's records, whose tracebacks hold the pipeline and its actors."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def config(toy: dict[str, Any], images: Path, **changes: Any) -> Config:
    source = {"kind": "folder", "path": str(images), "classes": ["cat", "dog"], "prompts": ["a {}", "the {}"]}
    return Config(source={**source, **changes.pop("source", {})}, annotator=toy, student={"resolution": 8}, **changes)


def table(folder: Folder, *columns: str) -> list[dict[str, Any]]:
    parts = [pq.read_table(path, columns=list(columns) or None) for path in folder.files(".parquet")]
    rows: list[dict[str, Any]] = pa.concat_tables(parts).sort_by("image_id").to_pylist()
    return rows


@pytest.fixture(scope="module")
def annotated(toy: dict[str, Any], images: Path, tmp_path_factory: Any, _ray_session: None) -> RunFolder:
    """An estimate first, whose sample is kept, then the rest."""
    output = RunFolder.at(tmp_path_factory.mktemp("run"))
    expected = estimate(config(toy, images), output)
    assert expected.images == 41
    assert expected.sample == 40
    assert expected.gigabytes > 0
    assert "41 images" in expected.in_words(config(toy, images).annotator.max_actors)
    figures = annotate(config(toy, images), "pool", output)
    assert (figures.encoded_images, figures.rejected_images) == (0, 1)
    return output


def test_rejects_say_why_and_rows_leave_them_out(annotated: RunFolder, toy: dict[str, Any], images: Path) -> None:
    assert [(row["image_id"], row["reason"]) for row in table(annotated / "rejects")] == [
        ("broken.jpg", "not an image")
    ]
    assert len(table(annotated / "annotations")) == 40
    assert write_rows(config(toy, images), "pool", annotated) == 40


def write_pool(path: Path, levels: dict[str, int]) -> None:
    """Small pictures by id, in row groups of which two do not fit into a part; a level below zero is no picture."""
    pictures = [_png(level) if level >= 0 else b"no image" for level in levels.values()]
    pq.write_table(pa.table({"image_id": list(levels), "image": pictures}), path, row_group_size=300)


def _png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(level).integers(0, 255, (9, 8, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_what_changed_and_what_a_kill_left_out_is_made_up_to_the_same_table(
    toy: dict[str, Any], tmp_path: Path, annotated: RunFolder
) -> None:
    pool, output = tmp_path / "pool", RunFolder.at(tmp_path / "run")
    pool.mkdir()
    stays, moves = {f"s{n:03d}": n for n in range(900)}, {f"m{n}": 1000 + n for n in range(4)}
    write_pool(pool / "a.parquet", stays)
    write_pool(pool / "b.parquet", {**moves, "broken": -1})
    settings = config(toy, pool, source={"kind": "parquet", "path": str(pool)})
    annotate(settings, "pool", output)
    before = {row["image_id"]: row for row in table(output / "annotations")}
    assert sorted(before) == sorted(stays | moves)

    # A picture is added, one changed, one mended, one removed.
    write_pool(pool / "b.parquet", {"m0": 1000, "m1": 1051, "m3": 1003, "broken": 1052, "new": 1050})
    # A kill has cost two parts and left a third in the making.
    files = [Path(path) for path in (output / "annotations").files(".parquet")]
    assert len(files) >= 3
    files[0].with_suffix(".parquet.partial").write_bytes(files[0].read_bytes()[:99])
    lost: set[str] = set()
    for file in files[:2]:
        lost.update(pq.read_table(file)["image_id"].to_pylist())
        file.unlink()
    other = AnnotatorConfig(**toy, min_actors=2, max_actors=2, batch_size=48)  # how it runs does not change the answers
    settings = settings.model_copy(update={"annotator": other})
    figures = annotate(settings, "pool", output)
    assert (figures.images, figures.rejected_images) == (905, 0)
    assert figures.encoded_images == len(lost - {"m2"} | {"m1", "broken", "new"})
    after = {row["image_id"]: row for row in table(output / "annotations")}
    assert after.keys() == (before.keys() | {"broken", "new"}) - {"m2"}
    assert all(after[name] == before[name] for name in before.keys() - {"m1", "m2"})
    assert after["m1"]["content"] != before["m1"]["content"]


def annotators_so_far() -> int:
    """How many annotators have been started on this cluster."""
    return sum("_Annotator" in actor.class_name for actor in all_actors())


def test_new_words_encode_no_image(annotated: RunFolder, toy: dict[str, Any], images: Path) -> None:
    started = annotators_so_far()
    assert started
    old = table(annotated / "annotations")
    words = {"prompts": ["my {}", "a {}", "no {}"], "classes": ["bird|crow", "cat", "fish"]}
    figures = annotate(config(toy, images, source=words), "pool", annotated)
    assert figures.encoded_images == 0
    new = table(annotated / "annotations")
    assert [row["embedding"] for row in new] == [row["embedding"] for row in old]
    assert {len(row["votes"]) for row in new} == {3}
    assert build_candidates(config(toy, images, source=words), annotated).quality.rows == 40
    annotate(config(toy, images), "pool", annotated)
    assert table(annotated / "annotations") == old
    assert annotators_so_far() == started  # a model is not even loaded for images that have their answers


def test_a_second_annotator_and_manual_labels(
    annotated: RunFolder, toy: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openai")
    (tmp_path / "labels.csv").write_text("image_id,label\nü0/00.png,dog\n")
    with chat_server() as server:
        chat = {"kind": "chat", "model": "m", "endpoint": server.address, "allow_upload": True, "questions": ["{}?"]}
        source = {"manual_labels": str(tmp_path / "labels.csv")}
        both = config(toy, images, source=source, further_annotators=[chat])
        figures = annotate(both, "pool", annotated)
        assert figures.spent is not None
        assert (figures.encoded_images, figures.spent.requests, server.requests) == (40, 40, 40)
        refused = config(toy, images, further_annotators=[{**chat, "allow_upload": False}])
        with pytest.raises(UserError, match=r"agree with --annotator.allow_upload true"):
            annotate(refused, "pool", annotated)
    assert len(table(annotated / "annotations", "image_id")) == 80
    assert build_candidates(both, annotated).quality.rows == 40
    clip = {
        row["image_id"]: row["votes"]
        for row in table(annotated / "annotations", "image_id", "annotator", "votes")
        if "clip" in row["annotator"]
    }
    for row in table(annotated / "candidates"):
        chatted = int(row["image_id"][3:5]) % 2  # the server tells dark from bright
        manual = row["image_id"] == "ü0/00.png"
        assert row["candidates"] == ([1] if manual else sorted({*clip[row["image_id"]], chatted}))
        assert row["trusted"] is manual


def test_a_killed_job_goes_on_and_asks_nothing_twice_that_was_written(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    pixels = [np.full((8, 8, 3), 255 * (number % 2), np.uint8).tolist() for number in range(256)]
    ids = [f"{number:03d}" for number in range(256)]
    pq.write_table(pa.table({"image_id": ids, "image": pixels}), tmp_path / "pool.parquet", row_group_size=64)
    output = RunFolder.at(tmp_path / "run")
    with chat_server() as server:
        chat = {"kind": "chat", "model": "m", "endpoint": server.address, "allow_upload": True, "questions": ["{}?"]}
        source = {"kind": "parquet", "path": str(tmp_path / "pool.parquet"), "classes": ["cat", "dog"]}
        settings = Config(source=source, annotator={**chat, "concurrency": 1}, output=output.path)
        (tmp_path / "run.yaml").write_text(resolved_yaml(settings))
        command = [sys.executable, str(JOBS / "annotate.py"), "--config", str(tmp_path / "run.yaml")]
        there = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        with subprocess.Popen(
            command, env=os.environ | there, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as job:
            while len((output / "annotations").files(".parquet")) < 2:
                assert job.poll() is None
                time.sleep(0.05)
            job.kill()
        asked = -1
        while asked < server.requests:  # Ray's processes notice that their driver is gone
            asked = server.requests
            time.sleep(2)
        written = len(table(output / "annotations", "image_id"))
        assert 64 <= written < 256
        fast = settings.annotator.model_copy(update={"concurrency": 4})
        metrics = annotate_pool(settings.model_copy(update={"annotator": fast}), output)
    assert yaml.safe_load(output.read("config.yaml")) == settings.settings() | {"annotator": fast.model_dump()}
    assert metrics["annotation/encoded_images"] == metrics["annotation/requests"] == 256 - written
    assert metrics["annotation/rows"] == metrics["annotation/requests_in_all"] == 256
    assert "annotation" in output.read("report.html").decode()
    assert [(row["image_id"], row["votes"]) for row in table(output / "annotations")] == [
        (name, [number % 2]) for number, name in enumerate(ids)
    ]


def test_no_training_on_images_that_nobody_answered_for(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with chat_server() as server:
        chat = {"kind": "chat", "model": "m", "endpoint": server.address, "allow_upload": True, "questions": ["{}?"]}
        poor, rich = (config({**chat, "price_input": 12_345, "max_requests": most}, images) for most in (30, 100))
        with pytest.raises(UserError, match=r"10 of 41 images have no answer yet.*same command again"):
            prepare(poor, RunFolder.at(tmp_path))
        metrics = prepare(rich, RunFolder.at(tmp_path))
    assert (metrics["annotation/requests"], metrics["annotation/requests_in_all"]) == (10, 40)
    assert metrics["annotation/cost_in_all"] == 4 * metrics["annotation/cost"]
    assert metrics["annotation/rows"] == write_rows(rich, "pool", RunFolder.at(tmp_path)) == 40
    RunFolder.at(tmp_path).update_metrics(metrics)
    write_report(RunFolder.at(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "Requests<b>40</b>" in page
    assert "Cost<b>4.938</b>" in page  # 40 requests of 10 tokens


def test_where_nobody_answered_at_all_that_is_said(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    output = RunFolder.at(tmp_path / "run")
    with chat_server() as server:
        chat = {"kind": "chat", "endpoint": server.address, "allow_upload": True, "questions": ["{}?", "a {}?"]}
        first, other = ({**chat, "model": model, "max_requests": 1} for model in "mn")  # an image takes two
        silent = config(first, images, further_annotators=[other])
        with pytest.raises(UserError, match=r"40 of 41 images have no answer yet.*same command again"):
            prepare(silent, output)
        assert server.requests == 0
    both = [folder.name for folder in output.read_used("pool")]
    for names in (both, both[:1]):  # as if only the first had been asked
        output.write_used("pool", names)
        with pytest.raises(UserError, match="holds no answer about any image; annotate there first"):
            build_candidates(silent, RunFolder.at(tmp_path / f"of {len(names)}"), output)
    (tmp_path / "run/annotations/pool").rename(tmp_path / "run/annotations/test")
    assert zero_shot(silent, output) == {}


def test_a_model_that_answers_nan_is_refused_every_time_until_it_is_another(
    toy: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    weights = load_file(toy["pretrained"])
    broken = {name: w * float("nan") if name.startswith("visual.") else w for name, w in weights.items()}
    save_file(broken, tmp_path / "broken.safetensors")
    bad = config({**toy, "pretrained": str(tmp_path / "broken.safetensors")}, images)
    output = RunFolder.at(tmp_path / "run")
    for model in (bad, bad, config(toy, images)):
        with pytest.raises(UserError, match=r" of 41 pool images are not finite .*--annotator.retry_rejects true"):
            annotate_splits(model, ["pool"], output, rows=True)
    assert not [path for path in output.files(".parquet") if "/annotations/" in path]
    figures = annotate(config({**toy, "retry_rejects": True}, images), "pool", output)
    assert (figures.encoded_images, figures.rejected_images) == (40, 1)


def test_an_estimate_of_a_pool_that_nobody_can_decode_says_so(toy: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 1 images of the sample can be decoded"):
        estimate(config(toy, tmp_path), RunFolder.at(tmp_path / "run"))


def test_mistakes_are_refused_before_work_starts(toy: dict[str, Any], images: Path, tmp_path: Path) -> None:
    output = RunFolder.at(tmp_path / "run")
    for name in ("a", "b"):
        pq.write_table(pa.table({"image": [b""], "image_id": ["same"]}), tmp_path / f"{name}.parquet")
    twice = config(toy, images, source={"kind": "parquet", "path": str(tmp_path)})
    with pytest.raises(
        UserError, match=r"^1 image_ids occur more than once, for example 'same'; make every id unique$"
    ):
        annotate(twice, "pool", output)
    (tmp_path / "labels.csv").write_text("image_id,label\nnot there,dog\n")
    strange = config(toy, images, source={"manual_labels": str(tmp_path / "labels.csv")})
    with pytest.raises(UserError, match="labels 1 images that the pool does not hold"):
        annotate(strange, "pool", output)
    pq.write_table(pa.table({"image": [b""] * 3}), tmp_path / "unlabelled.parquet")
    blank = config(toy, images, test={"kind": "parquet", "path": str(tmp_path / "unlabelled.parquet")})
    with pytest.raises(UserError, match=r"none of the 3 test images has a label; .*--source.label_column"):
        annotate_splits(blank, ["pool", "test"], output)
    with pytest.raises(UserError, match=r"^annotator\.model=nothing is not known"):
        annotate(config({**toy, "model": "nothing"}, images), "pool", output)
    assert not output.exists("annotations")


@pytest.mark.usefixtures("unlogged")
def test_a_servers_refusal_comes_back_in_one_line_and_nobody_keeps_a_cpu(
    toy: dict[str, Any], images: Path, tmp_path: Path, free_before: float
) -> None:
    pytest.importorskip("openai")
    with chat_server(*["401"] * 100) as server:
        chat = {"kind": "chat", "model": "m", "endpoint": server.address, "allow_upload": True}
        # Held on to, as a notebook holds its last error.
        with pytest.raises(UserError, match=r"^127\.0\.0\.1:\d+ answers with status 401: no\. [^\n]*$") as held:
            annotate(config(chat, images), "pool", RunFolder.at(tmp_path))
        assert not left_behind(free_before)
        assert held.value.__context__ is None
