"""The report's figures: numbers in, inline SVG out.

Text and axes take the page's own colour (`currentColor`), so one figure serves light and dark; data colours are chosen
to be read on both, and apart by people who see no red or green.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

BLUE, ORANGE, GREY, TEAL = "#4c8dff", "#f28e2b", "#8c8c8c", "#2ca58d"
_INK = "#010203"  # stands for the page's text colour until the figure is written
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "coreg_ray",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}

Points = Sequence[float | None]


def curves(
    series: Mapping[str, tuple[Points, str]],
    ylabel: str,
    phase_change: int | None = None,
    level: tuple[str, float] | None = None,
) -> str:
    """Lines over epochs: label -> (one value an epoch, colour); None where an epoch has none.

    Args:
        phase_change: epoch at which warm-up ends, marked by a dotted line.
        level: label and value of a horizontal line to compare with.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        for label, (values, colour) in series.items():
            axes.plot(_floats(values), color=colour, label=label, marker="." if len(values) < 3 else None)
        if level:
            axes.axhline(level[1], color=TEAL, linestyle="--", linewidth=1.2, label=level[0])
        if phase_change:
            axes.axvline(phase_change - 0.5, color=GREY, linestyle=":", linewidth=1)
        last = max(len(values) for values, _ in series.values()) - 1
        axes.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))  # all figures side by side have the same epochs
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1 or level:
            axes.legend(loc="best", fontsize=8)
        return _svg(figure, ylabel)


def histogram(counts: Sequence[int], xlabel: str, ylabel: str) -> str:
    """Bars at 1, 2, ... for how often each size occurs."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        axes.bar(np.arange(1, len(counts) + 1), counts, color=BLUE)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        return _svg(figure, f"{ylabel} by {xlabel}")


def bars(labels: Sequence[str], values: Sequence[float], xlabel: str) -> str:
    """Horizontal bars, one a label, first on top."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(height=max(1.6, 0.24 * len(labels) + 0.7))
        axes.barh(np.arange(len(labels)), values, color=BLUE)
        axes.set_yticks(np.arange(len(labels)), [_short(label) for label in labels])
        axes.invert_yaxis()
        axes.set_xlabel(xlabel)
        axes.grid(visible=False, axis="y")
        return _svg(figure, xlabel)


def dots(series: Sequence[tuple[str, Sequence[float]]], xlabel: str, level: tuple[str, float] | None = None) -> str:
    """A dot for every value of a label and a line at their mean, labels from top to bottom.

    Args:
        level: label and value of a vertical line to compare with.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(height=max(1.6, 0.26 * len(series) + 0.9))
        for place, (_, values) in enumerate(series):
            axes.plot(values, [place] * len(values), "o", color=BLUE, alpha=0.7, markersize=5)
            axes.plot([sum(values) / len(values)] * 2, [place - 0.28, place + 0.28], color=ORANGE, linewidth=2)
        if level:
            axes.axvline(level[1], color=TEAL, linestyle="--", linewidth=1.2, label=level[0])
            axes.legend(loc="best", fontsize=8)
        axes.set_yticks(np.arange(len(series)), [_short(label) for label, _ in series])
        axes.invert_yaxis()
        axes.set_xlabel(xlabel)
        return _svg(figure, xlabel)


def confusion(counts: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """A heat map of counts (K, K): true class by row, predicted class by column, shares of a row in colour."""
    with mpl.rc_context(_STYLE):
        size = min(7.0, max(3.4, 0.33 * len(class_names) + 1.2))
        figure, axes = _figure(width=size, height=size)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        if len(class_names) <= 20:
            for row, column in np.argwhere(counts):
                dark = shares[row, column] > 0.5
                colour = "white" if dark else "#1a1a1a"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
        names = [_short(name) for name in class_names] if len(class_names) <= 50 else []
        ticks = np.arange(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=7)
        axes.set_yticks(ticks, names, fontsize=7)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return _svg(figure, "confusion matrix")


def heat_map(shares: Sequence[Sequence[float]], class_names: Sequence[str], xlabel: str, ylabel: str) -> str:
    """A small heat map of shares (K, K), each row summing to 1 at most; for few classes."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(width=3.2, height=3.2)
        axes.imshow(np.array(shares), cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        names = [_short(name, 12) for name in class_names]
        axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(np.arange(len(names)), names, fontsize=7)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        return _svg(figure, "confusions")


def over_probability(steps: Sequence[float], series: Mapping[str, tuple[Points, str]]) -> str:
    """Lines over a least probability: label -> (one value a step, colour)."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(height=3.0)
        for label, (values, colour) in series.items():
            axes.plot(steps, _floats(values), color=colour, label=label)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel("least probability of a label")
        axes.set_ylabel("share")
        axes.legend(loc="lower left", fontsize=8)
        return _svg(figure, "usable labels")


def reliability(series: Mapping[str, tuple[Points, Points, Points, str]]) -> str:
    """Accuracy over stated confidence: label -> (confidences, accuracies, images, colour); the diagonal is honesty.

    The area of a point is its share of the images, so that the eye passes over points of a handful.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(height=3.4)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for label, (stated, accuracy, images, colour) in series.items():
            shares = np.array(_floats(images)) / max(sum(_floats(images)), 1.0)
            axes.plot(_floats(stated), _floats(accuracy), color=colour, linewidth=0.8, alpha=0.6)
            axes.scatter(_floats(stated), _floats(accuracy), s=6 + 250 * shares, color=colour, label=label, alpha=0.8)
        axes.set_xlim(-0.02, 1.04)
        axes.set_ylim(-0.02, 1.06)
        axes.set_xlabel("stated confidence")
        axes.set_ylabel("accuracy")
        for handle in axes.legend(loc="best", fontsize=8).legend_handles:
            handle.set_sizes([20])  # type: ignore[union-attr]
        return _svg(figure, "calibration")


def _figure(width: float = 4.4, height: float = 2.7) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element for the page, scaled to the width it is given, with a name for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def _floats(values: Points) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _short(label: str, limit: int = 24) -> str:
    """A label that fits beside a bar; matplotlib would read a dollar sign as mathematics."""
    shown = label if len(label) <= limit else label[: limit - 3] + "..."
    return shown.replace("$", r"\$")
