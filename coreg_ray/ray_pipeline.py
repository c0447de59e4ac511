"""The main job: annotate, train, evaluate, report; every stage continues where an earlier call of it stopped."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import ray
import ray.data
import yaml

from coreg_ray import ray_data, ray_train
from coreg_ray.annotations import Part, keys, parts, read_table
from coreg_ray.artifact import export
from coreg_ray.assembly import USED
from coreg_ray.command_line import resolved_yaml
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.ray_tasks import each
from coreg_ray.report import write_report
from coreg_ray.storage import Folder

log = logging.getLogger(__name__)


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
    metrics = output.read_json("metrics.json") if output.exists("metrics.json") else {}
    metrics |= prepare(config, output, Folder.at(annotated) if annotated else None)
    output.write_json("metrics.json", metrics)
    started = time.monotonic()
    trained = ray_train.fit(config)
    before = metrics.get("time/train_s", 0.0) if trained.get("start_epoch") else 0.0
    metrics |= {name: value for name, value in trained.items() if name.startswith(("test/", "criterion/"))}
    metrics |= {f"train/{name}": trained[name] for name in ("world_size", "start_epoch")}
    metrics["time/train_s"] = before + time.monotonic() - started
    export(output)
    output.write_json("metrics.json", metrics)
    write_report(output)
    return metrics


def prepare(config: Config, output: Folder, annotated: Folder | None = None) -> dict[str, Any]:
    """Annotations, candidate sets and rows of the pool and, where there is one, of the labelled test split."""
    started = time.monotonic()
    splits: list[ray_data.Split] = ["pool", "test"] if config.test.kind else ["pool"]
    metrics: dict[str, Any] = {}
    if annotated is None:
        for split in splits:
            figures = ray_data.annotate(config, split, output)
            log.info("%s: %d images annotated, %d of them now", split, figures["images"], figures["encoded_images"])
            if split == "pool":
                metrics |= {f"annotation/{name}": figures[name] for name in ("encoded_images", "rejected_images")}
    quality = ray_data.build_candidates(config, output, annotated)
    quality.pop("prior", None)
    metrics |= {f"annotation/{name}": value for name, value in quality.items()}
    if config.test.kind:
        figures = ray_data.zero_shot(config, annotated or output)
        metrics["test/zero_shot_accuracy"] = figures["zero_shot_accuracy"]
    for split in splits:
        _write_rows(config, split, output, annotated or output)
    metrics["time/annotate_s"] = time.monotonic() - started
    return metrics


def _write_rows(config: Config, split: ray_data.Split, output: Folder, annotated: Folder) -> None:
    """Images at the student's resolution, unless these very ones are there already."""
    folder = output / "rows" / split
    wanted = {"side": config.student.resolution, "images": _digest(annotated, split)}
    if folder.exists("manifest.json") and folder.read_json("manifest.json") == wanted:
        return
    ray_data.write_rows(config, split, output)
    folder.write_json("manifest.json", wanted)


def _digest(output: Folder, split: ray_data.Split) -> str:
    """16 hex digits over the ids and contents of all annotated images of a split, in whatever parts they lie."""
    table = output / "annotations" / split
    folder = table / table.read_json(USED)[0]
    total = sum(each(_sum_of_keys, parts(folder), folder))
    return f"{total % 2**64:016x}"


def _sum_of_keys(part: Part, folder: Folder) -> int:
    table = read_table(folder, part.name, ["image_id", "content"])
    return int(keys(table["image_id"].to_pylist(), table["content"].to_pylist()).sum(dtype="uint64"))


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
    """Join the cluster that the environment names, else start Ray on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # an epoch's report waits for this poll
    for chatty in ("ray.data", "ray.data._internal.progress", "ray.train", "ray._private.authentication"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    local = "RAY_ADDRESS" not in os.environ
    # Two logical CPUs more than cores on small machines: reading starves when actors hold every one.
    cpus = max(4, (os.cpu_count() or 1) + 2) if local else None
    # What workers say stays in Ray's logs and its dashboard; the driver reports progress in its own words.
    ray.init(logging_level=logging.WARNING, log_to_driver=not local, num_cpus=cpus, address="local" if local else None)
    ray.data.DataContext.get_current().enable_progress_bars = False
