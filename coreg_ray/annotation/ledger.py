"""What a chat model's answers cost, beside the answers in its folder: one small file for every block of images.

`annotations/<split>/<annotator>/spent/<run>-<requests>-<input tokens>-<output tokens>-<token>.json`: the list of names
is the account, as the list of parts is the table. Requests that brought no answer stand in it too, and nothing that
leaves the table takes its cost along. Versions before kept the figures in columns of the parts, which still count.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, fields

from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.parts import Part, parts
from coreg_ray.run.storage import Folder

LEDGER = "spent"


@dataclass
class Usage:
    """What was spent."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(self)))


def record(folder: Folder, run: int, usage: Usage) -> None:
    """Enter what a block of images cost into the account of an annotator's folder; `run`: number of the run."""
    if usage == Usage():
        return
    figures = "-".join(map(str, asdict(usage).values()))
    (folder / LEDGER).write_json(f"{run:04d}-{figures}-{secrets.token_hex(4)}.json", asdict(usage))


def spent(folder: Folder) -> Usage:
    """What an annotator's folder has cost in all runs."""
    total, first = Usage(), None
    for name in (folder / LEDGER).entries():
        if not name.endswith(".json"):
            continue
        run, *figures, _ = name.removesuffix(".json").split("-")
        total += Usage(*map(int, figures))
        first = int(run) if first is None else min(first, int(run))
    for part in parts(folder):
        if first is None or part.run < first:
            total += _in_part(part, folder)
    return total


def _in_part(part: Part, folder: Folder) -> Usage:
    names = [entry.name for entry in fields(Usage)]
    table = read_table(folder, part.name, names)
    return Usage(**{name: sum(table[name].to_pylist()) for name in names if name in table.column_names})
