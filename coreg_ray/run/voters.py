"""What the label model believes of each voter: `voters.csv` as text, and `candidates/voters.json`, with confusions."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from coreg_ray import metrics
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


VOTERS_JSON = "voters.json"  # in candidates/
IGNORED = 0.1  # of an equal share: who weighs less is hardly listened to


@dataclass(frozen=True)
class Mistake:
    """How often a voter that sees one class names another, by the label model: `share` of the class's images."""

    shown: str
    named: str
    share: float


@dataclass(frozen=True)
class Voters:
    """All V voters of a pool, for the report.

    Attributes:
        lines: in their order. reason: why the label model is not believed, "" where it is.
        mistakes: of each voter its most frequent ones, none where only one accuracy a class is estimated.
        tables: (V, K, K) P(vote | class), class before vote, in percent; None where they are large.
    """

    lines: list[VoterLine]
    reason: str = ""
    mistakes: list[list[Mistake]] = field(default_factory=list)
    tables: list[list[list[int]]] | None = None

    @property
    def ignored(self) -> list[VoterLine]:
        """Those who have voted and are hardly listened to."""
        return [line for line in self.lines if line.votes and line.weight * len(self.lines) < IGNORED]

    def as_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Voters:
        """What `as_json` gave."""
        lines = [VoterLine(**line) for line in tree["lines"]]
        mistakes = [[Mistake(**one) for one in some] for some in tree["mistakes"]]
        return cls(lines, tree["reason"], mistakes, tree["tables"])


def votes_in_words(figures: dict[str, Any]) -> str:
    """How often most votes and label model are right, from what `metrics.json` holds; "" where no label is known."""
    ways = {"majority_accuracy": "the most votes are right for", "label_model_accuracy": "the label model for"}
    known = [(words, figures.get(metrics.ANNOTATION + name)) for name, words in ways.items()]
    told = ", ".join(f"{words} {value:.3f}" for words, value in known if value is not None)
    return f"{told} of the images whose label is known" if told else ""


def as_csv(voters: Sequence[VoterLine]) -> str:
    """The voters in their order; unknown values are empty, and no text is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in fields(VoterLine)], lineterminator="\n")
    writer.writeheader()
    for voter in voters:
        writer.writerow({name: neutral(_rounded(value)) for name, value in asdict(voter).items()})
    return text.getvalue()


def _rounded(value: str | int | float | None) -> str | int | float | None:
    return round(value, 6) if isinstance(value, float) else value
