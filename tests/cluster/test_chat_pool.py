"""A chat model in the pipeline: what it answered is written at once, what a person should know reaches the driver."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chat_server import chat_server
from PIL import Image

from coreg_ray.annotation import chat, ledger
from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.parts import parts
from coreg_ray.annotation.writer import Place
from coreg_ray.cluster import annotator_pool
from coreg_ray.cluster.annotator_pool import ChatActor
from coreg_ray.cluster.tasks import ERROR, NOTE, _sums
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.errors import UserError
from coreg_ray.run.folder import ORIGIN, RunFolder
from coreg_ray.run.storage import Folder

pytest.importorskip("openai")
CARD = Card("chat", "m", "e" * 32, ("{}?",), (("cat",), ("dog",)), {})


def table(folder: Folder, column: str = "image_id") -> list[Any]:
    return sorted(value for part in parts(folder) for value in read_table(folder, part.name)[column].to_pylist())


def block(first: int, count: int) -> dict[str, Any]:
    """Dark and bright pictures in turn."""
    images = np.stack([np.full((32, 32, 3), 255 * (number % 2), np.uint8) for number in range(count)])
    names = np.array([f"{first + number:02d}" for number in range(count)], dtype=object)
    return {"image_id": names, "content": names, "split": np.full(count, "pool", dtype=object), "image": images}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(annotator_pool.metrics, "count", lambda *_: None)


@pytest.mark.usefixtures("quick")
def test_a_block_is_on_disk_before_the_next_and_a_refused_key_ends_with_the_words_of_the_server(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path)
    place = Place(run.own("annotations", "pool") / CARD.folder, 0, run.rejects("pool"))
    with chat_server(words="your account is closed") as server:
        config = AnnotatorConfig(kind="chat", model="m", endpoint=server.address, allow_upload=True, concurrency=1)
        actor = ChatActor(config, CARD, {"pool": place}, [place.folder])
        line = actor(block(0, 4))
        assert table(place.folder) == ["00", "01", "02", "03"]
        assert (line[NOTE], line[ERROR], line["pool/images"]) == ([""], [""], [4])
        server.faults = ["", "", "403"]
        line = actor(block(4, 4))
        assert table(place.folder) == ["00", "01", "02", "03", "04", "05"]
        assert "status 403: your account is closed" in line[ERROR][0]
        assert server.requests == 7
    assert ledger.spent(place.folder).requests == 7


def lines(*rows: dict[str, Any]) -> Any:
    def iter_rows() -> Iterator[dict[str, Any]]:
        yield from rows

    return SimpleNamespace(iter_rows=iter_rows)


def test_words_of_actors_are_said_once_and_figures_are_added_up(caplog: pytest.LogCaptureFixture) -> None:
    written = lines(
        {"images": 1, NOTE: "slow down\nbudget", ERROR: ""}, {"images": 2, NOTE: "slow down", ERROR: ""}, {"images": 3}
    )
    with caplog.at_level(logging.WARNING):
        assert _sums(written, 6, "annotating") == {"images": 6}
    assert [record.getMessage() for record in caplog.records] == ["slow down", "budget"]


def test_what_ends_an_annotation_ends_it_as_the_users_own_mistake(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"^status 401$"):
        _sums(lines({"images": 1, NOTE: "last words", ERROR: "status 401"}, {"images": 1}), 2, "annotating")
    assert "last words" in caplog.text


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (32, 32), (255, 255, 255) if number % 2 else (0, 0, 0)).save(folder / f"{number:02d}.png")
    return folder


def config_for(address: str, images: Path, **settings: Any) -> Config:
    annotator = {"kind": "chat", "model": "m", "endpoint": address, "allow_upload": True, "questions": ["{}?"]}
    source = {"kind": "folder", "path": str(images), "classes": ["cat", "dog"]}
    return Config(source=source, annotator={**annotator, "concurrency": 1, **settings})


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_refused_image_is_a_reject_and_everything_else_is_annotated(images: Path, tmp_path: Path) -> None:
    from coreg_ray.cluster.annotate import annotate

    run = RunFolder.at(tmp_path / "run")
    with chat_server(refuses={"dog": 400}, words="not this one") as server:
        came = annotate(config_for(server.address, images), "pool", run)
        assert (came.encoded_images, came.rejected_images, came.missing_images) == (30, 30, 0)
        assert came.spent is not None
        assert came.spent.requests == came.spent.requests_in_all == server.requests == 60
        again = annotate(config_for(server.address, images), "pool", run)
        assert (again.encoded_images, again.rejected_images, server.requests) == (0, 30, 60)
    assert all("status 400: not this one" in reason for reason in table(run.rejects("pool"), "reason"))


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_server_that_always_says_429_leaves_its_words_and_its_requests(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from coreg_ray.cluster.annotate import annotate

    run = RunFolder.at(tmp_path / "run")
    with chat_server(*["429"] * 1000, words="quota exceeded", headers={"retry-after-ms": "1"}) as server:
        came = annotate(config_for(server.address, images, retries=1), "pool", run)
        assert (came.encoded_images, came.missing_images) == (0, 60)
        assert came.spent is not None
        assert came.spent.requests_in_all == server.requests == 10
        texts = [text for text in (r.getMessage() for r in caplog.records) if "no more are asked about" in text]
        assert len(texts) == 1
        assert "status 429: quota exceeded" in texts[0]
        came = annotate(config_for(server.address, images, retries=1, max_requests=12), "pool", run)
        assert came.spent is not None
        assert came.spent.requests_in_all == server.requests == 12


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_closed_account_keeps_what_was_answered_and_estimates_count(images: Path, tmp_path: Path) -> None:
    from coreg_ray.cluster.annotate import annotate
    from coreg_ray.cluster.estimate import estimate

    run = RunFolder.at(tmp_path / "run")
    with chat_server(words="account closed") as server:
        server.faults = [""] * 13 + ["403"] * 1000
        with pytest.raises(UserError, match=r"^127\.0\.0\.1:\d+ answers with status 403: account closed\.[^\n]*$"):
            annotate(config_for(server.address, images), "pool", run)
        folder = run.own("annotations", "pool")
        assert sum(len(table(folder / name)) for name in folder.entries() if name != ORIGIN) == 13
        server.faults, asked = [], server.requests
        estimate(config_for(server.address, images, max_requests=asked + 3), run)
        assert server.requests == asked + 3
        came = annotate(config_for(server.address, images, max_requests=asked + 5), "pool", run)
        assert came.spent is not None
        assert came.spent.requests_in_all == server.requests == asked + 5
