"""How well criteria that need no labels rank runs: `python -m coreg_ray.studies.real_noise.criteria FILE [FILE ...]`.

FILE holds lines of a study. Over all its runs that have criteria, by voters, student and images: Spearman's correlation
of each criterion with test accuracy, its bootstrap interval, and the accuracy that is lost where the best run by the
criterion is taken instead of the best run.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from coreg_ray import metrics
from coreg_ray.search.objective import spearman, spearman_interval
from coreg_ray.studies.real_noise.table import group_of, titled

log = logging.getLogger(__name__)

NO_RUN_OF_VOTES = ("truth", "default")  # the ceiling, and another name of a run that is there already


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lines = [
        json.loads(line) for file in parser.parse_args().files for line in file.read_text().splitlines() if line.strip()
    ]
    for text in table(lines):
        log.info("%s", text)


def table(lines: list[dict[str, Any]]) -> list[str]:
    """A Markdown table for each set of voters, kind of student and number of images, best criterion first."""
    names = sorted({name for line in lines for name in line if name.startswith(metrics.CRITERION)})
    shown = []
    for group in dict.fromkeys(group_of(line) for line in lines):
        runs = [
            line for line in lines
            if group_of(line) == group and line["variant"] not in NO_RUN_OF_VOTES and set(names) <= set(line)
        ]  # fmt: skip
        accuracy = [run["test_accuracy"] for run in runs]
        variants = len({run["variant"] for run in runs})
        shown += [f"{titled(group)}: {len(runs)} runs of {variants} variants", ""]
        shown += ["| criterion | rank correlation | 90 % | accuracy lost |", "|---|---|---|---|"]
        rows = []
        for name in names if len(runs) > 1 else []:
            values = [run[name] for run in runs]
            low, high = spearman_interval(values, accuracy)
            lost = max(accuracy) - accuracy[values.index(max(values))]
            rows.append((spearman(values, accuracy), f"{low:.2f} - {high:.2f} | {lost:.3f}", name))
        shown += [f"| `{name}` | {rho:.2f} | {rest} |" for rho, rest, name in sorted(rows, reverse=True)]
        shown.append("")
    return shown


if __name__ == "__main__":
    main()
