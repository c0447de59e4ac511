"""One trial of a search: a training run in one process that holds both networks, or in workers of its own.

A trial's run folder is `trials/<id>` below the search's: checkpoints, history and configuration of its own, images and
candidate sets linked. What Tune stores of a trial is a pointer to its newest checkpoint, so that Tune's own means of
going on (restore, population based training) find it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from coreg_ray.cluster.candidates import build_candidates
from coreg_ray.cluster.metrics import show_epoch
from coreg_ray.cluster.resources import at_once_here, nodes_with, scaling_config, teams_on_one_node
from coreg_ray.cluster.tasks import ask
from coreg_ray.cluster.train import fit as fit_in_workers
from coreg_ray.config import Config
from coreg_ray.ids import fingerprint
from coreg_ray.methods import KINDS
from coreg_ray.metrics import EPOCH
from coreg_ray.run.folder import FAILURE, RunFolder
from coreg_ray.run.search_folder import SearchFolder
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import extended
from coreg_ray.search.objective import WORST
from coreg_ray.search.space import Space, trial_settings
from coreg_ray.training import checkpoint
from coreg_ray.training.fit import NonFiniteLossError
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.worker import train

POINTER = "run.json"


@dataclass(frozen=True)
class Study:
    """What all trials of a search have in common.

    Attributes:
        config: the configuration that they vary, its paths absolute. space: what they vary. objective: the metric that
            they are compared by. keep: whether every checkpoint stays, because other trials may take it over. cpus: of
            a trial's own process. at_once: most trials at a time, 0: as many as there is room for.
    """

    config: Config
    space: Space
    objective: str
    keep: bool
    cpus: float
    at_once: int

    @property
    def output(self) -> SearchFolder:
        return SearchFolder.at(self.config.output)


class CandidateMaker:
    """An actor that makes candidate sets from the search's stored annotations, once for each distinct setting.

    The trial that waits holds its CPUs meanwhile and does not use them, so the work asks for none.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._made: set[str] = set()

    def folder(self, settings: dict[str, Any]) -> str:
        """Path of the `candidates/` folder for a trial's settings. Raises UserError as `build_candidates` does."""
        config, output = Config.model_validate(settings), self._study.output
        mark = _mark(config)
        place = output.data(mark)
        if mark not in self._made:  # a search that is gone on with finds most of them there, whole or not
            build_candidates(config, place, output, cpus=0)
            self._made.add(mark)
        return place.candidates.path


def candidate_maker(study: Study) -> Any:
    """A `CandidateMaker`, which any trial may ask and which comes back if its node is lost; None where none is needed.

    It is a process of its own, so it is not started for a search whose trials all have the search's own sets.
    """
    drawn = study.config.candidates.mode == "synthetic"  # by the seed
    if not any(
        key.startswith("candidates.") or key == "source.prompts" or (drawn and key == "seed")
        for key in study.space.keys
    ):
        return None
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CandidateMaker).remote(study)


def _candidates(config: Config, study: Study, maker: Any) -> Folder:
    """The folder with the candidate sets that a trial trains on."""
    if _mark(config) == _mark(study.config):
        return study.output.candidates
    return Folder(study.output.filesystem, ask(maker.folder.remote(config.settings())))


def _mark(config: Config) -> str:
    """A name for all that decides the candidate sets, given the annotations."""
    drawn = config.seed if config.candidates.mode == "synthetic" else None
    return fingerprint(config.candidates.model_dump(), config.source.prompts, drawn)


def train_trial(values: dict[str, Any], study: Study, maker: Any) -> None:
    """A trial in this process; reports after every epoch. Runs inside Tune.

    Raises:
        UserError: the values contradict each other or do not fit the data.
    """
    run, config, clone_from = _open(values, study, maker)
    config = _beside_others(config, at_once_here(study.at_once))
    at_once = 1 if config.method.order == "sequential" else 2
    torch.set_num_threads(config.cluster.threads or max(1, int(study.cpus) // at_once))
    device = "cuda" if ray.get_gpu_ids() else "cpu"  # not whether there is one: it may be another trial's
    epoch = None
    with _diverging(run, study.objective):
        for epoch in train(config, Mesh(device), KINDS[config.method.kind], clone_from):
            show_epoch(run.name, epoch.metrics)
            _report(epoch.metrics, run)
        newest = checkpoint.newest(run.checkpoints)
        if epoch is None and newest is not None:  # it was killed between its last epoch and Tune's knowing of it
            _report(checkpoint.describe(newest)["history"][-1], run)


def _beside_others(config: Config, trials: int) -> Config:
    """Every one of the trials that may run on a machine at the same time gets an equal share of its memory."""
    share = config.cluster.memory_share / trials
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"memory_share": share})})


