"""The main commands, from images to a report, and from images to votes.

What they consist of (stages.py) needs torch, Ray Train and more, which take seconds to import. Torch comes along with
the annotator, which is loaded while Ray starts (describing.py), so all of it is imported once Ray is there.
"""

from __future__ import annotations

import time
from typing import Any

from coreg_ray import metrics
from coreg_ray.cluster.connect import connect
from coreg_ray.cluster.describing import begin, wait_for_imports
from coreg_ray.cluster.waiting import watched
from coreg_ray.config import Config
from coreg_ray.images.pool_and_test import refuse_pool_as_test
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.lock import locked


def run_pipeline(config: Config, annotated: str | None = None) -> dict[str, Any]:
    """From images to a trained model and a report, all in the run folder; returns what `metrics.json` holds.

    Args:
        annotated: run folder whose annotations are used instead of annotating anew.

    Raises:
        UserError: the run folder holds another run, another command works in it, or it cannot be written, or the test
            images are the pool's; before any work.
    """
    run = RunFolder.at(config.output)
    if annotated is None:
        refuse_pool_as_test(config)  # else their sources may have gone since they were annotated
    with locked(run, config.output):
        run.claim(config)
        if annotated is None:
            begin(config, run)
        connect()
        wait_for_imports()
        from coreg_ray.cluster import stages, train
        from coreg_ray.cluster.resources import refuse_unreachable

        with watched():
            refuse_unreachable(run)
            run.update_metrics(stages.prepare(config, run, RunFolder.at(annotated) if annotated else None))
            config = stages.settle_method(config, run)
            started, before = time.monotonic(), run.read_metrics().get(metrics.TRAIN_S, 0.0)
            trained = train.fit(config)
        seconds = (before if trained.start_epoch else 0.0) + time.monotonic() - started
        figures = run.update_metrics({**trained.metrics(), metrics.TRAIN_S: seconds})
        return stages.finish(config, run, figures[metrics.TRAIN_S])


def annotate_pool(config: Config, run: RunFolder) -> dict[str, Any]:
    """Annotate the pool, and test images where there are some; make candidate sets and report on them. No training.

    `config.yaml` says for `coreg-ray train` what was annotated. Returns what is new in `metrics.json`.

    Raises:
        UserError: the output holds something else, another command works in it, or it is not seen from all nodes; or
            the source or annotator is not what it should be, or the test images are the pool's.
    """
    refuse_pool_as_test(config)
    with locked(run, config.output), watched():
        run.claim_for_annotation(config)
        begin(config, run)
        connect()
        wait_for_imports()
        from coreg_ray.cluster import stages
        from coreg_ray.cluster.resources import refuse_unreachable
        from coreg_ray.report.page import write_report

        refuse_unreachable(run)
        started = time.monotonic()
        prepared = stages.annotate(config, run, rows=False)
        figures = prepared.metrics() | {metrics.ANNOTATE_S: time.monotonic() - started}
        run.update_metrics(figures)
        write_report(run)
        return figures
