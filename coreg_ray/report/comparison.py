"""`comparison.html`: rows of a comparison side by side, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from markupsafe import Markup

import coreg_ray
from coreg_ray import metrics
from coreg_ray.report import figures
from coreg_ray.report.page import template
from coreg_ray.run.comparison import FINISHED, Outcome

_COLUMNS = {  # figure -> title
    metrics.ACCURACY: "both networks",
    metrics.ACCURACY_A: "network a",
    metrics.ACCURACY_B: "network b",
    metrics.COMBINED: "without labels",
    "passes_per_row": "passes a row",
    "time/train_s": "seconds",
    "memory_mb": "MiB",
    "epochs_to_annotator": "epochs to the annotator",
}
_WHOLE = ("passes_per_row", "time/train_s", "memory_mb", "epochs_to_annotator")


class Row(Protocol):
    """A row over its seeds, as `search.comparison.Summary`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def labels(self) -> str: ...
    @property
    def finished(self) -> int: ...
    @property
    def means(self) -> dict[str, float]: ...
    @property
    def spreads(self) -> dict[str, float]: ...


def comparison_page(
    name: str, rows: Sequence[Row], outcomes: Sequence[Outcome], figure: str, annotator: float | None, conclusion: str
) -> str:
    """The page as text; all values are escaped.

    Args:
        name: of the run. rows: best first. outcomes: of single runs, for those that failed. figure: what rows are
            ranked by. annotator: its accuracy on the test images. conclusion: what the figures allow to say.
    """
    known = [column for column in _COLUMNS if any(column in row.means for row in rows)]
    titles = [("row", False), ("method", False), ("learns from", False), ("runs", True)]
    titles += [(_COLUMNS[column], True) for column in known]
    drawn = [row for row in rows if figure in row.means]
    series = [(row.name, [v for one in outcomes if one.name == row.name and (v := one.figure(figure)) is not None])
              for row in drawn]  # fmt: skip
    level = ("annotator", annotator) if annotator is not None and figure == metrics.ACCURACY else None
    return template("comparison.html").render(
        name=name,
        version=coreg_ray.__version__,
        conclusion=conclusion,
        figure=Markup(figures.dots(series, figure, level)) if series else "",
        caption=f"Every run's {figure}, and their means.",
        titles=titles,
        rows=[
            [row.name, row.kind, row.labels, str(row.finished), *(_cell(row, column) for column in known)]
            for row in rows
        ],
        failed=[(f"{one.name}-{one.seed}", one.error or one.status) for one in outcomes if one.status != FINISHED],
    )


def _about(row: Row) -> list[str]:
    return [row.name, row.kind, row.labels, str(row.finished)]


def _cell(row: Row, column: str) -> str:
    if column not in row.means:
        return ""
    if column in _WHOLE:
        return f"{row.means[column]:,.0f}"
    return f"{row.means[column]:.3f}" + (f" ±{row.spreads[column]:.3f}" if row.finished > 1 else "")
