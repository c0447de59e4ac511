"""Figures with their spread: a table for people, JSON for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A median with the lowest and the highest of what was measured.

    Attributes:
        unit: "x" for ratios. note: what a reader must know to judge it.
    """

    value: float
    low: float
    high: float
    unit: str
    note: str = ""


@dataclass
class Figures:
    """All that a run of the benchmark found, in the order in which it was measured.

    Attributes:
        machine: what it ran on. measured: name -> figure. skipped: name -> why it is missing.
    """

    machine: dict[str, Any]
    measured: dict[str, Figure] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, values: float | Sequence[float], unit: str, note: str = "") -> None:
        """One number, or several measurements of it."""
        several = [values] if isinstance(values, int | float) else list(values)
        self.measured[name] = Figure(statistics.median(several), min(several), max(several), unit, note)

    def add_ratio(self, name: str, above: Sequence[float], below: Sequence[float], note: str = "") -> None:
        """above / below, turn by turn, so that a machine that slows down for both changes nothing."""
        self.add(name, [a / b for a, b in zip(above, below, strict=True)], "x", note)

    def table(self) -> str:
        """One line a figure: name, median, lowest and highest, unit, note."""
        width = max(map(len, [*self.measured, *self.skipped]), default=0)
        lines = [f"{key}: {value}" for key, value in self.machine.items()]
        lines.append(f"{'figure':{width}}  {'median':>10}  {'lowest':>10}  {'highest':>10}")
        for name, figure in self.measured.items():
            numbers = "  ".join(f"{_short(number):>10}" for number in (figure.value, figure.low, figure.high))
            lines.append(f"{name:{width}}  {numbers}  {figure.unit:7} {figure.note}".rstrip())
        lines += [f"{name:{width}}  not measured: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """name -> median, and beside them `spread`, `unit`, `note`, `skipped` and `machine`."""
        return {
            **{name: figure.value for name, figure in self.measured.items()},
            "spread": {name: [figure.low, figure.high] for name, figure in self.measured.items()},
            "unit": {name: figure.unit for name, figure in self.measured.items()},
            "note": {name: figure.note for name, figure in self.measured.items() if figure.note},
            "skipped": self.skipped,
            "machine": self.machine,
        }


def _short(number: float) -> str:
    """Four digits, thousands apart."""
    size = abs(number)
    if size >= 1000:
        return f"{number:,.0f}"
    return f"{number:.1f}" if size >= 100 else f"{number:.4g}"
