"""What a run is doing or came to: state, time left, figures, what lies where and what may be deleted.

coreg-ray show runs/digits                     also while it runs, also on s3://
coreg-ray show runs/a runs/b                   settings that differ, figures side by side
"""

from __future__ import annotations

from collections.abc import Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from coreg_ray.commands.base import show
from coreg_ray.commands.words import read_words

if TYPE_CHECKING:
    from coreg_ray.report.overview import Overview
    from coreg_ray.run.contents import Place

_WIDEST = 44  # letters of a cell in a comparison
_TIMES = "time/"


def main(arguments: list[str]) -> None:
    """Run the command."""
    given: list[str] = read_words(arguments, __doc__ or "", several=True).runs
    from coreg_ray.report.overview import overview
    from coreg_ray.run.contents import places  # late: --help needs no pyarrow
    from coreg_ray.run.folder import RunFolder

    runs = [overview(run) for run in given]
    show(one(runs[0], places(RunFolder.at(given[0]))) if len(runs) == 1 else several(runs))


def one(run: Overview, lying: Sequence[Place]) -> str:
    """All about one run."""
    from coreg_ray.run.contents import as_size

    lines = [run.given, f"  state      {run.state}"]
    if run.working:
        lines.append(f"  at work    {run.working}")
    if run.left:
        lines.append(f"  time left  {run.left}{'' if run.working else ', once it goes on'}")
    if run.figures:
        lines += ["", "Figures", *_indented([[name, _figure(name, value)] for name, value in run.figures.items()])]
    size = sum(place.size or 0 for place in lying)
    lines += ["", f"On disk: {as_size(size)} in all{'; delete nothing while it runs' if run.working else ''}"]
    rows = [
        [place.name, "" if place.size is None else as_size(place.size), place.what]
        + ([f"may be deleted {place.may_go}" if place.may_go else ""] if not run.working else [])
        for place in lying
    ]
    lines += _indented(rows, right={1})
    return "\n".join(_short(line) for line in lines)


def several(runs: Sequence[Overview]) -> str:
    """Runs side by side: where they stand, settings that differ, figures."""
    from coreg_ray.report.overview import differences

    names = short_names([run.given for run in runs])
    figures = dict.fromkeys(name for run in runs for name in run.figures)
    rows = [["", *names], ["state", *(run.state for run in runs)], ["time left", *(run.left or "" for run in runs)]]
    settings = differences(list(runs))
    rows += [[], ["Settings that differ" if settings else "No setting differs"]]
    rows += [[name, *values] for name, values in settings.items()]
    rows += [[], ["Figures"]] if figures else []
    rows += [[name, *(_figure(name, run.figures.get(name)) for run in runs)] for name in figures]
    return "\n".join(_table([[_cut(cell) for cell in row] for row in rows]))


def short_names(paths: Sequence[str]) -> list[str]:
    """The paths without what all of them begin with, as far as whole parts go."""
    parts = [path.rstrip("/").split("/") for path in paths]
    shared = 0
    while all(len(one) > shared + 1 and one[shared] == parts[0][shared] for one in parts):
        shared += 1
    return ["/".join(one[shared:]) for one in parts]


def _figure(name: str, value: object) -> str:
    from coreg_ray.report.overview import as_figure, as_time

    if value is None:
        return "-"
    return as_time(float(value)) if name.startswith(_TIMES) and isinstance(value, int | float) else as_figure(value)


def _cut(cell: str) -> str:
    return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 3]}..."


def _short(line: str) -> str:
    """A line that a terminal does not break, where one is looked at."""
    width = get_terminal_size((200, 50)).columns
    return line if len(line) <= width else f"{line[: width - 1]}\u2026"


def _indented(rows: list[list[str]], right: set[int] | None = None) -> list[str]:
    return [f"  {line}" for line in _table(rows, right)]


def _table(rows: list[list[str]], right: set[int] | None = None) -> list[str]:
    """Rows as lines with aligned columns; a row of one cell is a heading and counts for no width."""
    wide = [row for row in rows if len(row) > 1]
    columns = range(max(map(len, wide), default=0))
    widths = [max(len(row[column]) for row in wide if column < len(row)) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if column in (right or ()) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        if len(row) > 1
        else "".join(row)
        for row in rows
    ]
