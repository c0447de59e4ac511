"""The main job: annotate, train, evaluate, report; every stage continues where an earlier call of it stopped."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import ray
import ray.data
import yaml

from coreg_ray.annotation.writer import USED, images_in
from coreg_ray.cluster import annotate, train
from coreg_ray.cluster.address import refuse_silent
from coreg_ray.cluster.resources import refuse_unreachable
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.commands.base import resolved_yaml
from coreg_ray.config import Config
from coreg_ray.deploy.export import export
from coreg_ray.errors import UserError
from coreg_ray.report.baselines import compare
from coreg_ray.report.page import write_report
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_TIMES = ("seconds", "images_per_s")


def run(config: Config, annotated: str | None = None) -> dict[str, Any]:
    """From images to a trained model and a report, all in the run folder; returns what `metrics.json` holds.

    Args:
        annotated: run folder whose annotations are used instead of annotating anew.

    Raises:
        UserError: the run folder is in use by another run, or cannot be written; before any work.
    """
    output = Folder.at(config.output)
    claim(config, output)
    connect()
    refuse_unreachable(output)
    metrics = output.read_json("metrics.json") if output.exists("metrics.json") else {}
    metrics |= prepare(config, output, Folder.at(annotated) if annotated else None)
    output.write_json("metrics.json", metrics)
    started = time.monotonic()
    trained = train.fit(config)
    before = metrics.get("time/train_s", 0.0) if trained.get("start_epoch") else 0.0
    metrics |= {name: value for name, value in trained.items() if name.startswith(("test/", "criterion/"))}
    metrics |= {f"train/{name}": trained[name] for name in ("world_size", "start_epoch")}
    metrics["time/train_s"] = before + time.monotonic() - started
    finish(config, output, metrics)
    return metrics


def finish(config: Config, output: Folder, metrics: dict[str, Any]) -> None:
    """From the last checkpoint to what a user takes home: model, comparison, report; adds their times to `metrics`."""
    started = time.monotonic()
    export(output)
    metrics["time/export_s"] = time.monotonic() - started
    if config.report.baselines and config.test.kind:
        started = time.monotonic()
        compare(output, config, metrics["time/train_s"])
        metrics["time/compare_s"] = time.monotonic() - started
    output.write_json("metrics.json", metrics)
    write_report(output)


def prepare(config: Config, output: Folder, annotated: Folder | None = None) -> dict[str, Any]:
    """Annotations, candidate sets and rows of the pool and, where there is one, of the labelled test split."""
    started = time.monotonic()
    metrics: dict[str, Any] = {}
    if annotated is None:
        found = annotate.annotate_splits(config, _splits(config), output, rows=True)
        for split, figures in found.items():
            log.info("%s: %d images annotated, %d of them now", split, figures["images"], figures["encoded_images"])
        metrics |= {f"annotation/{name}": value for name, value in found["pool"].items() if name not in _TIMES}
        for name in ("requests_in_all", "cost_in_all"):  # of what was paid for, test images are a part
            if name in found["pool"]:
                metrics[f"annotation/{name}"] = sum(figures[name] for figures in found.values())
    quality = annotate.build_candidates(config, output, annotated)
    quality.pop("prior", None)
    metrics |= {f"annotation/{name}": value for name, value in quality.items()}
    if annotated is None:
        _refuse_unanswered(found["pool"], quality["rows"])
    if config.test.kind:
        metrics |= annotate.zero_shot(config, output, annotated)
    if annotated is not None:
        if annotated.filesystem == output.filesystem:  # what the method is compared with learns from the embeddings
            output.lend(annotations=annotated.part("annotations"))
        _copy_labels(annotated, output)
        write_rows(config, output, annotated)
    metrics["time/annotate_s"] = time.monotonic() - started
    return metrics


def write_rows(config: Config, output: Folder, annotated: Folder) -> None:
    """The images that were annotated in another run folder, at the student's resolution.

    Raises:
        UserError: the source holds other images now.
    """
    for split in _splits(config):
        _write_rows(config, split, output, annotated)


def _splits(config: Config) -> list[annotate.Split]:
    return ["pool", "test"] if config.test.kind else ["pool"]


def _copy_labels(annotated: Folder, output: Folder) -> None:
    """True labels, which only score, come along with annotations of another run folder."""
    labels = annotated.part("labels")
    for path in labels.files(".parquet"):
        name = path.removeprefix(f"{labels.path}/")
        output.write(f"labels/{name}", labels.read(name))


def _refuse_unanswered(figures: dict[str, Any], voted_on: int) -> None:
    """Training needs an answer about every image. Raises UserError where a budget or a server has left some open."""
    missing = figures["images"] - figures["rejected_images"] - voted_on
    if missing:
        raise UserError(
            f"{missing} of {figures['images']} images have no answer yet, because annotator.max_requests is spent or "
            "the server fails; give the same command again to go on"
        )
    if not voted_on:
        raise UserError(f"none of the {figures['images']} images can be decoded; rejects/pool says why")


def _write_rows(config: Config, split: annotate.Split, output: Folder, annotated: Folder) -> None:
    """Images at the student's resolution, unless these very ones are there already.

    Raises:
        UserError: the pool holds other images than those that were annotated.
    """
    folder = output / "rows" / split
    wanted = {"side": config.student.resolution, "images": _digest(annotated, split)}
    if folder.exists("manifest.json") and folder.read_json("manifest.json") == wanted:
        return
    rows = annotate.write_rows(config, split, output)["rows"]
    if split == "pool" and folder.read_json("manifest.json") != wanted:
        raise UserError(
            f"the {rows} images that source.path={config.source.path} holds now are not those annotated in "
            f"{annotated.path}: the source has changed since, or some have no answer yet; run jobs/annotate.py on that "
            "folder first, then this command again"
        )


def _digest(output: Folder, split: annotate.Split) -> str:
    """16 hex digits over the ids and contents of all images of a split that an annotator has answered for."""
    table = output / "annotations" / split
    return str(ask(task(images_in).remote(*(table / name for name in table.read_json(USED)))))


def claim(config: Config, output: Folder) -> None:
    """Make the run folder this run's, or refuse it.

    Raises:
        UserError: it cannot be written, holds something else, or a run with other decisive settings.
    """
    try:
        found = output.entries()
    except OSError as error:
        raise UserError(f"--output {config.output} cannot be read ({error}); choose another folder") from error
    if "config.yaml" in found:
        _refuse_other_settings(config, Config.model_validate(yaml.safe_load(output.read("config.yaml"))))
    elif found:
        raise UserError(
            f"--output {config.output} holds {len(found)} entries ({', '.join(found[:3])}) and no run; "
            "choose an empty folder"
        )
    try:
        output.write("config.yaml", resolved_yaml(config))
    except OSError as error:
        raise UserError(f"--output {config.output} cannot be written ({error}); choose another folder") from error


def _refuse_other_settings(config: Config, there: Config) -> None:
    if config.fingerprint() == there.fingerprint():
        return
    old, new = _flat(there.decisive()), _flat(config.decisive())
    changed = [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in sorted(old | new) if old.get(name) != new.get(name)
    ]
    raise UserError(
        f"--output {config.output} holds a run with other settings ({'; '.join(changed[:5])}); "
        "choose another --output, or continue with the settings in its config.yaml"
    )


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat


def connect() -> None:
    """Join the cluster that the environment names, else start Ray on this machine.

    Raises:
        UserError: nobody answers at the address.
    """
    if ray.is_initialized():
        return
    refuse_silent()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # an epoch's report waits for this poll
    for chatty in ("ray.data", "ray.data._internal.progress", "ray.train", "ray._private.authentication"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    local = "RAY_ADDRESS" not in os.environ
    if local:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        # Processes that annotation has left idle, half a gigabyte each, end before training begins.
        os.environ.setdefault("RAY_num_workers_soft_limit", "0")
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "10000")
    # Two logical CPUs more than cores on small machines: reading starves when actors hold every one.
    cpus = max(4, (os.cpu_count() or 1) + 2) if local else None
    # What workers say stays in Ray's logs and its dashboard; the driver reports progress in its own words.
    ray.init(logging_level=logging.WARNING, log_to_driver=False, num_cpus=cpus, address="local" if local else None)
    ray.data.DataContext.get_current().enable_progress_bars = False
