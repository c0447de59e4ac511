"""Rejects: what they leave alone, when they are tried again, and answers that are not finite."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from coreg_ray.annotation import clip
from coreg_ray.annotation.arrow import read_table, write_table
from coreg_ray.annotation.candidate_builder import Making, score_part
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.clip import TextTable
from coreg_ray.annotation.labels import Labels
from coreg_ray.annotation.parts import Part, annotation_table, drop_outdated, known_keys, next_run, parts
from coreg_ray.annotation.preparation import RowParts, count_unknown, prepare
from coreg_ray.annotation.rejects import (
    NOT_FINITE,
    UNREAD,
    count_not_finite,
    read_rejected,
    record_rejects,
    refuse_not_finite,
    settled_keys,
    try_again,
)
from coreg_ray.annotation.writer import (
    Place,
    drop_not_finite,
    images_in,
    settle_rows,
    vote_again,
    write_annotations,
)
from coreg_ray.config import CandidatesConfig
from coreg_ray.errors import UserError
from coreg_ray.ids import content_hash, images_hash, keys, row_numbers
from coreg_ray.images.base import block
from coreg_ray.images.decode import Fit
from coreg_ray.images.reading import Unreadable
from coreg_ray.run.storage import Folder

NONE = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))
CARD = Card("clip", "toy", "e" * 16, ("a {}", "the {}"), (("cat",), ("dog",)), {}, 4, {})
TEXT = TextTable(torch.eye(4)[None, :2].repeat(2, 1, 1), torch.zeros(0, 4), 10.0, 0.0)
READABLE = Unreadable("cannot be read: Permission denied")


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


class Shelf:
    """A source whose contents a test changes."""

    known_classes: tuple[str, ...] = ()

    def __init__(self, **contents: Any) -> None:
        self.contents = contents

    def listing(self) -> Iterator[pa.Table]:
        yield block(list(self.contents))

    def fetch(self, block: pa.Table) -> Iterator[Any]:
        return (self.contents[name] for name in block["image_id"].to_pylist())

    def holds(self, other: Any) -> bool:
        return other is self


class Run:
    """One annotator's folders, and a run of annotation without Ray."""

    def __init__(self, path: Path) -> None:
        self.answers, self.rejects, self.rows = (Folder.at(path / name) for name in ("answers", "rejects", "rows"))

    def annotate(self, source: Shelf, retry: bool = False) -> list[str]:
        """Which images were asked about."""
        try_again(self.rejects, retry)
        (listed,) = source.listing()
        pool = np.sort(row_numbers(listed["image_id"].to_pylist()))
        run = next_run(self.answers, self.rejects, self.rows)
        known = settled_keys(self.answers, self.rejects)
        rows = RowParts(self.rows, 4, known_keys(self.rows, self.rejects))
        asked: list[str] = []
        for batch in prepare(
            listed, source=source, fit=Fit.square(4), known=known, rejects=self.rejects, run=run, rows=rows
        ):
            asked += batch["image_id"].tolist()
            n = len(batch["image_id"])
            embedding = np.eye(4, dtype=np.float16)[[0] * n]
            split = np.full(n, "pool", dtype=object)
            votes = np.zeros((n, 2), np.int32)
            answered = {k: v for k, v in batch.items() if k != "image"} | {
                "embedding": embedding, "votes": votes, "split": split
            }  # fmt: skip
            write_annotations(answered, places={"pool": Place(self.answers, run, self.rejects)}, card=CARD)
        drop_outdated(pool, self.answers, self.rejects)
        settle_rows(pool, self.rows, self.rejects, [self.answers])
        return asked

    def table(self, name: str) -> dict[str, str]:
        folder: Folder = getattr(self, name)
        tables = [read_table(folder, part.name).to_pylist() for part in parts(folder)]
        return {row["image_id"]: row.get("reason", "answered") for rows in tables for row in rows}

    def sets(self, output: Folder, text: TextTable = TEXT) -> set[str]:
        """Images with a candidate set."""
        making = Making(CandidatesConfig(), NONE, NONE, output, 0, read_rejected(self.rejects), self.rejects)
        for part in parts(self.answers):
            score_part(part, self.answers, CARD, text, making)
        return {row["image_id"] for name in output.entries() for row in read_table(output, name).to_pylist()}

    def trained_on(self) -> set[int]:
        return {row for part in parts(self.rows) for row in read_table(self.rows, part.name)["row"].to_pylist()}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize("bad", [READABLE, b"no image any more"])
