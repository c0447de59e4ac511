"""The sample that choices and reports are made on: from all over the source, whatever its order and its parts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from coreg_ray.annotation.arrow import lists, read_table, write_table
from coreg_ray.ids import held_out, row_numbers
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.training import sample as sampling
from coreg_ray.training.sample import Sample, Samples, read_sample

SIDE, CLASSES, EACH = 2, 40, 50
IDS = [f"class {number // EACH:02d}/{number % EACH:03d}.png" for number in range(CLASSES * EACH)]  # sorted by class
NUMBERS = row_numbers(IDS)


def pixels_of(number: int) -> bytes:
    """Pixels that tell whose they are."""
    return int(number).to_bytes(8, "little") + bytes(SIDE * SIDE * 3 - 8)


def written(folder: Path, part: int, order: np.ndarray | None = None) -> RunFolder:
    """Rows and candidate sets of all images in parts of `part` images; the candidate is the class."""
    output, order = RunFolder.at(folder), np.arange(len(IDS)) if order is None else order
    for start in range(0, len(IDS), part):
        mine = order[start : start + part]
        pixels = pa.array([pixels_of(number) for number in NUMBERS[mine]], pa.binary(SIDE * SIDE * 3))
        write_table(output / "rows/pool", f"{start:05d}.parquet", pa.table({"row": NUMBERS[mine], "image": pixels}))
        one = np.ones(len(mine), np.int64)
        table = pa.table(
            {
                "row": NUMBERS[mine],
                "image_id": [IDS[place] for place in mine],
                "candidates": lists(one, (mine // EACH).astype(np.int32)),
                "votes": lists(one, one.astype(np.int32)),
                "scores": lists(one, one.astype(np.float16)),
                "trusted": pa.array(mine % 10 == 0),
            }
        )
        write_table(output / "candidates", f"{start:05d}.parquet", table)
    return output


def read(output: RunFolder, most: int) -> Sample:
    sample = read_sample(output, "pool", SIDE, CLASSES, most)
    assert sample is not None
    return sample


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return written(tmp_path_factory.mktemp("run"), EACH)


def test_a_source_sorted_by_class_gives_a_sample_of_all_classes(output: RunFolder) -> None:
    sample = read(output, 400)
    counts = torch.bincount(sample.annotated, minlength=CLASSES)
    assert (len(sample), sample.total) == (400, len(IDS))
    assert counts.min() >= 3  # 10 expected
    assert counts.max() <= 20


def test_an_image_of_no_class_has_no_candidate_set(tmp_path: Path) -> None:
    output = written(tmp_path, 1000)
    name = (output / "candidates").entries()[0]
    table = read_table(output / "candidates", name)
    marked = pa.array(np.arange(len(table)) < 500)
    write_table(output / "candidates", name, table.append_column("excluded", marked))
    sample = read(output, len(IDS))
    excluded = np.isin(sample.numbers, NUMBERS[:500])
    assert excluded.sum() == 500
    assert (sample.candidates.any(dim=1).numpy() == ~excluded).all()
    assert (sample.annotated[torch.from_numpy(excluded)] == -1).all()


def test_it_is_of_held_out_images_and_others_alike(output: RunFolder) -> None:
    """The smallest row numbers are the held-out ones: a sample of these would hold nothing else."""
    share = read(output, 400).held_out(0.2).mean()
    assert share == pytest.approx(held_out(NUMBERS, 0.2).mean(), abs=0.06)


def test_each_image_comes_with_its_own_pixels_id_and_set(output: RunFolder) -> None:
    sample = read(output, 300)
    assert sample.numbers.tolist() == row_numbers(sample.ids).tolist()
    assert len(set(sample.ids)) == 300
    shown = sample.pixels.permute(0, 2, 3, 1).reshape(300, -1).numpy()
    assert [row.tobytes() for row in shown] == [pixels_of(number) for number in sample.numbers]
    places = [IDS.index(name) for name in sample.ids]
    assert sample.annotated.tolist() == [place // EACH for place in places]
    assert sample.candidates.nonzero()[:, 1].tolist() == sample.annotated.tolist()
    assert sample.trusted.tolist() == [place % 10 == 0 for place in places]


def test_parts_and_their_order_do_not_matter(output: RunFolder, tmp_path: Path) -> None:
    other = written(tmp_path, 333, np.random.default_rng(0).permutation(len(IDS)))
    one, two = read(output, 250), read(other, 250)
    assert one.ids == two.ids
    assert torch.equal(one.pixels, two.pixels)


def test_the_first_images_of_a_sample_are_the_smaller_sample(output: RunFolder) -> None:
    """Who has no time for all of them has still looked all over the source."""
    assert read(output, 60).ids == read(output, 400).ids[:60]


def test_all_images_where_there_are_no_more(output: RunFolder) -> None:
    assert sorted(read(output, 10_000).ids) == IDS
    assert read_sample(output, "pool", SIDE, CLASSES, 0) is None
    assert read_sample(output, "test", SIDE, CLASSES, 10) is None


def test_pixels_are_read_only_of_parts_that_hold_one_of_the_sample(
    output: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    table = sampling.read_table

    def counting(folder: Folder, name: str, columns: list[str]) -> pa.Table:
        opened.extend(name for column in columns if column == "image")
        return table(folder, name, columns)

    monkeypatch.setattr(sampling, "read_table", counting)
    places = [IDS.index(name) for name in read(output, 5).ids]
    assert sorted(opened) == sorted({f"{place // EACH * EACH:05d}.parquet" for place in places})


def test_two_threads_that_ask_at_once_read_a_split_once(output: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    both, read = threading.Barrier(2), []

    def slow(*given: Any) -> Sample | None:
        read.append(given)
        time.sleep(0.05)
        return read_sample(*given)

    def ask(count: int) -> int:
        both.wait(20)
        return len(samples.of("pool", count) or ())

    monkeypatch.setattr(sampling, "read_sample", slow)
    samples = Samples(output, SIDE, CLASSES, most=20)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(ask, [10, 20])) == [10, 20]
    assert len(read) == 1


def test_where_all_pixels_are_too_many_parts_are_drawn_first(
    output: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_READ", 10 * EACH * SIDE * SIDE * 3)
    sample = read(output, 200)
    assert (len(sample), sample.total) == (200, len(IDS))
    classes = set(sample.annotated.tolist())
    assert len(classes) == 10  # each part is a class
    assert classes != set(range(10))
    monkeypatch.setattr(sampling, "MOST_READ", 1)
    assert len(read(output, 200)) == EACH
