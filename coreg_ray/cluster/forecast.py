"""What a whole pipeline will take here, before anything long begins: measured on a sample of images and a few steps.

The sample stays annotated, and a frozen backbone's weights lie in the run folder afterwards; the rest is thrown away.
"""

from __future__ import annotations

import io
import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray

from coreg_ray.annotation import preparation, writer
from coreg_ray.cluster.connect import connect
from coreg_ray.cluster.estimate import estimate, of_each_block, peak_memory, sample_of
from coreg_ray.cluster.features import open_features, pool_size, refuse_small_pool, threads_of
from coreg_ray.cluster.listing import Listing
from coreg_ray.cluster.pools import open_pool
from coreg_ray.cluster.resources import refuse_unreachable, scaling_config, wait_for_resources
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.cluster.train import threads
from coreg_ray.cluster.waiting import watched
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool
from coreg_ray.config.student import ANNOTATOR
from coreg_ray.deploy.export import ASKED_IMAGES, FORMS
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.images.base import Source
from coreg_ray.images.decode import Fit
from coreg_ray.images.pool_and_test import refuse_pool_as_test
from coreg_ray.methods import KINDS
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.lock import locked
from coreg_ray.training.backbone import WEIGHTS, read_backbone
from coreg_ray.training.features import PART_ROWS, features_of
from coreg_ray.training.pace import Pace, measure

log = logging.getLogger(__name__)

# What a stage takes besides its work, on two cores: processes that start and load torch, reports, checkpoints. The
# first is that of the whole command: imports, Ray's start where it is one's own, and its end.
_COMMAND_S, _ANNOTATION_S, _FEATURES_S, _TRAINING_S, _EPOCH_S, _RESULTS_S = 9.0, 8.0, 6.0, 6.0, 0.2, 8.0
_MOST_AT_ONCE = 16  # backbones that are measured side by side, as they share a machine's memory


@dataclass(frozen=True)
class Stage:
    """What one stage takes: seconds, bytes of memory of all its processes, bytes on disk."""

    name: str
    seconds: float
    memory: float
    disk: float


@dataclass(frozen=True)
class Forecast:
    """What a pipeline takes.

    Attributes:
        images: of the pool. tested: labelled test images. epochs: of the training. stages: in their order.
    """

    images: int
    tested: int
    epochs: int
    stages: tuple[Stage, ...]

    def in_words(self) -> str:
        """Lines for a terminal."""
        whole = sum(stage.seconds for stage in self.stages)
        lines = [f"{self.images:,} images, {self.tested:,} to test, {self.epochs} epochs; measured on a few of them:"]
        for stage in self.stages:
            lines.append(
                f"  {stage.name:<11}{_duration(stage.seconds):>12}{_bytes(stage.memory):>10} of memory"
                f"{_bytes(stage.disk):>10} on disk"
            )
        return "\n".join([*lines, f"  {'in all':<11}{_duration(whole):>12}"])


def forecast(config: Config, run: RunFolder) -> Forecast:
    """Measure a sample of everything that a pipeline does, and say what all of it will take.

    The run folder is this run's from then on, as if it had been begun.

    Raises:
        UserError: all that a pipeline refuses before it begins.
    """
    refuse_pool_as_test(config)
    with locked(run, config.output):
        run.claim(config)
        connect()
        with watched():
            refuse_unreachable(run)
            return _measured(config, run)


def _measured(config: Config, run: RunFolder) -> Forecast:
    open_features(config, run)
    source = open_pool(config, "pool")[1]
    listing = Listing(source, None)
    images = listing.images
    tested = Listing(open_pool(config, "test")[1], None).images if config.test.kind else 0
    refuse_small_pool(config, images)
    config = fitted_to_pool(config, images, run.read_config())
    sample = task(_decoded).remote(source, of_each_block(listing), config.student.resolution)
    stages = [_annotation(config, run, images, tested, ask(task(_stored).remote(sample)))]
    backbone_s = 0.0
    if config.student.on_features:
        stage, sample, backbone_s = _features(config, run, sample, images, tested)
        stages.append(stage)
    stage, pace = _training(config, sample, images, tested)
    stages += [stage, _results(config, pace, backbone_s, images, tested)]
    stages.append(Stage("start, end", _COMMAND_S, 0.0, 0.0))
    return Forecast(images, tested, config.method.whole().epochs, tuple(stages))


