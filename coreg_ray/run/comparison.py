"""What came of one row of a comparison with one seed, as it is handed from the runs to tables and the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coreg_ray import metrics
from coreg_ray.run.folder import RunFolder

TABLE, PAGE, RUNS = "comparison.csv", "comparison.html", "methods"
FINISHED, UNFINISHED, FAILED = "finished", "unfinished", "failed"


@dataclass(frozen=True)
class Outcome:
    """One run of a comparison, as far as it came.

    Attributes:
        name: of the row. kind: `method.kind`. labels: what it learns from. status: finished, unfinished or failed.
        last: the figures of its last epoch. passes: forward passes a row and network, all epochs together. seconds: in
            epochs. memory_mb: most that one of its processes held. epochs_to_annotator: epochs until both networks
            together were as right as the annotator, None where they never were or nothing is known of it. error: why
            it failed.
    """

    name: str
    kind: str
    labels: str
    seed: int
    status: str
    last: dict[str, Any] = field(default_factory=dict)
    passes: float | None = None
    seconds: float | None = None
    memory_mb: float | None = None
    epochs_to_annotator: int | None = None
    error: str = ""

    def figure(self, name: str) -> float | None:
        """Of the last epoch; None where it has none."""
        value = self.last.get(name)
        return float(value) if isinstance(value, int | float) else None


def read_outcome(folder: RunFolder, name: str, seed: int, annotator: float | None, error: str = "") -> Outcome:
    """What lies in the folder of a run.

    Args:
        annotator: its accuracy on the test images, None where it is not known. error: why it failed, if it did.
    """
    config, history = folder.read_config(), folder.read_history()
    method = config.method if config else None
    failure = folder.read_failure() or error
    epochs = method.epochs if method else None
    whole = bool(history and epochs and int(history[-1][metrics.EPOCH]) + 1 >= epochs)
    as_right = (
        int(row[metrics.EPOCH]) + 1
        for row in history
        if annotator is not None and row.get(metrics.ACCURACY, -1.0) >= annotator
    )
    return Outcome(
        name=name,
        kind=method.kind if method else "",
        labels=method.learns_from if method else "",
        seed=seed,
        status=FINISHED if whole else FAILED if failure else UNFINISHED,
        last=history[-1] if history else {},
        passes=sum(float(row.get(metrics.PASSES) or 0) for row in history) or None,
        seconds=sum(float(row.get(metrics.EPOCH_S) or 0) for row in history) or None,
        memory_mb=folder.read_metrics().get(metrics.MEMORY),
        epochs_to_annotator=next(as_right, None),
        error="" if whole else failure,
    )
