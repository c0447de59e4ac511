"""Test images that lie in the pool are found by their contents, whatever they are called."""

from __future__ import annotations

from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pyarrow as pa

from coreg_ray.annotation.arrow import write_table
from coreg_ray.annotation.overlap import found_in, scored_contents
from coreg_ray.annotation.parts import Part, annotation_table, parts
from coreg_ray.ids import content_hash, row_numbers
from coreg_ray.run.records import Overlap
from coreg_ray.run.storage import Folder


def write(folder: Folder, images: dict[str, str], part: int = 0) -> None:
    """A part of a table: image_id -> what stands for its bytes."""
    contents = [content_hash(content.encode()) for content in images.values()]
    table = annotation_table(list(images), contents, "toy", np.zeros((len(images), 2), np.int32))
    write_table(folder, Part(part, f"{part:016x}", "x").name, table)


def found(tmp_path: Path, pool: list[dict[str, str]], test: list[dict[str, str]], labelled: list[str]) -> list[bool]:
    root = Folder.at(tmp_path)
    for number, images in enumerate(pool):
        write(root / "pool", images, number)
    for number, images in enumerate(test):
        write(root / f"test-{number}", images)
    rows = pa.table({"row": row_numbers(labelled), "label": np.zeros(len(labelled), np.int32)})
    write_table(root / "labels", "labels.parquet", rows)
    scored = scored_contents([root / f"test-{number}" for number in range(len(test))], root / "labels")
    masks = [found_in(part, root / "pool", scored) for part in parts(root / "pool")]
    return sorted(reduce(add, masks).tolist())


def test_copies_are_counted_whatever_their_names_and_their_part(tmp_path: Path) -> None:
    pool = [{"a": "one", "b": "two"}, {"c": "three", "d": "one"}]
    test = {"x": "three", "y": "other", "z": "one", "again": "one", "b": "new bytes under an old name"}
    assert found(tmp_path, pool, [test], list(test)) == [False, False, True, True, True]


def test_only_what_scores_counts_and_once_for_all_annotators(tmp_path: Path) -> None:
    test = {"x": "one", "y": "two", "unlabelled": "three"}
    assert found(tmp_path, [{"a": "one", "b": "three"}], [test, test], ["x", "y"]) == [False, True]


def test_nothing_to_compare_is_no_overlap(tmp_path: Path) -> None:
    assert found(tmp_path, [{"a": "one"}], [], []) == []


def test_it_is_said_in_one_sentence_where_there_is_something_to_say() -> None:
    assert Overlap(10, 0).words() == ""
    assert Overlap.of({}).words() == ""
    overlap = Overlap(40, 10)
    assert overlap.metrics() == {"test/images": 40, "test/images_in_pool": 10}
    assert Overlap.of(overlap.metrics()) == overlap
    assert overlap.words().startswith("10 of the 40 test images (25%) lie in the pool too, byte for byte")
