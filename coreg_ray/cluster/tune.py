"""Ray Tune searches over configurations: annotation once, then trials that share it, then the best configuration."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ray import tune
from ray.autoscaler.sdk import request_resources

from coreg_ray.annotation.vocabulary import templates
from coreg_ray.cluster.connect import connect
from coreg_ray.cluster.features import open_features, write_features
from coreg_ray.cluster.listing import Listing
from coreg_ray.cluster.pools import open_pool
from coreg_ray.cluster.resources import nodes_with, refuse_unreachable, scaling_config, wait_for_resources
from coreg_ray.cluster.room import copies
from coreg_ray.cluster.stages import prepare, take_rows
from coreg_ray.cluster.tune_parts import Tidy, TrialLog, loggers, param_space, scheduler, searcher, trial_name
from coreg_ray.cluster.tune_trial import Study, candidate_maker, train_nested, train_trial
from coreg_ray.cluster.waiting import waiting_for, watched
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool
from coreg_ray.config.paths import absolute, path_settings, with_absolute_paths
from coreg_ray.config.texts import resolved_yaml
from coreg_ray.errors import UserError
from coreg_ray.images.pool_and_test import refuse_pool_as_test
from coreg_ray.metrics import EPOCH
from coreg_ray.run.folder import CONFIG
from coreg_ray.run.lock import locked
from coreg_ray.run.search_folder import BEST, PICTURE, TABLE, SearchFolder
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import extended
from coreg_ray.search.definition import Search, claim_search, is_restorable
from coreg_ray.search.figure import trials_svg
from coreg_ray.search.objective import WITH_LABELS
from coreg_ray.search.space import Space, read_space, trial_settings
from coreg_ray.search.trials import FAILED, FINISHED, STOPPED, UNFINISHED, Trial, as_csv, as_table, ranked

log = logging.getLogger(__name__)

_DRIVER_CPUS = 0.01  # of a trial whose workers have resources of their own; Ray refuses 0
_CPUS = 2.0  # of a trial in one process: its two networks train side by side


@dataclass(frozen=True)
class SearchResult:
    """What came of a search; `table` shows the trials on a terminal."""

    table: str
    best: str
    objective: str


def search(search: Search, config: Config) -> SearchResult:
    """Try configurations; writes `best.yaml`, `trials.csv` and `trials.svg` into the output folder.

    Raises:
        UserError: the search cannot work as it was asked for, or another command works in its folder, said before any
            work; or all trials failed.
    """
    space = read_space(search.space, config)
    search.check(config, space)
    refuse_pool_as_test(config)
    output = SearchFolder.at(config.output)
    with locked(output, config.output), watched():
        claim_search(search, config, space, output)
        return _searched(search, config, _with_absolute_paths(space), output)


def _searched(search: Search, config: Config, space: Space, output: SearchFolder) -> SearchResult:
    connect()
    refuse_unreachable(output)
    need, at_once = fit_into_cluster(config, search.max_concurrent)
    _refuse_unlabelled(search.objective, config, output)
    _prepare(config, space, output)
    images = _images(output)
    if search.scheduler == "pbt":  # a trial whose values change keeps the length that it began with
        config = fitted_to_pool(config, images)
    each: dict[str, float] = dict(scaling_config(config.cluster).resources_per_worker or {})  # type: ignore[arg-type]
    with waiting_for(need, each if config.cluster.num_workers > 1 else need):
        results = _run(search, config, space, output, need, at_once)
    trials = [_as_trial(results[number], config, space, output, images) for number in range(len(results))]
    _forget_unknown({trial.name for trial in trials}, output.trials)
    return _conclude(trials, search, config, space, output)


def fit_into_cluster(config: Config, max_concurrent: int | None) -> tuple[dict[str, float], int]:
    """What one trial takes, and how many may run at once.

    Raises:
        UserError: a trial is larger than the cluster, or than its largest node, after `cluster.wait_s`.
    """
    cluster = config.cluster
    if cluster.num_workers > 1:
        scaling = scaling_config(cluster)
        wait_for_resources(scaling, cluster.wait_s)
        each: dict[str, float] = dict(scaling.resources_per_worker or {})  # type: ignore[arg-type]
        whole = _together(nodes_with(cluster.label_selector or {}))
        trial = {name: amount * cluster.num_workers for name, amount in each.items()}
        trial["CPU"] = trial.get("CPU", 0.0) + _DRIVER_CPUS
        room = copies(whole, trial)
        if not room:
            raise UserError(
                f"a trial of cluster.num_workers={cluster.num_workers} needs {_listed(trial)}, its driver's share "
                f"among it, and the cluster has {_listed(whole, trial)}; lower cluster.num_workers or "
                "cluster.resources_per_worker"
            )
        return {"CPU": _DRIVER_CPUS}, min(room, max_concurrent or room)
    labels, deadline, asked = cluster.label_selector or {}, time.monotonic() + cluster.wait_s, False
    try:
        while True:
            nodes = nodes_with(labels)
            need = _trial_resources(config, nodes)
            if any(copies(node, need) for node in nodes):
                return need, max_concurrent or 0
            largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in need}
            where = f" with {labels}" if labels else ""
            lacking = f"a trial needs {_listed(need)} on one node{where}, and the largest has {_listed(largest)}"
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{lacking}; lower cluster.resources_per_worker, or set cluster.wait_s for an autoscaler"
                )
            if not asked:
                log.info("waiting for the cluster: %s", lacking)
                request_resources(bundles=[need], bundle_label_selectors=[labels])
                asked = True
            time.sleep(min(2.0, max(0.0, deadline - time.monotonic())))
    finally:
        if asked:
            request_resources(bundles=[])  # the trials themselves ask from now on


def _trial_resources(config: Config, nodes: list[dict[str, float]]) -> dict[str, float]:
    use_gpu = config.cluster.use_gpu
    if config.cluster.resources_per_worker:
        return {"CPU": 1.0, **({"GPU": 1.0} if use_gpu else {}), **config.cluster.resources_per_worker}
    if use_gpu is None:
        use_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
    cpus = min(_CPUS, max((node.get("CPU", 0) for node in nodes), default=_CPUS) or _CPUS)
    return {"CPU": cpus} | ({"GPU": 1.0} if use_gpu else {})


def _with_absolute_paths(space: Space) -> Space:
    """Relative paths among the values made absolute: every trial runs in a directory of its own."""
    none = dict(path_settings())
    known = {key: [absolute(value, none[key]) for value in space.values_of(key) or ()] for key in none}
    return Space(tuple(replace(d, values=tuple(known[d.key])) if d.key in known else d for d in space.dimensions))


def _together(nodes: list[dict[str, float]]) -> dict[str, float]:
    """Resources of all nodes."""
    return {name: sum(node.get(name, 0.0) for node in nodes) for name in {name for node in nodes for name in node}}


def _listed(resources: dict[str, float], names: Iterable[str] = ()) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names or resources)


def _prepare(config: Config, space: Space, output: SearchFolder) -> None:
    """Annotate once, for all prompts that any trial may use; rows at every resolution that any trial may see."""
    prompts = space.values_of("source.prompts")
    if prompts is not None:
        asked = dict.fromkeys(prompt for some in prompts for prompt in templates(some))
        source = config.source.model_copy(update={"prompts": list(asked)})
        config = config.model_copy(update={"source": source})
    prepare(config, output)
    for side in space.values_of("student.resolution") or ():
        if side != config.student.resolution:
            student = config.student.model_copy(update={"resolution": side})
            place = output.rows_at(side, config.student.resolution)
            other = config.model_copy(update={"student": student})
            open_features(other, place)
            take_rows(other, place, output)
            write_features(other, place, ["pool", "test"] if config.test.kind else ["pool"])


def _images(output: SearchFolder) -> int:
    """Of the pool; once it is annotated."""
    manifest = output.read_candidate_manifest()
    return manifest.quality.rows if manifest else 0


def _refuse_unlabelled(objective: str, config: Config, output: SearchFolder) -> None:
    """Look for labels before any image is annotated. Raises UserError where the objective needs them."""
    if objective not in WITH_LABELS:
        return
    labels = output.own("labels", "test")
    listed = Listing(open_pool(config, "test")[1], labels).blocks  # which writes the labels that there are
    log.debug("%d blocks of test images", len(listed))
    if not labels.files(".parquet"):
        raise UserError(
            f"objective={objective} needs labels, and the test images have none; give labelled ones with --test.path, "
            "or use an objective without labels"
        )


def _run(
    search: Search, config: Config, space: Space, output: SearchFolder, need: dict[str, float], at_once: int
) -> tune.ResultGrid:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the search as it ends every job
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner cannot be silenced
    for chatty in ("ray.tune", "ray.train", "ray.tune.execution.tune_controller"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # TrialLog says it in a line
    whole, keep = with_absolute_paths(config), search.scheduler == "pbt"
    images = _images(output)
    study = Study(whole, space, search.objective, keep, need["CPU"], images, at_once)
    nested = config.cluster.num_workers > 1
    labels = {} if nested else config.cluster.label_selector or {}
    place = tune.PlacementGroupFactory([need], bundle_label_selector=[labels]) if labels else need
    trainable = tune.with_resources(
        tune.with_parameters(train_nested if nested else train_trial, study=study, maker=candidate_maker(study)), place
    )
    root = study.output
    filesystem = None if root.local else root.filesystem
    if search.resume and is_restorable(root.tune):
        log.info("going on with the search in %s", config.output)
        return tune.Tuner.restore(
            root.tune.path, trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=filesystem
        ).fit()
    lengths = space.probes_of("method.epochs") or [None]
    longest = max(length or fitted_to_pool(config, images).method.whole().epochs for length in lengths)
    random = search.search == "random"
    tuner = tune.Tuner(
        trainable,
        param_space=param_space(space),
        tune_config=tune.TuneConfig(
            metric=search.objective,
            mode="max",
            num_samples=search.num_samples,
            scheduler=scheduler(search, space, longest),
            search_alg=searcher(search, config.seed, at_once),
            max_concurrent_trials=None if random else at_once or None,
            reuse_actors=config.cluster.num_workers == 1,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name=root.tune.name,
            storage_path=root.path,
            storage_filesystem=filesystem,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
            callbacks=[
                TrialLog(space, search.objective, search.num_samples * space.grid_points),
                Tidy(),
                *loggers(search, root.name),
            ],
        ),
    )
    return tuner.fit()


def _forget_unknown(known: set[str], runs: Folder) -> None:
    """A trial that began after Tune's last snapshot before a kill has begun anew, under another name.

    What is no run folder is a person's.
    """
    for name in runs.entries():
        if name.split("-from-")[0] not in known and (runs / name).exists(CONFIG):
            (runs / name).delete()


def _as_trial(result: Any, config: Config, space: Space, output: SearchFolder, images: int) -> Trial:
    name = result.path.rstrip("/").rsplit("/", 1)[-1]
    run = (result.metrics or {}).get("run", name)
    folder = output.trial(run)
    history, failure = folder.read_history(), folder.read_failure()
    status, error = UNFINISHED, ""
    if result.error is not None:
        status, error = FAILED, _last_line(result.error)
    elif failure is not None:
        status, error = FAILED, failure
    elif history:
        whole = trial_settings(config, space, result.config, images).method.whole().epochs
        status = FINISHED if int(history[-1][EPOCH]) + 1 >= whole else STOPPED
    return Trial(name, run, status, dict(result.config), history, error)


def _last_line(error: Exception) -> str:
    """What a remote traceback comes to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _conclude(trials: list[Trial], search: Search, config: Config, space: Space, output: SearchFolder) -> SearchResult:
    output.write(TABLE, as_csv(trials, space, search.objective))
    output.write(PICTURE, trials_svg(trials, space, search.objective))
    best = ranked(trials, search.objective)[0]
    if best.status == FAILED or not best.history:
        raise UserError(f"no trial came to an end, see {config.output}/trials.csv; the first failed with: {best.error}")
    fitted = trial_settings(config, space, best.values, _images(output))
    winner = fitted.model_copy(update={"output": extended(config.output, "-best")})
    title = f"# {search.objective} {best.score(search.objective):.4f}: trial {best.name} of {config.output}\n"
    output.write(BEST, title + resolved_yaml(winner))
    return SearchResult(as_table(trials, space, search.objective), best.name, search.objective)
