"""The report's section on voters: how far each can be trusted, who is hardly listened to and why, who errs how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from coreg_ray.report import figures
from coreg_ray.run.voters import VoterLine, Voters

MOST_DRAWN = 16  # voters whose confusions are drawn; the table names the worst of all
_SHOWN = 8
_WORTH_NAMING = 0.005  # of a class's images


@dataclass(frozen=True)
class VoterRow:
    """A line of the table: what the voter is called, what is known of it, its mistakes in words."""

    name: str
    line: VoterLine
    mistakes: list[str]


@dataclass(frozen=True)
class VoterSection:
    """What the page shows: sentences, lines of a table, and a heat map of confusions for each of a few voters."""

    told: list[str]
    rows: list[VoterRow]
    known: bool  # whether any true accuracy is
    drawn: list[dict[str, Any]]


def voter_section(voters: Voters | None, class_names: list[str]) -> VoterSection | None:
    """None without a label model."""
    if voters is None or not voters.lines:
        return None
    several = len({line.annotator for line in voters.lines}) > 1
    rows = []
    for number, line in enumerate(voters.lines):
        mistakes = voters.mistakes[number] if voters.mistakes else []
        often = [f"{one.shown} \u2192 {one.named} {one.share:.0%}" for one in mistakes if one.share >= _WORTH_NAMING]
        rows.append(VoterRow(f"{line.voter} ({line.annotator})" if several else line.voter, line, often))
    known = any(line.true_accuracy is not None for line in voters.lines)
    return VoterSection(_told(voters, rows), rows, known, _drawn(voters, rows, class_names))


def _drawn(voters: Voters, rows: list[VoterRow], class_names: list[str]) -> list[dict[str, Any]]:
    if not voters.tables or len(voters.tables[0]) != len(class_names):
        return []
    drawn = []
    for row, table in zip(rows[:MOST_DRAWN], voters.tables, strict=False):
        if row.line.votes:
            shares = [[cell / 100 for cell in cells] for cells in table]
            svg = Markup(figures.heat_map(shares, class_names, "names", "shown"))
            drawn.append({"caption": row.name, "svg": svg})
    return drawn


def _told(voters: Voters, rows: list[VoterRow]) -> list[str]:
    told = [f"The label model {voters.reason}."] if voters.reason else []
    ignored = [row for row in rows if row.line in voters.ignored]
    for row in ignored[:_SHOWN]:
        told.append(f"Hardly listened to: {row.name}: {row.line.note or 'its votes tell little about the class'}.")
    if len(ignored) > _SHOWN:
        told.append(f"{len(ignored) - _SHOWN} more are hardly listened to; the table has their weights.")
    return told