def train_nested(values: dict[str, Any], study: Study, maker: Any) -> None:
    """A trial in workers of its own (`cluster.num_workers`), driven from this process; raises as `train_trial` does."""
    run, config, _ = _open(values, study, maker)
    each: dict[str, float] = dict(scaling_config(config.cluster).resources_per_worker or {})  # type: ignore[arg-type]
    nodes = nodes_with(config.cluster.label_selector or {})
    config = _beside_others(config, teams_on_one_node(config.cluster.num_workers, each, study.at_once, nodes))
    with _diverging(run, study.objective):
        fit_in_workers(config, [_Forward(run.name)])


class _Forward(TuneReportCallback):
    """Hands the workers' reports to Tune as `train_trial` makes them."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        super().after_report(run_context, [_as_reported(metrics[0], self._run)], None)


def _open(values: dict[str, Any], study: Study, maker: Any) -> tuple[RunFolder, Config, Folder | None]:
    """The trial's run folder, ready to train in; its configuration; the checkpoint that it takes over, if any."""
    for chatty in ("coreg_ray", "ray.train"):  # Tune's driver says how trials go
        logging.getLogger(chatty).setLevel(logging.WARNING)
    name, clone_from = _identify(study, values)
    run = study.output.trial(name)
    config = trial_settings(study.config, study.space, values)
    kept = config.checkpoint.model_copy(update={"keep": config.method.epochs}) if study.keep else config.checkpoint
    config = config.model_copy(update={"output": extended(study.config.output, f"/trials/{name}"), "checkpoint": kept})
    run.write_config(config)
    candidates = _candidates(config, study, maker)
    rows = study.output.rows_at(config.student.resolution, study.config.student.resolution)
    shared = {name: study.output.resolve(name) for name in ("labels", "rejects")}
    shared |= {name: rows.resolve(name) for name in ("rows", "features")}
    run.link(candidates=candidates, **shared)
    return run, config, clone_from


def _identify(study: Study, values: dict[str, Any]) -> tuple[str, Folder | None]:
    """The name of the trial's run folder, and what it takes over.

    A trial that Tune restores points to its own run. One that points to another trial's has just been told to go on
    from there with new values, and begins a run of its own.
    """
    trial = tune.get_context().get_trial_id()
    stored = tune.get_checkpoint()
    if stored is None:
        return trial, None
    with stored.as_directory() as folder:
        pointer = json.loads(Path(folder, POINTER).read_text())
    if pointer["trial"] == trial:
        return pointer["run"], None
    donor = study.output.trial(pointer["run"]).checkpoints / pointer["checkpoint"]
    # The values are part of the name: the same checkpoint may be taken over twice, to go on in two ways.
    return f"{trial}-from-{pointer['trial'].rsplit('_', 1)[-1]}-{donor.name}-{fingerprint(values)}", donor


@contextmanager
def _diverging(run: RunFolder, objective: str) -> Iterator[None]:
    """A loss that is not finite ends the trial with a note and the worst score there is.

    Not with an error, after which Tune would try again: `cluster.max_failures` times, each in a new process, and once
    more whenever the search is gone on with.
    """
    run.delete(FAILURE)  # of a search that was killed before Tune knew
    try:
        yield
    except NonFiniteLossError as error:
        run.write(FAILURE, str(error))
        done = len(run.read_history())
        tune.report({objective: WORST, "epochs": done + 1, "run": run.name, "failure": str(error)})


def _report(metrics: dict[str, Any], run: RunFolder) -> None:
    trial = tune.get_context().get_trial_id()
    newest = f"epoch-{metrics[EPOCH]:06d}"
    with tempfile.TemporaryDirectory() as folder:
        stored = None
        if (run.checkpoints / newest).exists("manifest.json"):
            pointer = {"trial": trial, "run": run.name, "checkpoint": newest}
            Path(folder, POINTER).write_text(json.dumps(pointer))
            stored = tune.Checkpoint.from_directory(folder)
        tune.report(_as_reported(metrics, run.name), checkpoint=stored)


def _as_reported(metrics: dict[str, Any], run: str) -> dict[str, Any]:
    """An epoch's metrics as Tune gets them: with the number of epochs that are done, and the run folder's name."""
    return {**metrics, "epochs": metrics[EPOCH] + 1, "run": run}
