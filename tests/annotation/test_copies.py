"""Exact copies of an image that annotators have answered differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coreg_ray.annotation.arrow import write_table
from coreg_ray.annotation.copies import Copies, different_copies, marks
from coreg_ray.annotation.parts import Part, annotation_table, parts
from coreg_ray.run.storage import Folder

VOTES = {
    "a": ("1", [0, 0, 2]),
    "b": ("1", [2, 0, 0]),  # the same votes in another order
    "c": ("2", [1, 1, 1]),
    "d": ("3", [1, 1, 1]),  # another picture
    "e": ("2", [1, 1, 0]),
    "f": ("2", [1, 1, 1]),
    "g": ("4", [0, -1, 0]),
    "h": ("4", [0, 1, 0]),
}


def table(place: Path) -> Folder:
    """Two parts, so that copies lie in different ones."""
    folder = Folder.at(place)
    for number, ids in enumerate((["a", "c", "d", "g"], ["b", "e", "f", "h"])):
        contents = [VOTES[entry][0] * 32 for entry in ids]
        votes = np.array([VOTES[entry][1] for entry in ids], np.int32)
        write_table(folder, Part(0, f"{number}" * 16, "x").name, annotation_table(ids, contents, "toy", votes))
    return folder


def copies(folder: Folder, places: list[int] | None = None) -> Copies:
    there = parts(folder)
    marked = [marks([part], folder, places) for part in there]
    return different_copies(there, folder, np.concatenate([marks([], folder), *marked]))


def test_copies_with_other_votes_are_counted_and_named(tmp_path: Path) -> None:
    made = copies(table(tmp_path))
    assert (made.images, made.groups) == (5, 2)  # c, e and f, and g and h
    assert {frozenset(pair) for pair in made.named} <= {frozenset("ce"), frozenset("ef"), frozenset("gh")}
    warning = made.warning() or ""
    assert "5 images are exact copies of others and have other votes than they (2 different pictures" in warning
    assert all(repr(name) in warning for pair in made.named for name in pair)


def test_only_the_prompts_that_count_are_compared(tmp_path: Path) -> None:
    made = copies(table(tmp_path), places=[0, 2])
    assert (made.images, made.groups) == (3, 1)


def test_nothing_is_said_of_copies_that_agree(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    votes = np.array([[0, 1], [1, 0]], np.int32)
    write_table(folder, Part(0, "0" * 16, "x").name, annotation_table(["a", "b"], ["1" * 32] * 2, "toy", votes))
    assert copies(folder) == Copies(0, 0, [])
    assert copies(folder).warning() is None
    assert copies(Folder.at(tmp_path / "empty")) == Copies(0, 0, [])
