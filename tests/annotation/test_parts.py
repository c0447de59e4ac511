"""The annotation table: its files are its state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from coreg_ray.annotation.arrow import read_table, write_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.clip import TextTable, votes
from coreg_ray.annotation.labels import NO_CLASS, Labels, read_labels
from coreg_ray.annotation.manual import check_manual, read_manual
from coreg_ray.annotation.parts import Part, annotation_table, drop_outdated, drop_replaced, known_keys, next_run, parts
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.annotation.writer import vote_again
from coreg_ray.errors import UserError
from coreg_ray.ids import content_hash, images_hash, row_numbers
from coreg_ray.run.storage import Folder

WORDS = Vocabulary((("cat", "kitty"), ("dog",)), ("a {}", "the {}"))


def write(folder: Folder, run: int, images: dict[str, str], text: str = "aaaa") -> None:
    """A part with the given ids and contents."""
    ids, contents = list(images), list(images.values())
    embedding = np.random.default_rng(run).standard_normal((len(ids), 4)).astype(np.float16)
    table = annotation_table(ids, contents, "x", np.zeros((len(ids), 2), np.int32), embedding)
    write_table(folder, Part(run, images_hash(ids, contents), text).name, table)


def rows(*folders: Folder) -> dict[str, str]:
    tables = [read_table(folder, part.name) for folder in folders for part in parts(folder)]
    return {row["image_id"]: row["content"] for table in tables for row in table.to_pylist()}


def pool(*ids: str) -> np.ndarray:
    return np.sort(row_numbers(ids))


def test_of_two_rows_for_one_image_the_later_wins_wherever_it_lies(tmp_path: Path) -> None:
    good, bad = Folder.at(tmp_path / "good"), Folder.at(tmp_path / "bad")
    write(good, 0, {"a": "old", "b": "1", "gone": "1"})
    write(bad, 0, {"c": "broken"})
    write(good, 1, {"a": "new", "c": "mended"})
    write(bad, 2, {"b": "now broken"})
    assert next_run(good, bad) == 3
    assert drop_outdated(pool("a", "b", "c", "not yet"), good, bad) == 3
    assert rows(good) == {"a": "new", "b": "1", "c": "mended"}  # no reject takes an answer away
    assert rows(bad) == {"b": "now broken"}
    assert drop_outdated(pool("a", "b", "c"), good, bad) == 3
    assert len(known_keys(good, bad)) == 4


def test_a_block_written_twice_counts_once(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    write(folder, 0, {"a": "1", "b": "1"})
    write(folder, 0, {"a": "1", "b": "1", "c": "1"})  # a retried task may cut its block elsewhere
    assert drop_outdated(pool("a", "b", "c"), folder) == 3
    assert sum(read_table(folder, part.name).num_rows for part in parts(folder)) == 3


def test_new_prompts_vote_from_stored_embeddings_and_a_kill_in_between_does_no_harm(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    write(folder, 0, {"a": "1", "b": "1"}, "old")
    write(folder, 0, {"c": "1"}, "old")
    text = TextTable(torch.randn(2, 2, 4), torch.zeros(0, 4), 10.0, 0.0)
    card = Card("clip", "x", "e", WORDS.prompts, WORDS.names, {}, 4)
    before = {part.images: read_table(folder, part.name)["embedding"] for part in parts(folder)}
    stale = list(drop_replaced(folder, card.text))
    assert len(stale) == 2
    vote_again(stale[0], folder, card, text)
    write(folder, 0, {"a": "1", "b": "1"}, "old")  # as if the process had died before deleting the old part
    left = list(drop_replaced(folder, card.text))
    assert len(left) == 1
    vote_again(left[0], folder, card, text)
    assert [part.text for part in parts(folder)] == [card.text] * 2
    for part in parts(folder):
        table = read_table(folder, part.name)
        assert table["embedding"] == before[part.images]
        stored = torch.tensor(np.stack(table["embedding"].to_numpy()))
        assert table["votes"].to_pylist() == votes(stored, text).tolist()


def test_a_part_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((2000, 512))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    ids = [f"folder/image-{number:06d}.jpg" for number in range(2000)]
    contents = [content_hash(name.encode()) for name in ids]
    table = annotation_table(
        ids, contents, "clip-01234567", rng.integers(0, 100, (2000, 27), np.int32), embedding.astype(np.float16)
    )
    write_table(Folder.at(tmp_path), "a.parquet", table)
    assert Folder.at(tmp_path).size("a.parquet") / 2000 < 1200


def test_content_knows_shape_and_bytes() -> None:
    one = np.arange(12, dtype=np.uint8)
    assert content_hash(one.reshape(2, 2, 3)) != content_hash(one.reshape(4, 1, 3))
    assert content_hash(b"a") == content_hash(b"a") != content_hash(b"b")


def test_cards_know_what_matters() -> None:
    card = Card("clip", "m", "encoder-1", WORDS.prompts, WORDS.names, {"height": 1}, 4, {"scale": 1.0})
    assert Card.from_manifest(card.manifest()) == card
    other = Card("clip", "m", "encoder-2", WORDS.prompts, WORDS.names, {"height": 1}, 4, {"scale": 1.0})
    assert card.folder != Card("clip", "m", "another", WORDS.prompts, WORDS.names, {}).folder
    assert card.text == other.text
    assert card.text != Card("clip", "m", "encoder-1", ("a {}",), WORDS.names, {}).text
    assert card.manifest()["fingerprint"] != other.manifest()["fingerprint"]


def test_labels_are_found_by_row(tmp_path: Path) -> None:
    table = pa.table({"row": row_numbers(["x", "a", "m"]), "label": pa.array([2, 0, 1], pa.int32())})
    write_table(Folder.at(tmp_path), "labels.parquet", table)
    labels = read_labels(Folder.at(tmp_path))
    assert labels.of(row_numbers(["a", "?", "x"])).tolist() == [0, -1, 2]
    assert read_labels(Folder.at(tmp_path / "none")).of(row_numbers(["a"])).tolist() == [-1]
    assert isinstance(labels, Labels)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manual_labels_are_read_and_checked_against_the_pool(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"labels.{kind}"
    if kind == "csv":
        path.write_text("image_id,label\na,kitty\nc,\nb,1\n")
    else:
        table = pa.table({"image_id": ["a", "c", "b"], "label": ["cat", None, "dog"]})
        write_table(Folder.at(tmp_path), path.name, table)
    assert read_manual(str(path), WORDS)[1].of(row_numbers(["a", "b", "c"])).tolist() == [0, 1, -1]
    assert check_manual(str(path), WORDS, pool("a", "b", "c")) == 2
    with pytest.raises(UserError, match="labels 1 images that the pool does not hold \\('b'\\)"):
        check_manual(str(path), WORDS, pool("a", "c"))


def test_none_of_these_is_a_label_and_not_sure_is_none(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    path.write_text("image_id,label\na, -\nb,?\nc,cat\n")
    ids, labels = read_manual(str(path), WORDS)
    assert ids == ["a", "c"]
    assert labels.of(row_numbers(["a", "b", "c"])).tolist() == [NO_CLASS, -1, 0]
    with pytest.raises(UserError, match="labels 1 images that the pool does not hold"):
        check_manual(str(path), WORDS, pool("b", "c"))
    path.write_text("image_id,label\na,-\na,cat\n")
    with pytest.raises(UserError, match="gives a two labels"):
        read_manual(str(path), WORDS)
    path.write_text("image_id,label\na,-\n")
    assert read_manual(str(path), Vocabulary((("-",), ("dog",)), ("a {}",)))[1].labels.tolist() == [0]  # a class's name


def test_commas_in_quotes_or_at_the_end_of_a_line_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text('image_id,label\n"a,b.png",cat,\nc,dog\nd\n')
    assert read_manual(str(tmp_path / "labels.csv"), WORDS)[0] == ["a,b.png", "c"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("image_id,label\na,bird\n", "'bird' of a is not among"),
        ("image_id,label\na,2\n", "2 of a is not among"),
        ("image_id,label\na,-1\n", "-1 of a is not among"),
        ("image_id,label\na,\nb, \n", "holds no label in 2 rows"),
        ("image_id,label\na,cat\na,dog\n", "two labels"),
        ("name,label\na,cat\n", "needs image_id and label"),
        ("image_id,label\na,b.png,cat\nc,dog\n", r"csv, line 2, has 3 cells for 2 columns; put .* in quotes"),
        ("image_id,label\nc,dog\na,cat,b\n", "csv, line 3, has 3 cells"),
        ("image_id,label\n", "holds no label in 0 rows"),
    ],
)
def test_wrong_manual_labels_are_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UserError, match=problem):
        read_manual(str(tmp_path / "labels.csv"), WORDS)
