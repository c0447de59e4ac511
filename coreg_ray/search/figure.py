"""The picture of a search: the objective over epochs, and over each value that was varied."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from coreg_ray.metrics import EPOCH
from coreg_ray.search.space import LOGARITHMIC, Dimension, Space
from coreg_ray.search.trials import FAILED, FINISHED, Trial, ranked

_BEST, _FINISHED, _STOPPED = "#f28e2b", "#4c8dff", "#b0b0b0"
_ACROSS = 3  # panels in a row
_MOST_PANELS = 12


def trials_svg(trials: Sequence[Trial], space: Space, objective: str) -> str:
    """One panel of curves and one for each of the first dimensions; failed trials have no place in it."""
    shown = [trial for trial in ranked(trials, objective) if trial.status != FAILED and trial.history][::-1]
    panels = space.dimensions[: _MOST_PANELS - 1]
    rows = -(-(len(panels) + 1) // _ACROSS)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "coreg_ray", "font.size": 9}):
        figure = Figure(figsize=(3.4 * _ACROSS, 2.6 * rows), layout="constrained")
        axes = figure.subplots(rows, _ACROSS, squeeze=False).flatten()
        for trial in shown:
            epochs = [metrics[EPOCH] + 1 for metrics in trial.history if objective in metrics]
            values = [metrics[objective] for metrics in trial.history if objective in metrics]
            axes[0].plot(epochs, values, color=_colour(trial, shown), linewidth=1.2, marker=".", markersize=3)
        axes[0].set_xlabel("epochs")
        axes[0].set_ylabel(objective)
        for place, dimension in zip(axes[1:], panels, strict=False):
            _scatter(place, dimension, shown, objective)
        for place in axes[len(panels) + 1 :]:
            place.set_axis_off()
        for place in axes:
            place.spines[["top", "right"]].set_visible(False)
            place.grid(alpha=0.15)
        figure.suptitle("best (orange), finished (blue), stopped early (grey)", fontsize=9)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _scatter(place: mpl.axes.Axes, dimension: Dimension, shown: list[Trial], objective: str) -> None:
    scored = [trial for trial in shown if objective in trial.history[-1] and dimension.key in trial.values]
    values = [trial.values[dimension.key] for trial in scored]
    if not dimension.numeric:
        values = [str(value)[:18] for value in values]
    colours = [_colour(trial, shown) for trial in scored]
    place.scatter(values, [trial.score(objective) for trial in scored], c=colours, s=18)
    place.set_xlabel(dimension.key)
    if dimension.kind in LOGARITHMIC:
        place.set_xscale("log")
        place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        place.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        place.xaxis.set_minor_formatter(NullFormatter())


def _colour(trial: Trial, shown: list[Trial]) -> str:
    if trial is shown[-1]:
        return _BEST
    return _FINISHED if trial.status == FINISHED else _STOPPED
