"""Means and spreads over seeds, and which variant is best where a study is left out."""

from __future__ import annotations

import statistics
from typing import Any

FIGURES = ("test_accuracy", "pool_accuracy", "purified_accuracy")

Line = dict[str, Any]
Group = tuple[str, str, int]


def group_of(line: Line) -> Group:
    """What the runs of one table have in common: voters, kind of student, number of images."""
    return line["votes"], line["student"], line["rows"]


def titled(group: Group) -> str:
    """A group as the head of its table."""
    voters, student, images = group
    return f"{voters}, {images} images, {student}"


def table(lines: list[Line]) -> list[str]:
    """A Markdown table for each group, with mean and spread (standard deviation over seeds) of each variant."""
    shown = []
    for group in dict.fromkeys(group_of(line) for line in lines):
        own = [line for line in lines if group_of(line) == group]
        votes = f"most votes {own[0]['majority_accuracy']:.4f}, label model {own[0]['votes_accuracy']:.4f}"
        shown += [f"{titled(group)}: {votes}", ""]
        shown += ["| | runs | test | networks on the pool | purified |", "|---|---|---|---|---|"]
        for variant in dict.fromkeys(line["variant"] for line in own):
            runs = [line for line in own if line["variant"] == variant]
            cells = [_cell([run[name] for run in runs]) for name in FIGURES]
            shown.append(f"| {variant} | {len(runs)} | {' | '.join(cells)} |")
        shown.append("")
    return shown


def ranks(lines: list[Line], leave_out: str | None = None) -> dict[str, float]:
    """The mean rank of each variant that every set of voters has, over both test accuracy and purified labels.

    Rank 1 is best; `truth` and `default` take no part, equal means share a rank.

    Args:
        lines: of one kind of student and the whole number of images. leave_out: voters who do not count.
    """
    means: dict[str, dict[str, dict[str, float]]] = {}
    for voters in dict.fromkeys(line["votes"] for line in lines if line["votes"] != leave_out):
        own = [line for line in lines if line["votes"] == voters and line["variant"] not in ("truth", "default")]
        means[voters] = {
            variant: {
                name: statistics.mean(run[name] for run in own if run["variant"] == variant)
                for name in ("test_accuracy", "purified_accuracy")
            }
            for variant in dict.fromkeys(line["variant"] for line in own)
        }
    common = set.intersection(*(set(by_variant) for by_variant in means.values())) if means else set()
    total: dict[str, list[float]] = {variant: [] for variant in common}
    for by_variant in means.values():
        for name in ("test_accuracy", "purified_accuracy"):
            values = {variant: by_variant[variant][name] for variant in common}
            for variant, value in values.items():
                better = sum(other > value for other in values.values())
                equal = sum(other == value for other in values.values())
                total[variant].append(better + (equal + 1) / 2)
    return dict(sorted(((v, statistics.mean(r)) for v, r in total.items()), key=lambda entry: entry[1]))


def _cell(values: list[float]) -> str:
    spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"
