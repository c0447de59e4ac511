"""What a method remembers, as the tensors of a checkpoint's files, and back at any world size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coreg_ray.training.memory import all_parts, parts
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import Queue, Student, frozen_copy

QUEUE = ("keys", "classes", "confident", "valid")


def common_tensors(memory: Any) -> dict[str, Tensor]:
    """What every replica of a team has alike, by name: tensors, and the weights of networks that follow another."""
    tensors = {part.name: part.content for part in parts(memory, "team")}
    for part in parts(memory, "network"):
        tensors |= {f"{part.name}.{name}": tensor for name, tensor in part.content.state_dict().items()}
    return tensors


def row_tensors(memory: Any, numbers: Tensor, sizes: Tensor) -> dict[str, Tensor]:
    """What a replica has for itself, by name, with its row numbers (N,), and where it matters how many candidates each
    row has; rings begin with their oldest entry.
    """
    tensors = {"numbers": numbers.clone()}
    tensors |= {part.name: part.content for part in parts(memory, "rows", "candidates")}
    if any(parts(memory, "candidates")):
        tensors["sizes"] = sizes.clone()
    for part in parts(memory, "ring"):
        queue = part.content
        tensors |= {f"{part.name}.{name}": getattr(queue, name).roll(-queue.position, 0).cpu() for name in QUEUE}
        tensors[f"{part.name}.position"] = torch.tensor(queue.position)
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def restore_common(memory: Any, tensors: dict[str, Tensor], student: Student) -> None:
    """The inverse of `common_tensors`; `student` has the architecture and device of networks that follow it."""
    for part in all_parts(memory, "team"):
        stored = tensors.get(part.name)
        setattr(memory, part.name, None if stored is None else stored.to(student.device))
    for part in all_parts(memory, "network"):
        follower = None
        if weights := below(tensors, f"{part.name}."):
            follower = frozen_copy(student)
            follower.load_state_dict(weights)
        setattr(memory, part.name, follower)


def restore_rows(memory: Any, files: list[dict[str, Tensor]], numbers: Tensor, sizes: Tensor, mesh: Mesh) -> None:
    """The inverse of `row_tensors`, from the files of all replicas of a team that may have been of another size.

    Args:
        numbers, sizes: (N,) of this replica's rows; of those that no file knows, what is kept by row is `unknown`, and
            what is kept by candidate stays as it is.
    """
    for part in parts(memory, "rows"):
        stored = of_rows(numbers, files, part.name, part.unknown)
        setattr(memory, part.name, stored[-len(part.content) :] if stored.ndim > 1 else stored)  # the newest of history
    for part in parts(memory, "candidates"):
        setattr(memory, part.name, of_candidates(numbers, sizes, files, part.name, part.content))
    for part in parts(memory, "ring"):
        _restore_queue(part.content, [below(file, f"{part.name}.") for file in files], mesh)


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def of_rows(numbers: Tensor, files: list[dict[str, Tensor]], name: str, unknown: float) -> Tensor:
    """A tensor (..., N) of rows `numbers`, found in all replicas' files; `unknown` for rows that none knows."""
    values = torch.cat([file[name] for file in files], dim=-1)
    stored, known = _places(numbers, files)
    return torch.where(known, values[..., stored], torch.tensor(unknown, dtype=values.dtype))


def of_candidates(numbers: Tensor, sizes: Tensor, files: list[dict[str, Tensor]], name: str, fresh: Tensor) -> Tensor:
    """Values (M,), one for each candidate of rows `numbers` of `sizes` (N,); `fresh` (M,) for rows that none knows.

    A row that has another number of candidates than it had counts as unknown.
    """
    values = torch.cat([file[name] for file in files])
    their_sizes = torch.cat([file["sizes"] for file in files])
    starts = their_sizes.cumsum(0) - their_sizes
    stored, known = _places(numbers, files)
    known &= their_sizes[stored] == sizes
    row = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    within = torch.arange(len(row)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    place = (starts[stored][row] + within).clamp(max=max(len(values) - 1, 0))
    return torch.where(known[row], values[place].to(fresh.dtype), fresh)


def _places(numbers: Tensor, files: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Where each row lies in the files' rows one after the other, and whether it is there at all: both (N,)."""
    theirs = torch.cat([file["numbers"] for file in files])
    order = torch.argsort(theirs)
    place = torch.searchsorted(theirs[order], numbers).clamp(max=len(theirs) - 1)
    stored = order[place]
    return stored, theirs[stored] == numbers


def _restore_queue(queue: Queue, files: list[dict[str, Tensor]], mesh: Mesh) -> None:
    """This replica's queue: slot by slot where the team is as large as it was, else its part of all valid entries.

    The slots matter, because sums over them are rounded in their order.
    """
    if len(files) == mesh.replicas:
        mine = files[mesh.replica]
        queue.position = int(mine["position"])
        for name in QUEUE:
            getattr(queue, name).copy_(mine[name].roll(queue.position, 0))
        return
    valid = torch.cat([file["valid"] for file in files]).nonzero()[mesh.replica :: mesh.replicas, 0]
    entries = (torch.cat([file[name] for file in files])[valid] for name in QUEUE[:3])
    queue.valid.zero_()
    queue.position = 0
    queue.push(*(entry.to(queue.keys.device) for entry in entries))