def test_a_reject_takes_no_answer_away_and_the_image_waits_for_its_file(run: Run, bad: Any, tmp_path: Path) -> None:
    source = Shelf(a=png(1), b=png(2))
    assert run.annotate(source) == ["a", "b"]
    good = read_table(run.answers, parts(run.answers)[0].name)
    source.contents["a"] = bad
    assert run.annotate(source) == []
    assert sorted(run.table("answers")) == ["a", "b"]
    assert read_table(run.answers, parts(run.answers)[0].name) == good
    assert list(run.table("rejects")) == ["a"]
    assert run.sets(Folder.at(tmp_path / "1")) == {"b"}  # no set and no pixels while nobody knows what it shows
    assert run.trained_on() == {*row_numbers(["b"])}
    assert settle_rows(np.sort(row_numbers(["a", "b"])), run.rows)[1] == images_in([run.answers], run.rejects)
    source.contents["a"] = png(1)  # as it was
    assert run.annotate(source) == ([] if bad is READABLE else ["a"])
    assert run.table("rejects") == {}
    assert run.sets(Folder.at(tmp_path / "2")) == {"a", "b"}
    assert run.trained_on() == {*row_numbers(["a", "b"])}


def test_pixels_of_what_a_server_refused_go_unless_somebody_else_answered(run: Run, tmp_path: Path) -> None:
    source = Shelf(a=png(1), b=png(2))
    (listed,) = source.listing()
    pool = np.sort(row_numbers(["a", "b"]))
    contents = [content_hash(png(number)) for number in (1, 2)]
    rows = Run(tmp_path / "of another run")
    for _ in prepare(listed, source=source, fit=None, rows=RowParts(rows.rows, 4)):
        pass
    for name, image, content in (("chat", "b", contents[1]), ("clip", "a", contents[0])):
        table = annotation_table([image], [content], name, np.zeros((1, 2), np.int32))
        write_table(Folder.at(tmp_path / name), Part(0, "0" * 16, "t").name, table)
    record_rejects(run.rejects, [("a", contents[0], "the server refuses")], 0)
    chat, clip = (Folder.at(tmp_path / name) for name in ("chat", "clip"))
    both = settle_rows(pool, rows.rows, run.rejects, [chat, clip], own=False)
    assert both == (2, images_in([chat, clip], run.rejects))
    alone = settle_rows(pool, rows.rows, run.rejects, [chat], own=False)
    assert alone == (1, images_in([chat], run.rejects))
    assert rows.trained_on() == {*row_numbers(["b"])}


def test_what_could_not_be_read_is_tried_again_by_every_run(run: Run) -> None:
    source = Shelf(a=READABLE, b=b"no image")
    assert run.annotate(source) == []
    assert run.table("rejects") == {"a": "cannot be read: Permission denied", "b": "not an image"}
    (listed,) = source.listing()
    assert count_unknown(listed, source, [known_keys(run.rejects)]) == 0
    try_again(run.rejects, False)
    assert count_unknown(listed, source, [known_keys(run.rejects)]) == 1  # so an annotator is started for it
    source.contents["a"] = png(1)
    assert run.annotate(source) == ["a"]
    assert run.table("rejects") == {"b": "not an image"}


