"""A comparison of methods on the rows of one run: which ones, and what their figures allow to say. Ray-free.

A file of variants is YAML, a row's name and the settings in which it differs from the run:

    coreg: {}
    no contrast: {method.contrast_weight: 0, method.prototype_weight: 0}
    elr: {preset: method-elr, method.epochs: 40}
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coreg_ray import metrics
from coreg_ray.errors import UserError
from coreg_ray.run.cells import neutral
from coreg_ray.run.comparison import FINISHED, Outcome
from coreg_ray.search.definition import OF_FEATURES

COLUMNS = ("name", "kind", "labels", "seed", "status", metrics.ACCURACY, metrics.ACCURACY_A, metrics.ACCURACY_B)
COSTS = ("passes_per_row", "time/train_s", "memory_mb")
# Both networks judge for one another, so whether sets or single labels are learnt from shows what either brings.
DEFAULT_ROWS: dict[str, dict[str, Any]] = {
    "coreg": {},
    "coreg-single": {"method.labels": "single"},
    "dividemix": {"preset": "method-dividemix"},
    "dividemix-single": {"preset": "method-dividemix", "method.labels": "single"},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]*")
_SHARED = ("student.resolution",)  # which rows/ are written for


@dataclass(frozen=True)
class Row:
    """One row of a comparison: its name, and the settings by dotted key in which it differs from the run."""

    name: str
    changes: dict[str, Any]


def rows_of_kinds(kinds: Sequence[str]) -> list[Row]:
    """A row for each kind of method, with its published constants where there are any."""
    return [Row(kind, {} if kind == "coreg" else {"preset": f"method-{kind}"}) for kind in kinds]


def default_rows(kinds: Sequence[str]) -> list[Row]:
    """Every kind, and of those that are two networks for one another sets against single labels."""
    known = [Row(name, changes) for name, changes in DEFAULT_ROWS.items()]
    return known + rows_of_kinds([kind for kind in kinds if kind not in DEFAULT_ROWS])


def rows_of_variants(tree: Any, where: str, frozen: bool) -> list[Row]:
    """The rows of a parsed file of variants.

    Args:
        where: what to call the file. frozen: whether the run's student is a head on features that all rows share.

    Raises:
        UserError: it holds no rows, a name that makes no folder, or a setting that all rows must share.
    """
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{where} must hold rows, a name and its settings each: 'no contrast: {{method.kind: coreg}}'")
    rows = []
    for name, changes in tree.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{where}: {name!r} makes no folder; name a row by letters, digits, spaces and - _ . +")
        if changes is not None and not isinstance(changes, dict):
            raise UserError(f"{where}: {name} holds {changes!r}; write settings, or {{}} for the run's own")
        for key in changes or {}:
            refuse_unshared(f"{where}: {name}", str(key), frozen)
        rows.append(Row(name, dict(changes or {})))
    return rows


def refuse_unshared(where: str, key: str, frozen: bool) -> None:
    """Raises UserError where a setting decides what all rows share; `where`: what to call the place that gives it."""
    shared = key in _SHARED or (frozen and key in OF_FEATURES)
    if key != "preset" and (shared or not key.startswith(("method.", "student."))):
        raise UserError(
            f"{where}: {key} decides annotations, candidate sets or images, which all rows share; vary keys of method "
            "or student, or compare runs with coreg-ray show RUN RUN"
        )


def as_csv(outcomes: Sequence[Outcome]) -> str:
    """`comparison.csv`: a line a run, in the order of the rows; missing values are empty."""
    criteria = sorted({name for one in outcomes for name in one.last if name.startswith(metrics.CRITERION)})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *COSTS, *criteria, "epochs_to_annotator", "error"])
    for one in outcomes:
        accuracies = [one.figure(name) for name in COLUMNS[5:]]
        costs = [one.passes, one.seconds, one.memory_mb]
        cells = [one.name, one.kind, one.labels, one.seed, one.status, *accuracies, *costs]
        cells += [one.figure(name) for name in criteria] + [one.epochs_to_annotator, one.error]
        writer.writerow(["" if cell is None else neutral(cell) for cell in cells])
    return text.getvalue()


@dataclass(frozen=True)
class Summary:
    """A row over its seeds.

    Attributes:
        name: of the row. finished, failed: how many of its runs. means, spreads: of figures over the finished ones; a
            spread is the standard deviation over seeds, 0 of a single one.
    """

    name: str
    kind: str
    labels: str
    finished: int
    failed: int
    means: dict[str, float]
    spreads: dict[str, float]


def summaries(outcomes: Sequence[Outcome]) -> list[Summary]:
    """All rows, the best first: by test accuracy of both networks, where there are labels, else without any."""
    names = dict.fromkeys(one.name for one in outcomes)
    rows = [_summary([one for one in outcomes if one.name == name]) for name in names]
    return sorted(rows, key=lambda row: -row.means.get(decided_by(outcomes), -1.0))


def decided_by(outcomes: Sequence[Outcome]) -> str:
    """The figure that rows are ranked by."""
    labelled = any(one.figure(metrics.ACCURACY) is not None for one in outcomes)
    return metrics.ACCURACY if labelled else metrics.COMBINED


def _summary(of: list[Outcome]) -> Summary:
    finished = [one for one in of if one.status == FINISHED]
    known: dict[str, list[float]] = {}
    for one in finished:
        figures = {name: value for name in one.last if (value := one.figure(name)) is not None}
        costs = {COSTS[0]: one.passes, COSTS[1]: one.seconds, COSTS[2]: one.memory_mb}
        for name, value in {**figures, **costs, "epochs_to_annotator": one.epochs_to_annotator}.items():
            if value is not None:
                known.setdefault(name, []).append(float(value))
    whole = {name: values for name, values in known.items() if len(values) == len(finished)}
    return Summary(
        name=of[0].name,
        kind=of[0].kind,
        labels=of[0].labels,
        finished=len(finished),
        failed=sum(bool(one.error) for one in of),
        means={name: statistics.mean(values) for name, values in whole.items()},
        spreads={name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in whole.items()},
    )


def conclusion(rows: Sequence[Summary], figure: str, annotator: float | None, images: int | None) -> str:
    """One or two sentences: what the figures allow to say, and what they do not.

    Args:
        rows: best first. figure: what they are ranked by. annotator: its accuracy on the test images. images: how many.
    """
    ranked = [row for row in rows if figure in row.means]
    if not ranked:
        return "No run has finished, so there is nothing to say."
    best, value = ranked[0], ranked[0].means[figure]
    if figure != metrics.ACCURACY:
        return (
            f"Without labels {best.name} has the highest {figure} ({value:.3f}); that orders runs roughly and says "
            "nothing about how right they are: look at fifty images before you choose (coreg-ray review)."
        )
    margin = 1.96 * (value * (1 - value) / images) ** 0.5 if images else 0.0
    opening = f"{best.name} is right for {value:.3f} of the test images (±{margin:.3f} for their choice)"
    if annotator is not None:
        gain = value - annotator
        opening += f", {abs(gain):.3f} {'above' if gain > 0 else 'below'} the annotator alone ({annotator:.3f})"
    rivals = [row for row in ranked[1:] if not _apart(best, row, figure)]
    if best.finished < 2:
        closing = "one seed a row cannot tell rows apart: use --seeds 0,1,2."
    elif rivals:
        closing = f"it is not apart from {_listed([row.name for row in rivals])} by more than the spread over seeds."
    elif len(ranked) > 1:
        closing = "it is ahead of every other row by more than the spread over seeds."
    else:
        closing = "no other row has finished, so there is nothing to compare it with."
    return f"{opening}; {closing}"


def _apart(one: Summary, other: Summary, figure: str) -> bool:
    """Whether two means differ by more than the larger spread."""
    return abs(one.means[figure] - other.means[figure]) > max(one.spreads[figure], other.spreads[figure])


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def as_table(rows: Sequence[Summary], figure: str) -> str:
    """The rows for a terminal, best first."""
    shown = [figure, *(name for name in (metrics.ACCURACY_A, metrics.ACCURACY_B, metrics.COMBINED) if name != figure)]
    lines = [["row", "kind", "labels", "runs", *shown, *COSTS, "epochs_to_annotator"]]
    for row in rows:
        cells = [_with_spread(row, name) for name in shown]
        costs = [f"{row.means[name]:.0f}" if name in row.means else "-" for name in (*COSTS, "epochs_to_annotator")]
        runs = f"{row.finished}" + (f" ({row.failed} failed)" if row.failed else "")
        lines.append([row.name, row.kind, row.labels, runs, *cells, *costs])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _with_spread(row: Summary, name: str) -> str:
    if name not in row.means:
        return "-"
    return f"{row.means[name]:.3f}" + (f" ±{row.spreads[name]:.3f}" if row.finished > 1 else "")
