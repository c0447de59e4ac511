"""What the networks are compared with is made on the cluster, beside what else follows the training.

The comparison (report/baselines.py) needs nothing that comes after the last epoch. It takes one task, with what a
training worker holds where the cluster has that: by then nobody trains any more.
"""

from __future__ import annotations

import logging
import time

import ray

from coreg_ray import metrics
from coreg_ray.cluster.resources import missing_for, scaling_config
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.config import Config
from coreg_ray.report.baselines import compare, read_baselines
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.records import Baseline

log = logging.getLogger(__name__)


def begin_comparison(config: Config, run: RunFolder, trained_s: float) -> ray.ObjectRef | None:
    """Start to make the baselines; None where the run wants none, cannot have any, or has them.

    Args:
        trained_s: seconds that the training took; a part of them may go into distilling.
    """
    if not config.report.baselines or not config.test.kind or read_baselines(run, config) is not None:
        return None
    each: dict[str, float] = dict(scaling_config(config.cluster).resources_per_worker or {})  # type: ignore[arg-type]
    labels = config.cluster.label_selector or {}
    if missing_for(1, each, labels, [node for node in ray.nodes() if node["Alive"]]):
        each, labels = {"CPU": 1.0}, {}  # trained elsewhere, or the nodes have gone: nobody brings them for this
    cpus, gpus = each.pop("CPU", 0.0), each.pop("GPU", 0.0)
    where = {"label_selector": labels} if labels else {}
    made = task(_made, cpus).options(num_gpus=gpus or None, resources=each or None, **where)
    return made.remote(run, config, trained_s)


def end_comparison(begun: ray.ObjectRef | None, run: RunFolder) -> None:
    """Wait for what `begin_comparison` has started, and say what it came to."""
    if begun is None:
        return
    made, seconds = ask(begun)
    for baseline in made:
        accuracy = "-" if baseline.accuracy is None else f"{baseline.accuracy:.3f}"
        log.info("for comparison: %s %s, %s", baseline.name, accuracy, baseline.note)
    run.update_metrics({metrics.COMPARE_S: seconds})


def _made(run: RunFolder, config: Config, trained_s: float) -> tuple[list[Baseline], float]:
    """The baselines, which lie in the run folder then, and the seconds that they took."""
    started = time.monotonic()
    made = compare(run, config, trained_s)
    return made, time.monotonic() - started