def test_a_broken_file_is_tried_again_when_it_has_changed_or_on_demand(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Shelf(a=b"no image", b=ValueError("no image in this row"))
    run.annotate(source)
    before = parts(run.rejects)
    assert run.annotate(source) == []
    assert parts(run.rejects) == before  # it was not even looked at
    source.contents["a"] = png(3)
    assert run.annotate(source) == ["a"]
    assert run.table("rejects") == {"b": "no image in this row"}
    source.contents["a"] = b"other bytes, no image"
    run.annotate(source)
    assert set(run.table("rejects")) == {"a", "b"}
    monkeypatch.setattr("coreg_ray.annotation.preparation._decoded", lambda content: Image.new("RGB", (4, 4)))
    assert run.annotate(source) == []  # say a newer Pillow reads it
    assert run.annotate(source, retry=True) == ["a", "b"]
    assert run.table("rejects") == {}


def test_a_task_that_was_tried_again_does_better_than_its_first_attempt(run: Run) -> None:
    pool = np.sort(row_numbers(["a", "b"]))
    for content, name in (("X", "a"), ("Y", "b")):
        table = annotation_table([name], [content], "x", np.zeros((1, 2), np.int32))
        write_table(run.answers, Part(0, images_hash([name], [content]), "t").name, table)
    record_rejects(run.rejects, [("a", UNREAD, "cannot be read"), ("b", "Y", "the server refuses")], 0)
    assert drop_outdated(pool, run.answers, run.rejects) == 2
    assert run.table("rejects") == {"b": "the server refuses"}  # which another annotator was told, of that very image
    assert read_rejected(run.rejects).sets_aside(row_numbers(["b"]), keys(["b"], ["Y"])).tolist() == [False]


# Answers that are not finite.


def batch(embedding: list[list[float]]) -> dict[str, Any]:
    stored = np.array(embedding, np.float16)
    n = len(stored)
    return {
        "image_id": np.array([f"i{number}" for number in range(n)], dtype=object),
        "content": np.array([f"c{number}" for number in range(n)], dtype=object),
        "split": np.full(n, "pool", dtype=object),
        "embedding": stored,
        "votes": clip.votes(torch.from_numpy(stored), TEXT).numpy(),
    }


NAN, INF = float("nan"), float("inf")
MIXED = [[1.0, 0, 0, 0], [NAN] * 4, [0, 1.0, 0, 0], [0, INF, 0, 0]]


def test_what_is_not_finite_votes_for_no_class() -> None:
    assert batch(MIXED)["votes"].tolist() == [[0, 0], [-1, -1], [1, 1], [-1, -1]]
    huge = TextTable(TEXT.embeddings, TEXT.background, 3e38, 0.0)
    assert clip.votes(torch.tensor([[2.0, 0, 0, 0]]).half(), huge).tolist() == [[-1, -1]]  # logits beyond float32


def test_answers_that_are_not_finite_are_rejects_and_counted(run: Run) -> None:
    line = write_annotations(batch(MIXED), places={"pool": Place(run.answers, 3, run.rejects)}, card=CARD)
    assert line == {"images": [4], "pool/images": [2], "pool/not_finite": [2]}
    assert list(run.table("answers")) == ["i0", "i2"]
    assert run.table("rejects") == {"i1": NOT_FINITE, "i3": NOT_FINITE}
    assert count_not_finite(run.rejects) == 2
    assert len(known_keys(run.answers, run.rejects)) == 4
    try_again(run.rejects, False)
    assert count_not_finite(run.rejects) == 2  # the same model would say the same
    try_again(run.rejects, True)
    assert count_not_finite(run.rejects) == 0


def stored(run: Run, text: str = CARD.text) -> Part:
    """A part as earlier versions, or another run, left it: NaN with a vote for the first class."""
    given = batch(MIXED)
    votes = np.where(given["votes"] < 0, 0, given["votes"])
    ids, contents = given["image_id"].tolist(), given["content"].tolist()
    part = Part(2, images_hash(ids, contents), text)
    write_table(run.answers, part.name, annotation_table(ids, contents, "x", votes, given["embedding"]))
    return part


def test_stored_embeddings_that_are_not_finite_make_no_set(run: Run, tmp_path: Path) -> None:
    stored(run)
    assert run.sets(Folder.at(tmp_path / "1")) == {"i0", "i2"}
    assert run.table("rejects") == {"i1": NOT_FINITE, "i3": NOT_FINITE}
    assert run.sets(Folder.at(tmp_path / "2")) == {"i0", "i2"}
    assert count_not_finite(run.rejects) == 2  # each once, however often sets are made
    pool = np.sort(row_numbers([f"i{number}" for number in range(4)]))
    assert drop_outdated(pool, run.answers, run.rejects) == 4
    assert count_not_finite(run.rejects) == 2


def test_new_prompts_let_them_vote_for_nothing_and_they_can_be_asked_for_again(run: Run) -> None:
    part = stored(run, "oldwords")
    assert vote_again(part, run.answers, CARD, TEXT) == 4
    (again,) = parts(run.answers)
    assert read_table(run.answers, again.name)["votes"].to_pylist() == [[0, 0], [-1, -1], [1, 1], [-1, -1]]
    assert drop_not_finite(again, run.answers) == 2
    assert list(run.table("answers")) == ["i0", "i2"]


def test_a_part_of_nothing_else_makes_no_file(run: Run, tmp_path: Path) -> None:
    given = batch([[NAN] * 4])
    table = annotation_table(["i0"], ["c0"], "x", np.zeros((1, 2), np.int32), given["embedding"])
    write_table(run.answers, Part(0, images_hash(["i0"], ["c0"]), CARD.text).name, table)
    assert run.sets(Folder.at(tmp_path / "1")) == set()
    assert run.table("rejects") == {"i0": NOT_FINITE}


@pytest.mark.parametrize(("count", "images", "ends"), [(10, 100, False), (11, 1100, False), (11, 1099, True)])
def test_more_than_ten_and_more_than_a_hundredth_is_an_error(count: int, images: int, ends: bool) -> None:
    if not ends:
        refuse_not_finite(count, images, "pool")
        return
    with pytest.raises(UserError, match=r"to 11 of 1099 pool images are not finite .*--annotator.retry_rejects"):
        refuse_not_finite(count, images, "pool")


@pytest.mark.parametrize("place", ["embeddings", "background", "scale", "bias"])
def test_a_model_whose_texts_are_not_finite_is_refused(place: str) -> None:
    text: dict[str, Any] = {"embeddings": torch.ones(1, 2, 4), "background": torch.ones(1, 4), "scale": 1.0}
    text |= {"bias": 0.0}
    TextTable(**text)
    broken = text[place] * NAN + NAN
    with pytest.raises(UserError, match=r"embeddings of the prompts, or its scale, are not finite"):
        TextTable(**{**text, place: broken})
