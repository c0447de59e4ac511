"""Several methods on the rows of one run, each a run folder of its own, through Ray Tune.

Tune gives each run its place on the cluster, as many at once as there is room for. What makes a comparison one that can
be stopped is in the run folders: the same command again goes on with those that are not finished and trains no other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from coreg_ray import metrics
from coreg_ray.cluster.connect import connect
from coreg_ray.cluster.features import open_features, write_features
from coreg_ray.cluster.metrics import show_epoch
from coreg_ray.cluster.resources import at_once_here, nodes_with, refuse_unreachable, scaling_config, teams_on_one_node
from coreg_ray.cluster.stages import take_rows
from coreg_ray.cluster.train import fit as fit_in_workers
from coreg_ray.cluster.train import most_memory
from coreg_ray.cluster.tune import fit_into_cluster
from coreg_ray.cluster.tune_trial import beside_others, in_this_process
from coreg_ray.cluster.waiting import moved, waiting_for, watched
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool
from coreg_ray.config.paths import with_absolute_paths
from coreg_ray.config.texts import changed, flattened
from coreg_ray.errors import UserError
from coreg_ray.report.comparison import comparison_page
from coreg_ray.run.comparison import FINISHED, PAGE, RUNS, TABLE, Outcome, read_outcome
from coreg_ray.run.folder import FAILURE, RunFolder
from coreg_ray.run.lock import locked
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import extended
from coreg_ray.search.comparison import as_csv, as_table, conclusion, decided_by, summaries
from coreg_ray.training.embeddings import refuse_lacking
from coreg_ray.training.fit import NonFiniteLossError

log = logging.getLogger(__name__)

_SHARED = ("annotations", "rejects", "labels", "candidates", "rows", "features")
_RECORD = "tune"  # no row's folder, which ends in its seed


@dataclass(frozen=True)
class Entry:
    """One run of a comparison: a row's name, with one seed, and its whole configuration."""

    name: str
    seed: int
    config: Config

    @property
    def folder(self) -> RunFolder:
        return RunFolder.at(self.config.output)


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison: a table for the terminal, and what the figures allow to say."""

    table: str
    conclusion: str


def compare(entries: Sequence[Entry], config: Config, max_concurrent: int | None = None) -> Comparison:
    """Train every entry to its end; writes `comparison.csv` and `comparison.html` into the run's folder.

    Args:
        config: of the run. max_concurrent: most runs at once; None: as many as there is room for.

    Raises:
        UserError: a folder of `methods/` holds a run with other settings, the cluster has no room, or
            annotators have not stored what a method looks at, before any work.
    """
    run = RunFolder.at(config.output)
    annotator = _annotator(run)
    with locked(run, config.output), watched():
        if run.read_rows_manifest("pool") is None:
            _make_rows(config, run)
        for entry in entries:
            refuse_lacking(entry.config, run)
        for entry in entries:
            _claim(entry, run)
        outcomes = [read_outcome(entry.folder, entry.name, entry.seed, annotator) for entry in entries]
        left = [entry for entry, one in zip(entries, outcomes, strict=True) if one.status != FINISHED]
        log.info("%d of %d runs are to be trained", len(left), len(entries))
        errors = _train(left, config, run, max_concurrent) if left else {}
        outcomes = [
            read_outcome(entry.folder, entry.name, entry.seed, annotator, errors.get(entry.config.output, ""))
            for entry in entries
        ]
        return _conclude(run, outcomes, annotator)


def _annotator(run: RunFolder) -> float | None:
    """The accuracy of the annotator alone on the test images, where it is known."""
    value = run.read_metrics().get(metrics.ZERO_SHOT)
    return float(value) if isinstance(value, int | float) else None


def _make_rows(config: Config, run: RunFolder) -> None:
    """Rows, and features where students learn from them, of a run that was annotated alone."""
    connect()
    open_features(config, run)
    take_rows(config, run, run)
    if config.student.on_features:
        write_features(config, run, ["pool", "test"] if config.test.kind else ["pool"])


def fitted(config: Config) -> Config:
    """The configuration of a run with what of its method is empty fitted to its images.

    Raises:
        UserError: nothing was annotated there.
    """
    manifest = RunFolder.at(config.output).read_candidate_manifest()
    if manifest is None:
        raise UserError(
            f"{config.output} has no candidate sets to compare on; annotate first (coreg-ray annotate, or coreg-ray "
            "pipeline)"
        )
    return fitted_to_pool(config, manifest.quality.rows)


def _claim(entry: Entry, run: RunFolder) -> None:
    """Make the entry's folder a run that shares the data of the comparison's. Raises UserError if it holds another."""
    folder = entry.folder
    there = folder.read_config()
    if there is not None and there.fingerprint() != entry.config.fingerprint():
        differences = changed(flattened(there.decisive()), flattened(entry.config.decisive()))
        raise UserError(
            f"{entry.config.output} holds a run with other settings ({'; '.join(differences[:3])}); name the row "
            "otherwise, or remove that folder"
        )
    folder.write_config(entry.config)
    folder.link(**{name: run.resolve(name) for name in _SHARED})


def _train(entries: list[Entry], config: Config, run: RunFolder, max_concurrent: int | None) -> dict[str, str]:
    """Errors by the output of the runs that failed."""
    connect()
    refuse_unreachable(run)
    need, at_once = fit_into_cluster(config, max_concurrent)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends this as it ends every job
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner cannot be silenced
    for chatty in ("ray.tune", "ray.train", "ray.tune.execution.tune_controller"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    several = config.cluster.num_workers > 1
    labels = {} if several else config.cluster.label_selector or {}
    place = tune.PlacementGroupFactory([need], bundle_label_selector=[labels]) if labels else need
    settings = {entry.config.output: entry.config.settings() for entry in entries}
    train = tune.with_parameters(_train_one, settings=settings, cpus=need["CPU"], at_once=at_once)
    record = run / RUNS / _RECORD  # Tune's own, where every node sees it; the run folders are what counts
    record.delete()
    try:
        with waiting_for(need, need):
            results = tune.Tuner(
                tune.with_resources(train, place),
                param_space={"output": tune.grid_search(list(settings))},
                tune_config=tune.TuneConfig(max_concurrent_trials=at_once or None, reuse_actors=False),
                run_config=tune.RunConfig(
                    name=_RECORD,
                    storage_path=(run / RUNS).path,
                    storage_filesystem=None if run.local else run.filesystem,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
                    callbacks=[_Lines(len(entries))],
                ),
            ).fit()
    finally:
        record.delete()
    ended = [results[number] for number in range(len(results))]
    failed = [(str(one.config["output"]), str(one.error)) for one in ended if one.config and one.error]
    return {output: error.strip().splitlines()[-1] for output, error in failed}


def _train_one(values: dict[str, Any], settings: dict[str, Any], cpus: float, at_once: int) -> None:
    """One run; inside Tune. What another attempt cannot mend is a result of the row, and no error to try again."""
    logging.getLogger("coreg_ray").setLevel(logging.WARNING)  # the driver says how runs go
    config = Config.model_validate(settings[values["output"]])
    run = RunFolder.at(config.output)
    run.delete(FAILURE)
    try:
        if config.cluster.num_workers > 1:
            nodes = nodes_with(config.cluster.label_selector or {})
            each: dict[str, float] = dict(scaling_config(config.cluster).resources_per_worker or {})  # type: ignore[arg-type]
            teams = teams_on_one_node(config.cluster.num_workers, each, at_once, nodes)
            trained = fit_in_workers(beside_others(config, teams))
            if trained.memory_mb is not None:
                run.update_metrics({metrics.MEMORY: trained.memory_mb})
        else:
            for epoch in in_this_process(beside_others(config, at_once_here(at_once)), cpus):
                show_epoch(run.name, epoch.metrics)
                tune.report({"epochs": epoch.number + 1})
            run.update_metrics({metrics.MEMORY: most_memory()})
    except (NonFiniteLossError, UserError) as error:
        run.write(FAILURE, str(error))
    tune.report({"epochs": len(run.read_history())})


class _Lines(tune.Callback):
    """A line for every run that begins or ends."""

    def __init__(self, count: int) -> None:
        self._count, self._ended = count, 0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Those that have no room yet wait for their turn while others run."""
        if any(trial.status == trial.RUNNING for trial in trials):
            moved()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        log.info("%s begins", _shown(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended += 1
        log.info("%s ends (%d of %d)", _shown(trial), self._ended, self._count)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended += 1
        log.info("%s failed (%d of %d)", _shown(trial), self._ended, self._count)


def _shown(trial: Any) -> str:
    return str(trial.config["output"]).rstrip("/").rsplit("/", 1)[-1]


def _conclude(run: RunFolder, outcomes: list[Outcome], annotator: float | None) -> Comparison:
    figure = decided_by(outcomes)
    rows = summaries(outcomes)
    images = run.read_rows_manifest("test")
    sentence = conclusion(rows, figure, annotator, _count(run.rows("test")) if images else None)
    run.write(TABLE, as_csv(outcomes))
    run.write(PAGE, comparison_page(run.name, rows, outcomes, figure, annotator, sentence))
    return Comparison(as_table(rows, figure), sentence)


def _count(rows: Folder) -> int | None:
    """How many images a folder of rows holds."""
    import pyarrow.parquet as pq

    counts = []
    for path in rows.files(".parquet"):
        with rows.filesystem.open_input_file(path) as file:
            counts.append(pq.read_metadata(file).num_rows)
    return sum(counts) or None


def entry_of(config: Config, name: str, seed: int, changes: dict[str, Any]) -> Entry:
    """The entry of a row.

    Args:
        config: of the run. changes: its own settings, by dotted key, and the checked values of a preset among them.

    Raises:
        pydantic.ValidationError: the settings contradict one another.
    """
    tree = with_absolute_paths(config).settings()
    for key, value in {**changes, "seed": seed}.items():
        *sections, last = key.split(".")
        branch = tree
        for section in sections:
            branch = branch[section]
        branch[last] = value
    tree["output"] = extended(config.output, f"/{RUNS}/{name}-{seed}")
    return Entry(name, seed, Config.model_validate(tree))
