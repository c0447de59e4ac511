"""Votes in files as an annotator: forms, names, joining by id, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreg_ray.annotation.arrow import matrix, read_table
from coreg_ray.annotation.candidate_builder import Making, read_evidence
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.labels import Labels
from coreg_ray.annotation.parts import parts
from coreg_ray.annotation.rejects import drop_answered, settled_keys, try_again, without_vote
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.annotation.vote_files import VoteFiles
from coreg_ray.annotation.vote_table import VoteTable
from coreg_ray.annotation.votes import ReadNotes, describe, form_of, read_votes, write_votes
from coreg_ray.annotation.writer import Place
from coreg_ray.config import CandidatesConfig
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.run.storage import Folder

WORDS = Vocabulary((("cat", "kitty"), ("dog",), ("7",)), ("a {}",))
IDS = ["a.png", "b.png", "c.png", "d.png"]
NONE = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))
WIDE = "image_id,ann,bob\na.png,cat,dog\nb.png,Kitty,\nc.png,1,-1\n"
VOTES = {"a.png": [0, 1], "b.png": [0, -1], "c.png": [1, -1]}  # of ann and bob


@dataclass(frozen=True)
class Outcome:
    """What came of votes: each answered image's votes and mean, the notes, and the run folder."""

    votes: dict[str, list[int]]
    mean: dict[str, list[float]]
    notes: ReadNotes
    card: Card
    folder: Folder


def annotate(path: Path, *, buckets: int = 1, ids: list[str] = IDS, **settings: Any) -> Outcome:
    """Everything that is done with votes, in one process."""
    card = describe(str(path), settings.get("voters"), settings.get("scores", "votes"), WORDS)
    files, form = VoteFiles.at(str(path)), form_of(card)
    pool = np.sort(row_numbers(ids))
    read = [read_votes(name, files, form, WORDS, pool, buckets) for name in files.names]
    notes = sum((pieces[-1] for pieces in read), ReadNotes())
    notes.refuse(files.shown, form.kind, ids[:5])
    tables = [VoteTable.of(files.shown, form.voters, [pieces[n] for pieces in read]) for n in range(buckets)]
    output = Folder.at(path.parent / "run")
    place = Place(output / card.folder, 0, output / "rejects")
    batch = {"image_id": np.array(ids, object), "content": np.array([f"of {i}" for i in ids], object)}
    write_votes(batch, tables, place, card)
    making = Making(CandidatesConfig(), NONE, NONE, None, 0)
    votes: dict[str, Any] = {}
    mean: dict[str, Any] = {}
    for part in parts(place.folder):
        evidence = read_evidence(part, place.folder, card, None, making)
        votes |= dict(zip(evidence.image_ids, evidence.votes.tolist(), strict=True))
        mean |= dict(zip(evidence.image_ids, evidence.mean.tolist(), strict=True))
    return Outcome(votes, mean, notes, card, output)


