"""`history.csv` and TensorBoard events: what a run did, epoch by epoch, and the settings that it did it with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from coreg_ray import metrics
from coreg_ray.config.texts import flattened
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.uris import without_credentials
from coreg_ray.run.whole import room_for

RESULTS = (metrics.COMBINED, metrics.LABEL_FREE, metrics.ACCURACY)  # what TensorBoard compares runs by


class History:
    """Rank 0's record of a run: one CSV row an epoch, replaced as a whole, and TensorBoard events beside it.

    On object stores the events are written locally and copied after each epoch.
    """

    def __init__(self, run: RunFolder, enabled: bool = True, settings: Mapping[str, Any] | None = None) -> None:
        """`settings`: the run's configuration as a tree, which TensorBoard shows as hyper-parameters."""
        self.run = run
        self.enabled = enabled
        self.settings = _as_hyperparameters(without_credentials(dict(settings or {})))
        self._written = -1
        self._events: Any = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write all finished epochs, oldest first; epochs that were seen before are not logged twice."""
        if not self.enabled or not history:
            return
        self.run.write_history(history)
        folder = self._local_folder()
        with room_for(folder):
            self._write_events(folder, history)
        if self._scratch is not None:
            for file in folder.iterdir():
                self.run.write(f"tensorboard/{file.name}", file.read_bytes())

    def _write_events(self, folder: Path, history: list[dict[str, Any]]) -> None:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder), purge_step=int(history[-1][metrics.EPOCH]))
            self._written = int(history[-1][metrics.EPOCH]) - 1
            self._log_settings()
        for figures in history:
            if figures[metrics.EPOCH] > self._written:
                for name, value in figures.items():
                    if isinstance(value, int | float) and name != metrics.EPOCH:
                        self._events.add_scalar(name, value, figures[metrics.EPOCH])
        self._written = int(history[-1][metrics.EPOCH])
        self._events.flush()

    def _local_folder(self) -> Path:
        """Where events are written: in the run folder, or beside an object store until `__exit__`."""
        if self.run.local:
            return Path(self.run.path) / "tensorboard"
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="coreg-tb-")
        return Path(self._scratch.name)

    def _log_settings(self) -> None:
        """What the HPARAMS tab of TensorBoard takes: the settings of this run, and which curves are its results."""
        from torch.utils.tensorboard.summary import hparams

        if self.settings:
            for summary in hparams(self.settings, dict.fromkeys(RESULTS, 0.0)):
                self._events.file_writer.add_summary(summary)


def _as_hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values of all settings that are set; lists as text."""
    kinds = (bool, int, float, str)
    given = {name: value for name, value in flattened(settings).items() if value is not None}
    return {name: value if isinstance(value, kinds) else str(value) for name, value in given.items()}
