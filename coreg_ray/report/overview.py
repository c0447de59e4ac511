"""Where a run stands: what it is doing or came to, how long it will take, its figures; needs neither torch nor Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from coreg_ray import metrics
from coreg_ray.config import Config
from coreg_ray.config.texts import flattened
from coreg_ray.errors import UserError
from coreg_ray.run.folder import CONFIG, REPORT, RunFolder
from coreg_ray.run.history import Epochs
from coreg_ray.run.lock import worker
from coreg_ray.run.search_folder import BEST, RECORD
from coreg_ray.run.uris import without_credentials

_FIGURES = (  # those that say most, in this order; history's last row fills in while there are no others
    metrics.ACCURACY, metrics.ACCURACY_A, metrics.ACCURACY_B, metrics.ZERO_SHOT, metrics.CALIBRATION_ERROR,
    metrics.LABEL_FREE, metrics.COMBINED, metrics.CANDIDATES, metrics.AGREEMENT,
    "clean/a", "clean/b", "loss/a", "loss/b",
    "annotation/images", "annotation/rejected_images", "annotation/mean_candidates", "annotation/coverage",
    metrics.ANNOTATE_S, metrics.TRAIN_S,
)  # fmt: skip
_RECENT = 5  # epochs whose mean tells how long the next take
_COUNTED = 20  # files of an annotation whose rows are counted


@dataclass(frozen=True)
class Overview:
    """A run as it stands.

    Attributes:
        given: as the user named it. state: one line. left: what training still takes, None where nothing is known or
            left. working: who works in the folder. figures: by name. settings: by dotted name, without `output`.
    """

    given: str
    state: str
    left: str | None
    working: str | None
    figures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def overview(given: str) -> Overview:
    """Where a run stands; `given`: its folder, a path or a URI.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    run = RunFolder.at(given)
    named = str(without_credentials(given))
    try:
        entries = run.entries()
        config = run.read_config()
    except OSError as error:
        raise UserError(f"{named} cannot be read ({error}); give the folder of a run, a path or a URI") from error
    if config is None:
        problem = f"holds {', '.join(entries[:3])}, but no {CONFIG}" if entries else "does not exist, or is empty"
        raise UserError(f"{named} {problem}; give the folder that --output named")
    working, history = worker(run), run.read_history()
    return Overview(
        given=named,
        state=_state(run, config, history, working is not None, entries),
        left=_left(config, history),
        working=working,
        figures=_figures(run, history),
        settings={name: value for name, value in flattened(config.settings()).items() if name != "output"},
    )


def _state(run: RunFolder, config: Config, history: Epochs, working: bool, entries: list[str]) -> str:
    done, epochs = len(history), config.method.epochs
    if run.read_failure():
        return f"failed: {(run.read_failure() or '').strip().splitlines()[-1]}"
    if RECORD in entries:
        trials = len((run / "trials").entries())
        end = "under way" if working else f"over, {BEST} has the best" if BEST in entries else "stopped"
        return f"a search, {end}; {trials} trials"
    if epochs is not None and done >= epochs:
        whole = run.model.exists("model.json") and REPORT in entries
        if whole:
            return f"finished: {epochs} of {epochs} epochs trained, model and report written"
        rest = "being written" if working else "missing, the same command makes them"
        return f"trained; model and report are {rest}"
    if done:
        return f"training, epoch {done + 1} of {epochs}" if working else f"stopped after epoch {done} of {epochs}"
    if run.read_candidate_manifest() is None:
        doing = "annotating" if working else "stopped while annotating"
        return f"{doing}, {_answered(run)} images answered"
    if working:
        return f"annotated; before the first of {epochs} epochs" if epochs else "annotated; before the first epoch"
    return "annotated, not trained"


def _answered(run: RunFolder) -> str:
    """How many images of the pool the first annotator has answered for; counted from some of its files."""
    every = run.annotations("pool").files(".parquet")
    tables = [path for path in every if path.rpartition("/")[0] == every[0].rpartition("/")[0]]
    if not tables:
        return "no"
    counts = []
    for path in tables[:_COUNTED]:
        with run.filesystem.open_input_file(path) as file:
            counts.append(pq.ParquetFile(file).metadata.num_rows)
    about = "" if len(tables) <= _COUNTED else "about "
    return f"{about}{round(fmean(counts) * len(tables)):,}"


def _left(config: Config, history: Epochs) -> str | None:
    """What the epochs that are left take, by the last ones of the same phase."""
    done, epochs, warmup = len(history), config.method.epochs, config.method.warmup_epochs
    if not done or epochs is None or warmup is None or done >= epochs:
        return None
    timed = [(row.get(metrics.EPOCH, 0), float(row[metrics.EPOCH_S])) for row in history if metrics.EPOCH_S in row]
    early = [seconds for epoch, seconds in timed if epoch < warmup]
    late = [seconds for epoch, seconds in timed if epoch >= warmup]
    left_early = max(0, warmup - done)
    left_late = epochs - done - left_early
    if not early + late:
        return None
    seconds = left_early * fmean(early[-_RECENT:] or late[-_RECENT:]) + left_late * fmean((late or early)[-_RECENT:])
    if left_late and not late:
        return f"more than {as_time(seconds)}: epochs after the warm-up take longer"
    return f"about {as_time(seconds)}"


def _figures(run: RunFolder, history: Epochs) -> dict[str, Any]:
    newest = history[-1] if history else {}
    # The times of an epoch have the names of the whole run's.
    known = run.read_metrics() | {name: v for name, v in newest.items() if not name.startswith(metrics.TIME)}
    return {name: known[name] for name in _FIGURES if known.get(name) is not None}


def as_time(seconds: float) -> str:
    """A span of time as people say it."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def as_figure(value: Any) -> str:
    """A figure with as many digits as it is good for."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def differences(runs: list[Overview]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, by name: the value of each run, as it would be written."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    told = {name: [_written(run.settings.get(name)) for run in runs] for name in names}
    return {name: values for name, values in told.items() if len(set(values)) > 1}


def _written(value: Any) -> str:
    value = without_credentials(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
