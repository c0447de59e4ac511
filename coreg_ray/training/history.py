"""`history.csv` and TensorBoard events: what a run did, epoch by epoch, and the settings that it did it with."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import without_credentials

COLUMNS = (
    "epoch", "phase", "loss/a", "loss/b", "clean/a", "clean/b", "agreement", "test/accuracy", "test/accuracy_a",
    "test/accuracy_b", "criterion/label_free",
)  # fmt: skip
RESULTS = ("criterion/combined", "criterion/label_free", "test/accuracy")  # what TensorBoard compares runs by


class History:
    """Rank 0's record of a run: one CSV row an epoch, replaced as a whole, and TensorBoard events beside it.

    On object stores the events are written locally and copied after each epoch.
    """

    def __init__(self, output: Folder, enabled: bool = True, settings: Mapping[str, Any] | None = None) -> None:
        """`settings`: the run's configuration as a tree, which TensorBoard shows as hyper-parameters."""
        self.output = output
        self.enabled = enabled
        self.settings = dict(_flat(without_credentials(dict(settings or {}))))
        self._written = -1
        self._events: Any = None
        self._folder = Path(output.path) / "tensorboard" if output.local else Path(tempfile.mkdtemp(prefix="coreg-tb-"))

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write all finished epochs, oldest first; epochs that were seen before are not logged twice."""
        if not self.enabled or not history:
            return
        self.output.write("history.csv", as_csv(history))
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self._folder), purge_step=int(history[-1]["epoch"]))
            self._written = int(history[-1]["epoch"]) - 1
            self._log_settings()
        for metrics in history:
            if metrics["epoch"] > self._written:
                for name, value in metrics.items():
                    if isinstance(value, int | float) and name != "epoch":
                        self._events.add_scalar(name, value, metrics["epoch"])
        self._written = int(history[-1]["epoch"])
        self._events.flush()
        if not self.output.local:
            for file in self._folder.iterdir():
                self.output.write(f"tensorboard/{file.name}", file.read_bytes())

    def _log_settings(self) -> None:
        """What the HPARAMS tab of TensorBoard takes: the settings of this run, and which curves are its results."""
        from torch.utils.tensorboard.summary import hparams

        if self.settings:
            for summary in hparams(self.settings, dict.fromkeys(RESULTS, 0.0)):
                self._events.file_writer.add_summary(summary)


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all settings that are set; lists as text."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        elif value is not None:
            yield f"{above}{name}", value if isinstance(value, bool | int | float | str) else str(value)


def as_csv(history: list[dict[str, Any]]) -> str:
    """The fixed columns first, then all others in the order of their names; times last. Missing values are empty."""
    others = sorted({name for metrics in history for name in metrics} - set(COLUMNS))
    columns = [*COLUMNS, *sorted(others, key=lambda name: (name.startswith("time/"), name))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
