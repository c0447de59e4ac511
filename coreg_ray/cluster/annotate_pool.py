"""The annotation job: votes, candidate sets, figures; no training."""

from __future__ import annotations

import time
from typing import Any

from coreg_ray.cluster.annotate import annotate_splits, build_candidates, zero_shot
from coreg_ray.cluster.resources import refuse_unreachable
from coreg_ray.commands.base import resolved_yaml
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import Split
from coreg_ray.report.page import write_report
from coreg_ray.run.storage import Folder


def annotate_pool(config: Config, output: Folder) -> dict[str, Any]:
    """Annotate the pool, and test images where there are some; make candidate sets and report on them.

    `config.yaml` says for `jobs/train.py` what was annotated. Returns what is written to `metrics.json`.

    Raises:
        UserError: the output holds something else or is not seen from all nodes, or the source or annotator is not what
            it should be.
    """
    found = output.entries()
    if found and "annotations" not in found and "config.yaml" not in found:
        raise UserError(f"--output {config.output} holds {found[0]} and no annotations; choose an empty folder")
    refuse_unreachable(output)
    started = time.monotonic()
    if "checkpoints" not in found:  # the settings that a training run was begun with stay
        output.write("config.yaml", resolved_yaml(config))
    splits: list[Split] = ["pool", "test"] if config.test.kind else ["pool"]
    annotated = annotate_splits(config, splits, output)
    figures = annotated["pool"] | build_candidates(config, output)
    for name in ("requests", "cost", "requests_in_all", "cost_in_all"):  # of what was paid for, test images are a part
        if name in figures:
            figures[name] = sum(part[name] for part in annotated.values())
    metrics = {f"annotation/{name}": value for name, value in figures.items() if name not in ("prior", "seconds")}
    metrics["time/annotate_s"] = time.monotonic() - started
    if config.test.kind:
        metrics |= zero_shot(config, output)
    earlier = output.read_json("metrics.json") if output.exists("metrics.json") else {}
    output.write_json("metrics.json", earlier | metrics)
    write_report(output)
    return metrics
