"""How a method's memory lies in a checkpoint's files and comes back from those of a team of another size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray.training import remembered
from coreg_ray.training.memory import kept, parts
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import Queue


@dataclass
class Memory:
    """One part of each way of being kept, but a network."""

    common: Tensor = kept("team")
    by_row: Tensor = kept("rows", unknown=-1)
    history: Tensor = kept("rows", unknown=torch.nan)
    by_candidate: Tensor = kept("candidates")
    queue: Queue = kept("ring")
    later: Tensor | None = kept("team", default=None)


def memory(rows: int, candidates: int, history: int = 2) -> Memory:
    return Memory(
        common=torch.zeros(3),
        by_row=torch.full((rows,), -1),
        history=torch.full((history, rows), torch.nan),
        by_candidate=torch.full((candidates,), 0.5, dtype=torch.float16),
        queue=Queue(4, 2),
    )


def test_parts_are_those_that_there_are() -> None:
    one = memory(2, 3)
    assert [part.name for part in parts(one, "team", "ring")] == ["common", "queue"]
    one.later = torch.ones(1)
    assert [part.name for part in parts(one, "team", "ring")] == ["common", "queue", "later"]


def test_ragged_state_is_found_by_row_number_in_files_of_other_parts() -> None:
    numbers, sizes = torch.tensor([2, 4, 6, 8, 10]), torch.tensor([1, 3, 2, 1, 2])
    values = torch.arange(9, dtype=torch.float16)
    starts = sizes.cumsum(0) - sizes
    files = []
    for rows in ([0, 3], [1, 2, 4]):
        place = torch.cat([torch.arange(int(starts[row]), int(starts[row] + sizes[row])) for row in rows])
        one = memory(len(rows), len(place))
        one.by_candidate, one.by_row = values[place], torch.tensor(rows)
        one.history = torch.tensor(rows).float().repeat(3, 1)
        one.queue.push(torch.ones(2, 2) * rows[0], torch.tensor(rows[:2]), torch.tensor([True, False]))
        files.append(remembered.row_tensors(one, numbers[rows], sizes[rows]))
    whole = memory(5, 9)
    remembered.restore_rows(whole, files, numbers, sizes, Mesh())
    assert whole.by_candidate.tolist() == values.tolist()
    assert whole.by_row.tolist() == [0, 1, 2, 3, 4]
    assert whole.history.tolist() == [[0, 1, 2, 3, 4]] * 2  # the newest two of three
    assert int(whole.queue.valid.sum()) == 4


def test_rows_that_are_new_or_have_another_set_keep_what_they_start_with() -> None:
    one = memory(2, 3)
    one.by_candidate, one.by_row = torch.tensor([0.1, 0.2, 0.3]).half(), torch.tensor([7, 8])
    files = [remembered.row_tensors(one, torch.tensor([3, 5]), torch.tensor([1, 2]))]
    other = memory(3, 6)
    remembered.restore_rows(other, files, torch.tensor([3, 4, 5]), torch.tensor([1, 2, 3]), Mesh())
    assert other.by_candidate.tolist() == torch.tensor([0.1, 0.5, 0.5, 0.5, 0.5, 0.5]).half().tolist()
    assert other.by_row.tolist() == [7, -1, 8]
