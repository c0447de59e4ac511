"""The annotation job: votes, candidate sets, figures; no training."""

from __future__ import annotations

import time
from typing import Any

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.ray_data import annotate, build_candidates
from coreg_ray.report.page import write_report
from coreg_ray.storage import Folder


def annotate_pool(config: Config, output: Folder) -> dict[str, Any]:
    """Annotate the pool, make its candidate sets and report on both; returns what is written to `metrics.json`.

    Raises:
        UserError: the output holds something else, or the source or annotator is not what it should be.
    """
    found = output.entries()
    if found and "annotations" not in found and "config.yaml" not in found:
        raise UserError(f"--output {config.output} holds {found[0]} and no annotations; choose an empty folder")
    started = time.monotonic()
    figures = annotate(config, "pool", output)
    figures |= build_candidates(config, output)
    metrics = {f"annotation/{name}": value for name, value in figures.items() if name not in ("prior", "seconds")}
    metrics["time/annotate_s"] = time.monotonic() - started
    earlier = output.read_json("metrics.json") if output.exists("metrics.json") else {}
    output.write_json("metrics.json", earlier | metrics)
    write_report(output)
    return metrics
