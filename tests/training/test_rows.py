"""Ragged rows against dense ones, and rows and images as they come from stored tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from coreg_ray.annotation.rejects import record_rejects
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.pure.losses import informative
from coreg_ray.pure.rng import generator
from coreg_ray.run.folder import RunFolder
from coreg_ray.training.read_rows import Selection, load_images, load_rows
from coreg_ray.training.read_sets import Wanted
from coreg_ray.training.rows import Rows, make_rows, part_of, pixel_sums

CPU = torch.device("cpu")
SIDE, CLASSES = 4, 5
LIMIT = 10**9


@dataclass
class Dense:
    """The same rows without any trick, in the order in which they were made."""

    numbers: Tensor
    pixels: Tensor
    candidates: Tensor
    trusted: Tensor


def dense(count: int, seed: int = 0) -> Dense:
    random = generator(seed)
    candidates = torch.rand(count, CLASSES, generator=random) < 0.4
    candidates[torch.arange(count), torch.randint(0, CLASSES, (count,), generator=random)] = True
    return Dense(
        torch.randint(0, 2**63 - 1, (count,), generator=random),
        torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=random).to(torch.uint8),
        candidates,
        torch.rand(count, generator=random) < 0.2,
    )


def by_number(data: Dense) -> Dense:
    order = sorted(range(len(data.numbers)), key=lambda i: int(data.numbers[i]))
    return Dense(data.numbers[order], data.pixels[order], data.candidates[order], data.trusted[order])


def rows_of(data: Dense) -> Rows:
    return make_rows(data.numbers, data.pixels, data.candidates, data.trusted)


def same(rows: Rows, data: Dense) -> None:
    everything = torch.arange(len(rows))
    assert torch.equal(rows.numbers, data.numbers)
    assert torch.equal(rows.pixels, data.pixels)
    assert torch.equal(rows.candidates(everything, CPU), data.candidates)
    assert torch.equal(rows.trusted, data.trusted)


def test_rows_lie_in_the_order_of_their_numbers() -> None:
    data = dense(30)
    same(rows_of(data), by_number(data))
    assert not make_rows(data.numbers, data.pixels, data.candidates).trusted.any()


def test_candidates_of_any_batch() -> None:
    data = by_number(dense(30))
    rows = rows_of(data)
    for index in (torch.tensor([7, 3, 3, 29, 0]), torch.tensor([12]), torch.empty(0, dtype=torch.int64)):
        assert torch.equal(rows.candidates(index, CPU), data.candidates[index])


def test_entries_name_the_place_of_every_candidate() -> None:
    data = by_number(dense(20))
    rows = rows_of(data)
    index = torch.tensor([4, 19, 4, 0])
    entries = [(int(r), int(rows.indices[p])) for r, p in zip(*rows.entries(index), strict=True)]
    assert entries == [(r, k) for r, i in enumerate(index) for k in range(CLASSES) if data.candidates[i, k]]


def test_scatter_and_gather_are_inverse() -> None:
    data = by_number(dense(20))
    rows = rows_of(data)
    index = torch.tensor([5, 18, 2])
    table = torch.rand(20, CLASSES, generator=generator(1)) * data.candidates
    values = torch.cat([table[i, data.candidates[i]] for i in range(20)])  # ragged, of all rows
    assert torch.equal(rows.scatter(index, values, CPU), table[index])
    position, gathered = rows.gather(index, table[index])
    assert torch.equal(values[position], gathered)
    again = torch.zeros_like(values)
    again[position] = gathered
    assert torch.equal(rows.scatter(index, again, CPU), table[index])


def test_weights_lie_beside_their_candidates() -> None:
    data = dense(20)
    weights = (torch.rand(20, CLASSES, generator=generator(2)) * data.candidates).half()
    weights[3] = data.candidates[3].half()
    order = torch.argsort(data.numbers)
    rows = make_rows(data.numbers, data.pixels, data.candidates, weights=weights)
    index = torch.tensor([5, 18, 2])
    for some in (rows, part_of(rows, 0, 1)):
        assert torch.equal(some.weights_of(index, CPU), weights[order][index])  # type: ignore[arg-type]
    assert rows_of(data).weights_of(index, CPU) is None


def test_rows_that_say_something_are_those_that_the_loss_counts() -> None:
    candidates = torch.tensor([[True, False, True], [True, True, True], [True, True, True]])
    weights = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.5, 1.0]]).half()
    pixels = torch.zeros(3, SIDE, SIDE, 3, dtype=torch.uint8)
    for given, expected in ((None, [True, False, False]), (weights, [True, False, True])):
        rows = make_rows(torch.arange(3), pixels, candidates, weights=given)
        assert rows.informative.tolist() == informative(candidates, given).tolist() == expected


def test_a_row_without_candidates_and_one_with_all() -> None:
    candidates = torch.zeros(3, CLASSES, dtype=torch.bool)
    candidates[1] = True
    rows = make_rows(torch.arange(3), torch.zeros(3, SIDE, SIDE, 3, dtype=torch.uint8), candidates)
    assert torch.equal(rows.candidates(torch.tensor([2, 1, 0]), CPU), candidates[[2, 1, 0]])


def test_images_are_taken_channels_first_in_number_channels_last_in_memory() -> None:
    data = by_number(dense(6))
    batch = rows_of(data).take(torch.tensor([5, 1]), CPU)
    assert torch.equal(batch, data.pixels[[5, 1]].permute(0, 3, 1, 2))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_pixel_sums_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreg_ray.training.rows._BLOCK_VALUES", 1000)
    pixels = torch.randint(0, 256, (5000, 2, 2, 3), generator=generator(0)).to(torch.uint8)
    sums = pixel_sums(pixels)
    values = pixels.reshape(-1, 3).to(torch.int64)
    assert sums.tolist() == [*values.sum(0).tolist(), *(values**2).sum(0).tolist(), 20000]


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_parts_are_a_partition_by_row_number(replicas: int) -> None:
    data = by_number(dense(40))
    parts = [part_of(rows_of(data), replica, replicas) for replica in range(replicas)]
    assert sorted(int(n) for part in parts for n in part.numbers) == data.numbers.tolist()
    for replica, part in enumerate(parts):
        mine = data.numbers % replicas == replica
        same(part, Dense(data.numbers[mine], data.pixels[mine], data.candidates[mine], data.trusted[mine]))


# Rows from stored tables.


def store(folder: Path, data: Dense, split: str = "pool", parts: int = 3) -> RunFolder:
    """Images and candidate sets in unequal files; the sets in another order than the images."""
    numbers, table = data.numbers.tolist(), list(range(len(data.numbers)))
    edges = [
        0,
        *sorted(torch.randperm(len(numbers) - 1, generator=generator(9))[: parts - 1].add(1).tolist()),
        len(numbers),
    ]
    for part in range(parts):
        mine = table[edges[part] : edges[part + 1]]
        images = [data.pixels[i].numpy().tobytes() for i in mine]
        write(folder / f"rows/{split}/{part}.parquet", {"row": [numbers[i] for i in mine], "image": images})
    backwards = list(reversed(table))
    for part, mine in enumerate((backwards[: len(numbers) // 4], backwards[len(numbers) // 4 :])):
        sets = pa.array([data.candidates[i].nonzero()[:, 0].tolist() for i in mine], pa.list_(pa.int32()))
        weights = pa.array([weight(data)[i, data.candidates[i]].numpy() for i in mine], pa.list_(pa.float16()))
        write(
            folder / f"candidates/{part}.parquet",
            {
                "row": [numbers[i] for i in mine], "candidates": sets, "weights": weights,
                "trusted": [bool(data.trusted[i]) for i in mine],
            },
        )  # fmt: skip
    return RunFolder.at(folder)


def weight(data: Dense) -> Tensor:
    """A weight for every class of every row, by its number (N, K) float16."""
    return ((data.numbers[:, None] % 7 + torch.arange(CLASSES)) / 16).half()


def write(path: Path, columns: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path)


def test_stored_rows_are_the_same_rows(tmp_path: Path) -> None:
    data = dense(50)
    same(load_rows(store(tmp_path, data), CLASSES, SIDE, Selection(), LIMIT), by_number(data))


def test_stored_weights_are_read_where_they_count(tmp_path: Path) -> None:
    data = dense(50)
    run, everything = store(tmp_path, data), torch.arange(50)
    assert load_rows(run, CLASSES, SIDE, Selection(), LIMIT).weights is None
    rows = load_rows(run, CLASSES, SIDE, Selection(), LIMIT, which=Wanted(weighted=True))
    same(rows, by_number(data))
    expected = weight(by_number(data)) * by_number(data).candidates
    assert torch.equal(rows.weights_of(everything, CPU), expected)  # type: ignore[arg-type]


def test_images_that_are_of_no_class_are_not_trained_on(tmp_path: Path) -> None:
    data = dense(50)
    run = store(tmp_path, data)
    for path in sorted((tmp_path / "candidates").iterdir())[:1]:  # in a file that knows of it, beside one that does not
        table = pq.read_table(path)
        marked = pa.array([number < 3 for number in range(len(table))])
        pq.write_table(table.append_column("excluded", marked), path)
        left_out = table["row"].to_pylist()[:3]
    kept = ~torch.isin(data.numbers, torch.tensor(left_out))
    rows = load_rows(run, CLASSES, SIDE, Selection(), LIMIT)
    same(rows, by_number(Dense(data.numbers[kept], data.pixels[kept], data.candidates[kept], data.trusted[kept])))


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    data = dense(50)
    one, other = store(tmp_path / "1", data, parts=1), store(tmp_path / "2", data, parts=7)
    same(load_rows(one, CLASSES, SIDE, Selection(), LIMIT), by_number(data))
    same(load_rows(other, CLASSES, SIDE, Selection(), LIMIT), by_number(data))


def test_each_replica_reads_its_part_and_nobody_the_held_out(tmp_path: Path) -> None:
    data = by_number(dense(80))
    output = store(tmp_path, data)
    out = data.numbers < 0.25 * 2**63
    assert 5 < out.sum() < 40
    for replica in range(2):
        mine = ~out & (data.numbers % 2 == replica)
        rows = load_rows(output, CLASSES, SIDE, Selection(replica, 2, start=0.25), LIMIT)
        same(rows, Dense(data.numbers[mine], data.pixels[mine], data.candidates[mine], data.trusted[mine]))
    held_out = load_images(output, "pool", SIDE, Selection(end=0.25), LIMIT)
    assert torch.equal(held_out.numbers, data.numbers[out])
    assert torch.equal(held_out.pixels, data.pixels[out])


def test_without_a_holdout_every_row_is_trained_on() -> None:
    numbers = torch.tensor([0, 1, 2**63 - 1]).numpy()
    assert Selection().mask(numbers).tolist() == [True, True, True]
    assert Selection(end=0).mask(numbers).tolist() == [False, False, False]
    assert Selection(start=0.5).mask(numbers).tolist() == [False, False, True]
    assert Selection(start=0.0, end=0.5).mask(numbers).tolist() == [True, True, False]


def test_large_images_are_mapped_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = by_number(dense(50))
    output = store(tmp_path, data)
    size = 50 * SIDE * SIDE * 3
    with caplog.at_level(logging.INFO, "coreg_ray"):
        same(load_rows(output, CLASSES, SIDE, Selection(), size), data)
        assert "pool: 50 images, 0.0 MB in memory" in caplog.text
        assert "memory-mapped" not in caplog.text
        mapped = load_rows(output, CLASSES, SIDE, Selection(), size - 1)
        assert "pool: 50 images, 0.0 MB memory-mapped at" in caplog.text
    same(mapped, data)
    assert torch.equal(mapped.take(torch.tensor([49, 0]), CPU), data.pixels[[49, 0]].permute(0, 3, 1, 2))


def test_labels_come_along_only_where_rows_score(tmp_path: Path) -> None:
    data = dense(20)
    output = store(tmp_path, data, split="test")
    store(tmp_path, data)
    labels = torch.randint(0, CLASSES, (20,), generator=generator(2))
    known = list(reversed(range(3, 20)))  # another order, three unknown, and one of an image that is not there
    rows = [*data.numbers[known].tolist(), 2**63 - 1]
    for split in ("test", "pool"):
        write(tmp_path / f"labels/{split}/0.parquet", {"row": rows, "label": [*labels[known].tolist(), 1]})
    expected = {int(n): -1 if i < 3 else int(labels[i]) for i, n in enumerate(data.numbers)}
    images = load_images(output, "test", SIDE, Selection(), LIMIT)
    assert images.labels is not None
    assert dict(zip(images.numbers.tolist(), images.labels.tolist(), strict=True)) == expected
    assert load_images(output, "pool", SIDE, Selection(), LIMIT).labels is None
    (tmp_path / "labels/test/0.parquet").unlink()
    (tmp_path / "labels/test").rmdir()
    assert load_images(output, "test", SIDE, Selection(), LIMIT).labels is None


def test_another_resolution_is_refused(tmp_path: Path) -> None:
    output = store(tmp_path, dense(10))
    with pytest.raises(UserError, match=r"rows/pool does not hold 8 px images; remove it and give the command again"):
        load_rows(output, CLASSES, 8, Selection(), LIMIT)


def test_images_and_candidate_sets_belong_together(tmp_path: Path) -> None:
    output = store(tmp_path, dense(12))
    (tmp_path / "candidates/0.parquet").unlink()
    with pytest.raises(UserError, match="12 images and 9 candidate sets do not belong to the same rows"):
        load_rows(output, CLASSES, SIDE, Selection(), LIMIT)
    output = store(tmp_path / "other", dense(12))
    numbers = pq.read_table(tmp_path / "other/candidates/0.parquet").column("row").to_pylist()
    table = {"row": [1, *numbers[1:]], "candidates": [[0]] * len(numbers), "trusted": [False] * len(numbers)}
    write(tmp_path / "other/candidates/0.parquet", table)
    with pytest.raises(UserError, match="12 images and 12 candidate sets do not belong to the same rows"):
        load_rows(output, CLASSES, SIDE, Selection(), LIMIT)


def test_an_image_that_is_a_reject_may_have_pixels_and_no_set(tmp_path: Path) -> None:
    data, ids = dense(12), [f"{number}.png" for number in range(12)]
    data.numbers = torch.from_numpy(row_numbers(ids))
    output = store(tmp_path, data)
    path = tmp_path / "candidates/0.parquet"
    sets = pq.read_table(path)
    without = ids[data.numbers.tolist().index(sets["row"][0].as_py())]
    pq.write_table(sets.slice(1), path)
    with pytest.raises(UserError, match="12 images and 11 candidate sets do not belong to the same rows"):
        load_rows(output, CLASSES, SIDE, Selection(), LIMIT)
    record_rejects(output.rejects("pool"), [(without, "c", "not finite"), (ids[0], "c", "another annotator's")], 0)
    kept = [number for number in range(12) if ids[number] != without]
    left = Dense(data.numbers[kept], data.pixels[kept], data.candidates[kept], data.trusted[kept])
    same(load_rows(output, CLASSES, SIDE, Selection(), LIMIT), by_number(left))


def test_a_replica_without_rows_says_so(tmp_path: Path) -> None:
    data = dense(6)
    data.numbers = torch.arange(6) * 2
    with pytest.raises(UserError, match="replica 1 of 2 has no rows; use fewer workers"):
        load_rows(store(tmp_path, data), CLASSES, SIDE, Selection(1, 2), LIMIT)


def test_one_worker_without_rows_is_not_told_to_use_fewer(tmp_path: Path) -> None:
    for holdout, reason in (
        (0.0, "has no image to train on; give more images"),
        (0.5, "since source.holdout=0.5 keeps"),
    ):
        with pytest.raises(UserError, match=reason) as refusal:
            load_rows(RunFolder.at(tmp_path / "empty"), CLASSES, SIDE, Selection(start=holdout), LIMIT)
        assert "workers" not in str(refusal.value)
