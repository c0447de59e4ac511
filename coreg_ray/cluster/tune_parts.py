"""A search in Tune's own terms: parameter space, scheduler, searcher, loggers, and what happens when a trial ends."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from coreg_ray.cluster.waiting import moved
from coreg_ray.errors import UserError
from coreg_ray.search.definition import Search
from coreg_ray.search.space import RANGES, Dimension, Space, encoded

log = logging.getLogger(__name__)

_SAY_EVERY_S = 60.0
_DIES_WITHIN_S = 10.0  # a stopped trial's process
EPOCHS = "epochs"  # what trials report as the number of epochs that are done


def param_space(space: Space) -> dict[str, Any]:
    """Tune's parameter space: a flat dictionary of dotted keys."""
    return {dimension.key: _domain(dimension) for dimension in space.dimensions}


def _domain(dimension: Dimension) -> Any:
    if dimension.kind in RANGES:
        return getattr(tune, dimension.kind)(*dimension.values)
    values = [encoded(value) for value in dimension.values]
    return tune.grid_search(values) if dimension.kind == "grid" else tune.choice(values)


def scheduler(search: Search, space: Space, longest: int) -> TrialScheduler:
    """Who stops trials early. `longest`: epochs of the longest trial.

    Raises:
        UserError: the grace period is longer than any trial.
    """
    grace = search.grace_period or max(1, round(longest / 5))  # with a quarter, ASHA spends more than half
    if grace > longest:
        raise UserError(f"grace_period={grace} exceeds the {longest} epochs of a trial; use at most {longest}")
    if search.scheduler == "asha":
        return ASHAScheduler(
            time_attr=EPOCHS, max_t=longest, grace_period=grace, reduction_factor=search.reduction_factor
        )
    if search.scheduler == "median":
        # Without a time slice trials would pause after every epoch to let others catch up, each in a new process.
        return MedianStoppingRule(time_attr=EPOCHS, grace_period=grace, min_time_slice=math.inf)  # type: ignore[arg-type]
    if search.scheduler == "pbt":
        changes = {
            dimension.key: _domain(dimension) if dimension.kind in RANGES else [encoded(v) for v in dimension.values]
            for dimension in space.dimensions
        }
        return PopulationBasedTraining(
            time_attr=EPOCHS,
            perturbation_interval=search.perturbation_interval or max(1, round(longest / 5)),
            hyperparam_mutations=changes,
            custom_explore_fn=partial(_inside, space),
        )
    return FIFOScheduler()


def _inside(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """Population based training multiplies values, also beyond their range."""
    return {**values, **{d.key: d.inside(values[d.key]) for d in space.dimensions}}


def searcher(search: Search, seed: int, at_once: int) -> Any:
    """Who chooses the next trial's values; equal seeds choose alike. `at_once`: most trials at a time, 0: no limit."""
    if search.search == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return OptunaSearch(seed=seed)
    kind = Population if search.scheduler == "pbt" else BasicVariantGenerator
    return kind(random_state=seed, max_concurrent=at_once)


class Population(BasicVariantGenerator):
    """Random search that is over when its last trial ends, not when the last one begins.

    Until a search is over, Tune keeps the process of a trial that pauses to take over another's state, and continues in
    it; after that it would start a new process each time.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._alive: set[str] = set()

    def next_trial(self) -> Any:
        trial = super().next_trial()
        if trial is not None:
            self._alive.add(trial.trial_id)
        return trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, result, error)
        self._alive.discard(trial_id)

    def is_finished(self) -> bool:
        return bool(super().is_finished()) and not self._alive

    def set_state(self, state: dict[str, Any]) -> None:
        """Of a search that is gone on with: who lived at its last snapshot may have ended since, unheard."""
        super().set_state(state)
        self._alive = set()


def loggers(search: Search, name: str) -> list[tune.Callback]:
    """MLflow and Weights & Biases, where they were asked for; Tune's own loggers are always there.

    Args:
        name: of the search's folder, which the experiment or group is called by.
    """
    callbacks: list[tune.Callback] = []
    if search.mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(tracking_uri=search.mlflow, experiment_name=name))
    if search.wandb:
        from ray.air.integrations.wandb import WandbLoggerCallback

        # Its processes get the driver's API key and nothing else of its environment.
        callbacks.append(WandbLoggerCallback(project=search.wandb, group=name, mode=os.environ.get("WANDB_MODE")))
    return callbacks


def trial_name(trial: Any) -> str:
    """Tune's id, without the values: they are in trials.csv."""
    return str(trial.trial_id)


class TrialLog(tune.Callback):
    """A line for every trial that starts or ends, and one a minute on those that run."""

    def __init__(self, space: Space, objective: str, expected: int) -> None:
        self._space, self._objective, self._expected = space, objective, expected
        self._last_logged = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Those that have no room yet wait for their turn while others run."""
        if any(trial.status == trial.RUNNING for trial in trials):
            moved()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = ", ".join(f"{key} {_shown(trial.config[key])}" for key in self._space.keys)
        log.info("trial %s starts: %s", trial.trial_id, values)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if abs(time.monotonic() - self._last_logged) >= _SAY_EVERY_S:  # a resumed search may find another clock
            self._last_logged = time.monotonic()
            results = [(other, other.last_result or {}) for other in trials if other.status == other.RUNNING]
            far = [f"{other.trial_id} after {last.get(EPOCHS, 0)} epochs{self._score(last)}" for other, last in results]
            log.info("running: %s", "; ".join(far))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        if "failure" in last:
            self._end(trials, trial, f"failed: {last['failure']}")
        else:
            self._end(trials, trial, f"ends after {last.get(EPOCHS, 0)} epochs{self._score(last)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = str(trial.get_error() or "").strip().splitlines()
        self._end(trials, trial, f"failed: {error[-1]}" if error else "failed; trials.csv will say why")

    def _end(self, trials: list[Any], trial: Any, how: str) -> None:
        ended = {other.trial_id for other in trials if other.is_finished()} | {trial.trial_id}
        log.info("trial %s %s (%d of %d)", trial.trial_id, how, len(ended), self._expected)

    def _score(self, result: dict[str, Any]) -> str:
        score = result.get(self._objective)
        return f", {self._objective} {score:.4f}" if isinstance(score, float) else ""


class Tidy(tune.Callback):
    """Frees the workers' resources of nested trials that ended, where nobody else did.

    Tune ends a trial early by killing its process, and Ray Train's own cleaner then needs the dashboard to notice.
    Not at once: a trial that still lives when it loses its workers asks for new ones, of which nobody would know.
    """

    def __init__(self) -> None:
        self._ended: dict[str, float] = {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if group := (trial.last_result or {}).get("placement_group"):
            self._ended[group] = time.monotonic()

    on_trial_error = on_trial_complete

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for group, ended in list(self._ended.items()):
            if not 0 <= time.monotonic() - ended < _DIES_WITHIN_S:
                del self._ended[group]
                with contextlib.suppress(ValueError, RuntimeError):  # it is gone already
                    remove_placement_group(_group(group))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """No later step comes, so wait for those that ended last."""
        while self._ended:
            for group in list(self._ended):
                if placement_group_table(_group(group)).get("state") == "REMOVED":
                    del self._ended[group]
            self.on_step_end(0, trials)
            time.sleep(0.2)


def _group(name: str) -> PlacementGroup:
    return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name)))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