def _annotation(config: Config, run: RunFolder, images: int, tested: int, row: float) -> Stage:
    """Of all splits; rows of so many bytes are written on the way."""
    rows = row * (images + tested)
    if config.annotator.kind == "votes":  # which are all there
        return Stage("annotation", _ANNOTATION_S, 0.0, rows)
    measured = estimate(config, run)
    both = (images + tested) / images
    seconds = _ANNOTATION_S + 3600 * measured.hours * both
    memory = float(measured.memory * config.annotator.max_actors)
    return Stage("annotation", seconds, memory, 1e9 * measured.gigabytes * both + rows)


def _features(
    config: Config, run: RunFolder, sample: ray.ObjectRef, images: int, tested: int
) -> tuple[Stage, ray.ObjectRef, float]:
    """Of a frozen backbone; and the sample's, numbers and (n, 1 + V, F), and the seconds that one image takes it."""
    if config.student.name == ANNOTATOR:
        dim = max((writer.read_card(folder).dim for folder in _answered(run)), default=0)
        if not dim:
            raise UserError("student.name=annotator: no annotator stores embeddings; use one of kind clip")
        stage = Stage("features", _FEATURES_S / 2, 0.0, 2.0 * dim * (images + tested))
        return stage, task(_like_embeddings).remote(sample, dim), 0.0
    size, gpus = pool_size(config, -(-images // PART_ROWS))
    at_once = size if gpus or len(ray.nodes()) > 1 else min(size, os.cpu_count() or 1)
    # Together, as they will work: on a CPU each is slower beside others than alone.
    beside = 1 if gpus else min(at_once, _MOST_AT_ONCE)
    member: Any = ray.remote(num_cpus=1, num_gpus=gpus)(_Seer)
    seers = [member.remote(run, threads_of(size)) for _ in range(beside)]
    for seer in seers:
        ask(seer.ready.remote())
    looks = [seer.look.options(num_returns=2).remote(sample) for seer in seers]
    measured = [ask(figures) for figures, _ in looks]
    seconds, memory, width = np.mean(measured, axis=0).tolist()
    views = config.student.frozen_views
    passes, splits = images * (1 + views) + tested, 1 + bool(tested)
    disk = 2.0 * width * passes + run.features.size(WEIGHTS)
    last = min(images, PART_ROWS) * (1 + views) * (1 - 1 / at_once) / 2  # one may still be at work on its last part
    lasts = splits * _FEATURES_S + (passes / at_once + last) * seconds
    return Stage("features", lasts, float(memory * size), disk), looks[0][1], seconds


def _training(config: Config, sample: ray.ObjectRef, images: int, tested: int) -> tuple[Stage, Pace]:
    """By a few steps in a process with the means of a training worker; and how fast these were."""
    scaling = scaling_config(config.cluster)
    wait_for_resources(scaling, config.cluster.wait_s)
    each: dict[str, float] = dict(scaling.resources_per_worker or {})  # type: ignore[arg-type]
    options = {"num_cpus": each.get("CPU", 0.0), "num_gpus": each.get("GPU", 0.0)}
    num_classes = len(open_pool(config, "pool")[0].names)
    measure_training = task(_trained).options(**options)
    pace, size = ask(measure_training.remote(config, sample, num_classes))
    method, workers = config.method.whole(), config.cluster.num_workers
    held_out = round(config.source.holdout * images)
    rows = images - held_out
    seconds = pace.seconds(method, rows, tested, held_out)
    if workers > 1:  # measured with both networks in one process: on a GPU these take turns, on a CPU they do not
        seconds /= workers if options["num_gpus"] else workers / 2
    state = 6 * pace.parameters + 8 * method.queue_size * config.student.projection
    state += 2 * (2 * method.loss_history + 4) * rows
    stage = Stage(
        "training",
        _TRAINING_S + _EPOCH_S * method.epochs + seconds,
        float(workers * pace.memory + size * (images + tested) * (1 if workers == 1 else 2)),
        float((config.checkpoint.keep + 1) * state),
    )
    return stage, pace


def _results(config: Config, pace: Pace, backbone_s: float, images: int, tested: int) -> Stage:
    """Purified labels, the model in all its forms, the report.

    Eight bits are calibrated on some images and compared with the float model on others; on a frozen backbone that is
    most of it, though onnxruntime takes half as long.
    """
    shown = min(images, ASKED_IMAGES) + 2 * min(tested, ASKED_IMAGES) if config.export.int8 is not False else 0
    seconds = _RESULTS_S + (images + tested) * pace.look + shown * (backbone_s or pace.look) / 2
    return Stage("results", seconds, float(pace.memory), (len(FORMS) + 1.0) * pace.parameters)


# In tasks.


def _decoded(source: Source, of_each: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The sample's row numbers (n,) and pixels (n, S, S, 3)."""
    batches = [
        batch
        for block in sample_of(source, of_each)
        for batch in preparation.prepare(block, source=source, fit=Fit.square(side))
    ]
    if not batches:
        raise UserError("no image of the sample can be decoded; look at what the source holds")
    ids = [str(name) for batch in batches for name in batch["image_id"]]
    return row_numbers(ids), np.concatenate([batch["image"] for batch in batches])


def _stored(sample: tuple[NDArray[np.int64], NDArray[np.uint8]]) -> float:
    """Bytes that a row of the sample takes on disk."""
    stored = io.BytesIO()
    column = pa.array([image.tobytes() for image in sample[1]], pa.binary(sample[1][0].size))
    pq.write_table(pa.table({"row": sample[0], "image": column}), stored, compression="zstd", use_dictionary=False)
    return stored.tell() / len(sample[0])


class _Seer:
    """A frozen backbone in a process of its own, as `cluster/features.py` holds each of a pool."""

    def __init__(self, run: RunFolder, num_threads: int) -> None:
        manifest = run.read_features_manifest()
        assert manifest is not None
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        if device == "cpu":
            torch.set_num_threads(num_threads)
        self._manifest, self._backbone = manifest, read_backbone(run.features, manifest.backbone).to(device)

    def ready(self) -> None:
        """Return once it is there."""

    def look(
        self, sample: tuple[NDArray[np.int64], NDArray[np.uint8]]
    ) -> tuple[tuple[float, int, int], tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Seconds a pass, bytes of memory and numbers in a feature; and the features of a part of the sample."""
        numbers, pixels = sample[0][:PART_ROWS], torch.from_numpy(sample[1][:PART_ROWS].copy())
        rows = torch.from_numpy(numbers.copy())
        features_of(pixels[:16], rows[:16], self._backbone, self._manifest)  # the first pass is slower than all others
        started = time.perf_counter()
        features = features_of(pixels, rows, self._backbone, self._manifest)
        seconds = (time.perf_counter() - started) / (len(pixels) * (1 + self._manifest.views))
        return (seconds, peak_memory(), features.shape[2]), (numbers, features.numpy())


def _like_embeddings(
    sample: tuple[NDArray[np.int64], NDArray[np.uint8]], dim: int
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Drawn features in place of an annotator's embeddings: as large, and learning takes as long."""
    drawn = np.random.default_rng(0).normal(size=(len(sample[0]), 1, dim))
    return sample[0], drawn.astype(np.float16)


def _trained(config: Config, sample: tuple[NDArray[np.int64], NDArray[Any]], num_classes: int) -> tuple[Pace, int]:
    """How fast a worker trains, and the bytes of one image that it holds."""
    torch.set_num_threads(threads(config, config.cluster.num_workers))
    inputs = torch.from_numpy(sample[1].copy())
    pace = measure(config, KINDS[config.method.kind], inputs, torch.from_numpy(sample[0].copy()), num_classes)
    return pace, inputs[0].nbytes


def _answered(run: RunFolder) -> list[Any]:
    table = run.own("annotations", "pool")
    return [table / name for name in table.entries() if (table / name).exists("manifest.json")]


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 100 else f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
