"""`voters.csv` as text: one line for each voter, what the label model believes of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from coreg_ray.run.cells import neutral


@dataclass(frozen=True)
class VoterLine:
    """A voter: a prompt, a question or a person.

    Attributes:
        annotator: name of its folder in `annotations/`. votes: how many. accuracy: estimated without labels, None
            without a vote. weight: what its vote tells, all sum to 1. note: what is odd about it. true_accuracy: of its
            votes on images whose label is known, None where there are none.
    """

    annotator: str
    voter: str
    votes: int
    accuracy: float | None
    weight: float
    note: str
    true_accuracy: float | None


def as_csv(voters: Sequence[VoterLine]) -> str:
    """The voters in their order; unknown values are empty, and no text is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(VoterLine)], lineterminator="\n")
    writer.writeheader()
    for voter in voters:
        writer.writerow({name: neutral(_rounded(value)) for name, value in asdict(voter).items()})
    return text.getvalue()


def _rounded(value: str | int | float | None) -> str | int | float | None:
    return round(value, 6) if isinstance(value, float) else value
