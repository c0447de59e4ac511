"""Labels on their way to review.csv: nothing given is lost, nothing written by hand is overruled."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from review_run import answers, as_csv, journal, labels_in, review_run
from s3_server import s3_server

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.pure.interval import wilson
from coreg_ray.review.earlier import carry_over
from coreg_ray.review.items import read_items, read_table_of
from coreg_ray.review.journal import Entry, Journal
from coreg_ray.review.session import Session
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

IDS = ["a.png", "b.png", "c.png", "d.png"]
SOURCE: dict[str, Any] = {"kind": "folder", "path": "pool"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return review_run(RunFolder.at(tmp_path / "run"), SOURCE, IDS)


def session(run: RunFolder) -> Session:
    return Session(run, read_items(run, read_table_of(run, run.path)))


def give(one: Session, row: int, label: str, before: str = "", how: str = "picture", order: str = "listed") -> bool:
    return one.give({row: label}, {row: before}, how, order).stored == [row]


def test_a_label_is_in_the_journal_at_once_and_in_the_file_after_a_merge(run: RunFolder) -> None:
    one = session(run)
    assert give(one, 1, "fox")
    assert [(entry["image_id"], entry["label"]) for entry in journal(run)] == [("b.png", "fox")]
    assert not labels_in(run)
    one.merge()
    assert labels_in(run) == {"b.png": "fox"}
    assert not one.unmerged


def test_what_a_killed_server_had_not_merged_is_merged_by_the_next(run: RunFolder) -> None:
    give(session(run), 0, "cat")
    run.write("review.csv", as_csv(answers(IDS[2:], ["cat", "dog", "fox"])))  # a fresh report, without that image
    again = session(run)
    assert labels_in(run) == {"a.png": "cat"}
    assert again.labels() == {}
    assert session(run).labels() == {2: "cat"}


def test_a_line_that_was_cut_short_costs_that_line_alone(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    give(session(run), 0, "cat")
    run.write("review.jsonl", run.read("review.jsonl") + b'{"image_id": "b.png", "lab')
    one = session(run)
    assert "1 lines are unfinished" in caplog.text
    give(one, 2, "dog")
    one.merge()
    assert labels_in(run) == {"a.png": "cat", "c.png": "dog"}


def test_a_label_written_into_the_file_by_hand_stays(run: RunFolder) -> None:
    one = session(run)
    give(one, 0, "cat")
    one.merge()
    run.write(
        "review.csv", run.read("review.csv").replace(b"a.png,cat", b"a.png,dog").replace(b"b.png,,", b"b.png,FOX,")
    )
    give(one, 2, "cat")
    one.merge()
    assert labels_in(run) == {"a.png": "dog", "b.png": "FOX", "c.png": "cat"}
    assert one.labels() == {0: "dog", 1: "fox", 2: "cat"}
    assert session(run).labels() == one.labels()


def test_of_two_pages_the_second_is_told_and_its_label_not_stored(run: RunFolder) -> None:
    one, changes = session(run), 0
    assert give(one, 0, "cat")
    told = one.give({0: "dog", 1: "dog"}, {0: "", 1: ""}, "grid", "chosen")
    assert (told.stored, told.refused) == ([1], {0: "cat"})
    assert one.since(changes) == {0: "cat", 1: "dog"}
    assert give(one, 0, "dog", before="cat")


def test_two_servers_of_one_run_lose_nothing(run: RunFolder) -> None:
    one, other = session(run), session(run)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: give(*job), [(one, 0, "cat"), (other, 1, "dog"), (one, 2, "fox"), (other, 3, "cat")]))
        list(pool.map(lambda server: server.merge(), [one, other, one]))
    assert labels_in(run) == {"a.png": "cat", "b.png": "dog", "c.png": "fox", "d.png": "cat"}
    assert one.labels() == other.labels()


def test_a_file_that_cannot_be_read_is_left_alone_and_the_journal_keeps_the_labels(run: RunFolder) -> None:
    one = session(run)
    there = run.read("review.csv")
    run.write("review.csv", b"image_id;label\n")
    give(one, 0, "cat")
    one.merge()
    assert one.trouble is not None
    assert "every label is safe in review.jsonl" in one.trouble
    assert run.read("review.csv") == b"image_id;label\n"
    run.write("review.csv", there)
    one.merge()
    assert one.trouble is None
    assert labels_in(run) == {"a.png": "cat"}


def test_a_journal_that_cannot_be_written_changes_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Journal, entries: list[Entry]) -> None:
        raise UserError("the disk is full")

    one = session(run)
    monkeypatch.setattr(Journal, "add", full)
    with pytest.raises(UserError):
        give(one, 0, "cat")
    assert one.labels() == {}


@pytest.mark.parametrize(
    ("row", "label", "how"), [(4, "cat", "picture"), (-1, "cat", "picture"), (0, "cow", "picture"), (0, "cat", "magic")]
)
def test_only_labels_that_there_are_can_be_given(run: RunFolder, row: int, label: str, how: str) -> None:
    one = session(run)
    with pytest.raises(ValueError, match=r"there is no image|none of the 3 classes|how='magic'"):
        give(one, row, label, how=how)
    assert not journal(run)


def test_a_typed_label_that_is_no_class_is_kept_shown_and_an_obstacle(run: RunFolder) -> None:
    run.write("review.csv", run.read("review.csv").replace(b"a.png,,", b"a.png,cow,").replace(b"b.png,,", b"b.png,2,"))
    one = session(run)
    assert one.labels() == {0: "cow", 1: "fox"}
    assert "'cow' of a.png" in (one.obstacle() or "")
    assert give(one, 0, "cat", before="cow")
    assert one.obstacle() is None


def test_not_sure_is_no_label_and_none_of_these_is_one_of_no_class(run: RunFolder) -> None:
    from coreg_ray.annotation.labels import NO_CLASS
    from coreg_ray.annotation.manual import read_manual
    from coreg_ray.annotation.vocabulary import Vocabulary

    one = session(run)
    give(one, 0, "?")
    give(one, 1, "-")
    assert "label some first" in (one.obstacle() or "")
    give(one, 2, "fox")
    one.merge()
    ids, labels = read_manual(f"{run.path}/review.csv", Vocabulary((("cat",), ("dog",), ("fox",)), ("a {}",)))
    assert (ids, labels.labels.tolist()) == (["b.png", "c.png"], [NO_CLASS, 2])


def test_an_interval_needs_a_hundred_images_that_came_up_by_themselves(tmp_path: Path) -> None:
    ids = [f"{number:03d}" for number in range(240)]
    one = session(review_run(RunFolder.at(tmp_path / "run"), SOURCE, ids))
    for row in range(99):
        give(one, row, ["cat", "dog", "fox"][row % 3] if row >= 9 else "-")
    one.give({row: ["cat", "dog", "fox"][row % 3] for row in range(200, 240)}, {}, "grid", "chosen")
    give(one, 100, "?")
    assert one.accuracy() is None
    give(one, 101, "fox")
    seen = one.accuracy()
    assert seen is not None
    assert (seen["order"], seen["right"], seen["count"]) == ("listed", 91, 100)
    for row in range(102, 202):
        give(one, row, "cat", before=one.labels().get(row, ""), order="random")
    seen = one.accuracy()
    assert seen is not None
    assert (seen["order"], seen["count"]) == ("random", 100)
    again = session(one.folder)
    assert again.accuracy() == seen  # the journal remembers


def test_intervals_are_wilsons() -> None:
    low, high = wilson(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    low, high = wilson(100, 100)
    assert (round(low, 4), high) == (0.963, 1.0)
    low, high = wilson(1, 10)  # as R's prop.test without its correction
    assert (round(low, 4), round(high, 4)) == (0.0179, 0.4042)


def test_a_run_on_an_object_store_is_reviewed_alike(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with s3_server("runs") as uri:
        run = review_run(RunFolder.at(uri("digits")), SOURCE, IDS)
        one = session(run)
        give(one, 0, "cat")
        give(one, 3, "fox")
        assert len(journal(run)) == 2
        one.merge()
        assert labels_in(run) == {"a.png": "cat", "d.png": "fox"}
        assert json.loads(Folder.at(uri("digits")).read("review.jsonl").splitlines()[-1]) == {"merged": 2}


def test_labels_that_a_run_was_trained_with_are_handed_on(run: RunFolder, tmp_path: Path) -> None:
    """Going on reads one file alone: without them the second round would forget the first."""
    (tmp_path / "first.csv").write_text("image_id,label\na.png,dog\nx.png,fox\ny.png,\nz.png,?\n")
    config = run.read_config()
    assert config is not None
    tree = config.settings()
    tree["source"]["manual_labels"] = str(tmp_path / "first.csv")
    there = run.read("review.csv")
    assert carry_over(run, Config.model_validate(tree)) == 2
    assert run.read("review.csv") == there + b"x.png,fox,,,,,,,\nz.png,?,,,,,,,\n"
    assert carry_over(run, Config.model_validate(tree)) == 0
    one = session(run)
    assert one.labels() == {4: "fox", 5: "?"}
    assert one.obstacle() is None
    tree["source"]["manual_labels"] = str(tmp_path / "nowhere.csv")
    assert carry_over(run, Config.model_validate(tree)) == 0