def write(path: Path, content: Any) -> Path:
    """A file of votes by its ending: text, or lines for Parquet and JSON Lines."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wide.csv", WIDE),
        ("list.jsonl", [{"image_id": i, "votes": v} for i, v in VOTES.items()]),
        ("wide.jsonl", [{"image_id": "a.png", "ann": "cat", "bob": 1}, {"image_id": "b.png", "ann": 0},
                        {"image_id": "c.png", "bob": None, "ann": "dog"}]),
        ("wide.parquet", [{"image_id": i, "ann": float(v[0]), "bob": None if v[1] < 0 else float(v[1])}
                          for i, v in VOTES.items()]),
        ("list.parquet", [{"image_id": i, "votes": [None if n < 0 else n for n in v]} for i, v in VOTES.items()]),
        ("long.csv", "image_id,voter,vote\nc.png,ann,dog\na.png,ann,kitty\na.png,bob,dog\nb.png,ann,0\nb.png,bob,\n"),
    ],
)  # fmt: skip
def test_every_form_of_votes_says_the_same(name: str, content: Any, tmp_path: Path) -> None:
    outcome = annotate(write(tmp_path / name, content), buckets=3)
    assert outcome.votes == VOTES
    assert outcome.card.prompts == (("0", "1") if name.startswith("list") else ("ann", "bob"))
    assert (outcome.notes.lines, outcome.notes.matched) == ((4, 4) if name == "long.csv" else (3, 3))


def test_files_are_one_table_and_lists_take_the_names_that_are_given(tmp_path: Path) -> None:
    folder = tmp_path / "votes"
    folder.mkdir()
    write(folder / "1.csv", "image_id,ann,bob\na.png,cat,\n")
    write(folder / "2.csv", "image_id,bob,ann\nb.png,,cat\na.png,dog,\nc.png,-1,dog\n")  # bob sees a.png later
    assert annotate(folder).votes == VOTES
    path = write(tmp_path / "list.jsonl", [{"image_id": "a.png", "votes": ["cat", "dog"]}])
    assert annotate(path, voters=["x", "y"]).card.prompts == ("x", "y")
    assert annotate(write(tmp_path / "wide.csv", WIDE), voters=["bob"]).votes == {"a.png": [1]}


def test_a_class_whose_name_is_a_number_is_meant_by_it(tmp_path: Path) -> None:
    assert annotate(write(tmp_path / "v.csv", "image_id,ann\na.png,7\nb.png,2\n")).votes == {"a.png": [2], "b.png": [2]}


def test_probabilities_and_logits_make_the_mean_and_the_votes_where_there_are_none(tmp_path: Path) -> None:
    ann, bob = [0.7, 0.2, 0.1], [0.1, 0.6, 0.3]
    lines = [
        {"image_id": "a.png", "probabilities": ann + bob},
        {"image_id": "b.png", "probabilities": ann + [None] * 3},
    ]
    outcome = annotate(write(tmp_path / "p.jsonl", lines), scores="probabilities", voters=["ann", "bob"])
    assert outcome.votes == {"a.png": [0, 1], "b.png": [0, -1]}
    assert outcome.mean["a.png"] == pytest.approx([0.4, 0.4, 0.2], abs=1e-3)
    assert outcome.mean["b.png"] == pytest.approx(ann, abs=1e-3)
    logits = [{"image_id": "a.png", "votes": ["dog", None], "logits": np.log(ann + bob).tolist()}]
    outcome = annotate(write(tmp_path / "l.parquet", logits), scores="logits")
    assert outcome.votes == {"a.png": [1, -1]}  # what is said outweighs what is largest
    assert outcome.mean["a.png"] == pytest.approx([0.4, 0.4, 0.2], abs=1e-3)


def test_what_is_on_one_side_alone_is_counted_named_and_kept_out(tmp_path: Path) -> None:
    outcome = annotate(write(tmp_path / "v.csv", WIDE + "x.png,cat,cat\ny.png,,dog\n"))
    assert (outcome.notes.lines, outcome.notes.matched) == (5, 3)
    (line,) = outcome.notes.told("v.csv")
    assert "2 of 5 answers in v.csv are about images that the pool does not hold ('x.png', 'y.png')" in line
    assert sorted(outcome.votes) == ["a.png", "b.png", "c.png"]
    rejects = outcome.folder / "rejects"
    assert without_vote(rejects, outcome.card.folder) == (1, ["d.png"])
    (part,) = parts(rejects)
    assert read_table(rejects, part.name)["reason"].to_pylist() == [f"no vote in {outcome.card.folder}"]


def test_an_image_without_vote_is_no_reject_to_others_nor_to_the_next_run(tmp_path: Path) -> None:
    outcome = annotate(write(tmp_path / "v.csv", WIDE))
    rejects, answered = outcome.folder / "rejects", outcome.folder / outcome.card.folder
    assert len(settled_keys(outcome.folder / "another", rejects)) == 0
    assert len(settled_keys(answered, rejects)) == 3
    drop_answered(rejects, [answered])
    assert without_vote(rejects, outcome.card.folder)[0] == 1  # nobody else has answered
    other = annotate(write(tmp_path / "w.csv", "image_id,eve\nd.png,cat\n"))
    drop_answered(rejects, [answered, outcome.folder / other.card.folder])
    assert parts(rejects) == []
    annotate(tmp_path / "v.csv")
    try_again(rejects, all_of_them=False)
    assert parts(rejects) == []


def test_other_votes_other_settings_and_other_classes_are_another_annotator(tmp_path: Path) -> None:
    path = write(tmp_path / "v.csv", WIDE)
    before = describe(str(path), None, "votes", WORDS)
    write(tmp_path / "moved.csv", WIDE)
    assert describe(str(tmp_path / "moved.csv"), None, "votes", WORDS).folder == before.folder
    assert describe(str(path), ["ann"], "votes", WORDS).folder != before.folder
    more = Vocabulary((*WORDS.names, ("cow",)), WORDS.prompts)
    assert describe(str(path), None, "votes", more).folder != before.folder
    write(path, WIDE.replace("dog", "cat"))
    assert describe(str(path), None, "votes", WORDS).folder != before.folder


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("v.csv", "", {}, "holds no line"),
        ("v.csv", "image_id,ann\n", {}, "holds no line"),
        ("v.csv", "image_id,ann\na.png,\nb.png,-1\n", {}, "holds no vote: every cell is empty, null or -1"),
        ("v.csv", "name,ann\na.png,cat\n", {}, "has the columns name, ann; it needs image_id"),
        ("v.csv", "image_id\na.png\n", {}, "names no voter"),
        ("v.csv", "image_id,ann\nx.png,cat\ny.png,dog\n", {},
         r"it is about 'x.png', 'y.png', the pool holds 'a.png', 'b.png', 'c.png', 'd.png'"),
        ("v.csv", "image_id,ann,bob\na.png,cat,zebra\nb.png,cow,zebra\nc.png,dog,cat\n", {},
         r"3 votes are for no class of source.classes: 'zebra' \(2\), 'cow' \(1\)"),
        ("v.csv", "image_id,ann,why\na.png,cat,nice fur\nb.png,dog,it barks\n", {},
         "nothing in the column 'why' is a class .*name the voters' columns with annotator.voters"),
        ("v.csv", "image_id,ann\na.png,cat\nb.png,3\n", {}, r"for no class of source.classes: '3' \(1\)"),
        ("v.csv", "image_id,ann\na.png,cat\na.png,dog\n", {},
         "1 pairs of image and voter occur more than once, for example 'a.png' and 'ann'"),
        ("v.csv", "image_id,voter,vote\na.png,ann,cat\na.png,ann,cat\n", {}, "for example 'a.png' and 'ann'"),
        ("v.csv", "image_id,voter,vote\na.png,,cat\nb.png,ann,cat\n", {}, "a vote without a voter"),
        ("v.csv", "image_id,ann\n,cat\n", {}, "a line without image_id"),
        ("v.csv", "image_id,ann\na,b.png,cat\n", {}, "3 cells for 2 columns"),
        ("v.csv", WIDE, {"voters": ["eve"]}, "has no voter 'eve'; it has ann, bob"),
        ("v.csv", WIDE, {"voters": ["bob", "bob"]}, "names a voter twice"),
        ("v.csv", WIDE, {"scores": "logits"}, "has no column 'logits'"),
        ("v.txt", WIDE, {}, r"give one that ends in .parquet, .csv"),
        ("v.jsonl", [{"image_id": "a.png", "votes": [0, 1]}, {"image_id": "b.png", "votes": [0]}], {},
         "votes of image 'b.png' has 1 entries for 2 voters"),
        ("v.jsonl", [{"image_id": "a.png", "votes": [0, 1]}], {"voters": ["ann"]},
         "names 1 voters, but .*votes holds 2"),
        ("v.jsonl", [{"image_id": "a.png", "votes": "cat"}], {}, "votes holds no list but 'cat'"),
        ("v.jsonl", [["a.png", "cat"]], {}, "line 1, is no JSON object"),
        ("v.jsonl", [{"image_id": "a.png", "ann": True}], {},
         r"nothing in the column 'ann' is a class \('True' \(1\)\)"),
        ("v.jsonl", [{"image_id": "a.png", "probabilities": [0.5, 0.4, 0.3]}], {"scores": "probabilities"},
         r"of voter '0' for image 'a.png' are no 3 shares that sum to one \(their sum is 1.2\)"),
        ("v.jsonl", [{"image_id": "a.png", "probabilities": [1.2, -0.2, 0.0]}], {"scores": "probabilities"},
         "no 3 shares"),
        ("v.jsonl", [{"image_id": "a.png", "probabilities": [0.5, 0.2, 0.2, 0.1]}], {"scores": "probabilities"},
         "4 numbers a line, which is no multiple of the 3 classes; write 3 for 1 voter"),
        ("v.jsonl", [{"image_id": "a.png", "votes": [0, 1], "logits": [0, 0, 1]}], {"scores": "logits"},
         "holds 3 numbers; 2 voters and 3 classes need 6"),
        ("v.jsonl", [{"image_id": "a.png", "logits": [0, float("nan"), 1]}], {"scores": "logits"}, "are not finite"),
    ],
)  # fmt: skip
def test_votes_that_cannot_be_meant_are_refused(
    name: str, content: Any, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        annotate(write(tmp_path / name, content), **settings)


def test_what_would_be_unpickled_is_refused_and_formulas_are_names(tmp_path: Path) -> None:
    (tmp_path / "v.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        annotate(tmp_path / "v.parquet")
    assert annotate(write(tmp_path / "v.csv", "image_id,ann\n'=a.png,cat\n"), ids=["=a.png"]).votes == {"=a.png": [0]}


def test_the_annotation_table_is_that_of_any_annotator(tmp_path: Path) -> None:
    outcome = annotate(write(tmp_path / "v.csv", WIDE))
    folder = outcome.folder / outcome.card.folder
    (part,) = parts(folder)
    table = read_table(folder, part.name)
    assert table.column_names == ["image_id", "content", "annotator", "votes"]
    assert matrix(table["votes"], np.int32).shape == (3, 2)
    assert part.text == outcome.card.text
