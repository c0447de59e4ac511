"""What came of a search: its table, the best configuration, a picture. Ray-free."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from coreg_ray.metrics import ACCURACY, EPOCH, EPOCH_S, PHASE, TIME
from coreg_ray.run.cells import neutral
from coreg_ray.search.objective import settled
from coreg_ray.search.space import Space

FINISHED, STOPPED, FAILED, UNFINISHED = "finished", "stopped early", "failed", "unfinished"
_SHOWN = 20  # trials in the table on the terminal


@dataclass(frozen=True)
class Trial:
    """One trial, as far as it came.

    Attributes:
        name: Tune's id. run: its run folder below `trials/`. status: one of the four above. values: by dotted key.
        history: one dictionary of metrics an epoch, oldest first. error: why it failed, in one line.
    """

    name: str
    run: str
    status: str
    values: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def epochs(self) -> int:
        return int(self.history[-1][EPOCH]) + 1 if self.history else 0

    @property
    def seconds(self) -> float:
        """Seconds spent in epochs, not in starting and waiting."""
        return sum(float(metrics.get(EPOCH_S, 0.0)) for metrics in self.history)

    def score(self, objective: str) -> float:
        """What `settled` makes of the objective; -inf where the last epoch has none."""
        if not self.history or not _is_number(self.history[-1].get(objective)):
            return -math.inf
        return settled([float(m[objective]) for m in self.history if _is_number(m.get(objective))])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def ranked(trials: Sequence[Trial], objective: str) -> list[Trial]:
    """Best first. Trials that ran to their end come before those that were stopped, whatever their score.

    A score changes its meaning with the epoch: that of a trial that was stopped early is no match for a finished one.
    """
    return sorted(trials, key=lambda trial: (trial.status == FINISHED, trial.status != FAILED, trial.score(objective)))[
        ::-1
    ]


def as_csv(trials: Sequence[Trial], space: Space, objective: str) -> str:
    """One row a trial, best first: what it is, its values, its last metrics. Missing values are empty."""
    names = {name for trial in trials for metrics in trial.history[-1:] for name in metrics}
    metrics = sorted(names - {EPOCH, "epochs", PHASE, "run", "placement_group"})
    metrics.sort(key=lambda name: (name.startswith(TIME), name))
    columns = ["trial", "status", "epochs", "objective", *space.keys, *metrics, "time/trial_s", "run", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for trial in ranked(trials, objective):
        last = trial.history[-1] if trial.history else {}
        row = {
            **last,
            **trial.values,
            "trial": trial.name,
            "status": trial.status,
            "epochs": trial.epochs,
            "objective": trial.score(objective) if objective in last else "",
            "time/trial_s": round(trial.seconds, 3),
            "run": f"trials/{trial.run}" if trial.run else "",
            "error": trial.error,
        }
        writer.writerow({name: neutral(cell) for name, cell in row.items()})
    return text.getvalue()


def as_table(trials: Sequence[Trial], space: Space, objective: str) -> str:
    """The trials for a terminal, best first; keys without their section where that is clear."""
    short = [key.rsplit(".", 1)[1] for key in space.keys if "." in key]
    titles = [key if key.rsplit(".", 1)[-1] not in short or short.count(key.rsplit(".", 1)[-1]) > 1 else
              key.rsplit(".", 1)[-1] for key in space.keys]  # fmt: skip
    labelled = objective != ACCURACY and any(ACCURACY in t.history[-1] for t in trials if t.history)
    extra = [ACCURACY] if labelled else []
    lines = [["trial", "status", "epochs", *titles, objective, *extra]]
    for trial in ranked(trials, objective)[:_SHOWN]:
        last = trial.history[-1] if trial.history else {}
        values = [_shown(trial.values.get(key)) for key in space.keys]
        score = trial.score(objective)
        scores = [_shown(score if math.isfinite(score) else None), *(_shown(last.get(name)) for name in extra)]
        lines.append([trial.name, trial.status, str(trial.epochs), *values, *scores])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if len(trials) > _SHOWN:
        text.append(f"... and {len(trials) - _SHOWN} more in trials.csv")
    return "\n".join(text)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
