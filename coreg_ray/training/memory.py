"""What a method remembers from one epoch to the next: a dataclass whose fields say how each part of it is kept.

    @dataclass
    class Memory:
        prototypes: Tensor = kept("team")
        losses: Tensor = kept("rows", unknown=nan)
        keys: Student | None = kept("network", default=None)

Checkpoints, exchanges and the search for numbers that are none walk these fields; no list of names lies anywhere else.

| kept as    | what it is                            | who writes it       | read at another world size          |
| team       | a tensor, the same on every replica   | replica 0           | copied                              |
| rows       | a tensor (..., N), the last is the row | every replica       | by row number                       |
| candidates | a tensor (M,), one for each candidate | every replica       | by row number                       |
| network    | a Student that follows another        | replica 0           | copied                              |
| ring       | a Queue                               | every replica       | dealt out again                     |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Kept = Literal["team", "rows", "candidates", "network", "ring"]


def kept(how: Kept, *, unknown: float = 0.0, **more: Any) -> Any:
    """A field of a memory; `unknown` is what a row has that no checkpoint knows. Others: `dataclasses.field`'s."""
    return field(metadata={"kept": how, "unknown": unknown}, **more)


@dataclass(frozen=True)
class Part:
    """A field of a memory: its name, how it is kept, what rows have of it that no checkpoint knows, and its content."""

    name: str
    how: Kept
    unknown: float
    content: Any


def parts(memory: Any, *how: Kept) -> Iterator[Part]:
    """The parts of a memory that there are by now, of those kept in one of the ways `how`."""
    for part in all_parts(memory, *how):
        if part.content is not None:
            yield part


def all_parts(memory: Any, *how: Kept) -> Iterator[Part]:
    """As `parts`, with those that have no content yet."""
    for one in fields(memory):
        if one.metadata["kept"] in how:
            yield Part(one.name, one.metadata["kept"], one.metadata["unknown"], getattr(memory, one.name))
