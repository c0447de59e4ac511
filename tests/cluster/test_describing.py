"""A model is described while Ray starts: the same card and texts, and the same errors, as a task would bring."""

import logging
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from coreg_ray.annotation import factory
from coreg_ray.cluster import describing
from coreg_ray.cluster.pools import asked_about
from coreg_ray.commands.base import Command, load
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder


def config(folder: Path, *words: str) -> Config:
    return load(["--preset", "smoke", "--output", str(folder), *words], Command)


@pytest.fixture(autouse=True)
def nothing_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "_begun", {})


def test_what_began_before_ray_is_what_a_task_would_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(describing, "starts_own", lambda: True)
    given, run = config(tmp_path), RunFolder.at(str(tmp_path))
    words = asked_about(given, ())
    describing.begin(given, run)
    assert len(describing._begun) == 1
    describing.wait_for_imports()
    assert "open_clip" in sys.modules
    described = describing.settle(describing.describe(given.annotator, given, words, run))
    assert not [record for record in caplog.records if record.levelno < logging.WARNING]  # open_clip's own
    card, text = factory.describe(given.annotator, words, given.source.background)
    assert text is not None
    assert (described.card, described.text) == (card, text.to_bytes())
    assert not describing._begun
    describing.keep(described, run.own("annotations", "pool") / card.folder)
    describing.begin(given, run)  # again: the run knows it now
    assert not describing._begun
    assert describing.describe(given.annotator, given, words, run) == described


def test_a_model_that_cannot_be_loaded_says_so_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describing, "starts_own", lambda: True)
    given, run = config(tmp_path, "--annotator.model", "ViT-Q-7"), RunFolder.at(str(tmp_path))
    describing.begin(given, run)
    with pytest.raises(UserError, match=r"annotator\.model=ViT-Q-7"):
        describing.settle(describing.describe(given.annotator, given, asked_about(given, ()), run))


def test_packages_that_cannot_be_imported_end_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "starts_own", lambda: True)
    monkeypatch.setitem(sys.modules, "open_clip", None)  # importing it raises ImportError
    given, run = config(tmp_path), RunFolder.at(str(tmp_path))
    describing.begin(given, run)
    describing.wait_for_imports()
    answer = describing.describe(given.annotator, given, asked_about(given, ()), run)
    assert isinstance(answer, Future)
    with pytest.raises(ImportError, match="open_clip"):
        answer.result(timeout=30)


def test_on_a_cluster_the_driver_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    describing.begin(config(tmp_path), RunFolder.at(str(tmp_path)))
    assert not describing._begun


def test_nothing_is_loaded_for_names_that_an_image_set_has_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describing, "starts_own", lambda: True)
    given = config(tmp_path, "--source.kind", "torchvision", "--source.name", "CIFAR10", "--source.path", str(tmp_path))
    describing.begin(given, RunFolder.at(str(tmp_path)))
    assert not describing._begun
