"""Features of a frozen backbone for all rows: a pool of backbones, one part at a time, whatever was interrupted before.

Every stretch of rows is a block of its own, so that a member of the pool takes the next one when it is done with one.
The driver sees names and counts.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray

from coreg_ray.annotation.parts import parts
from coreg_ray.cluster.tasks import ask, each, task, through, watch
from coreg_ray.config import AnnotatorConfig, Config, StudentConfig
from coreg_ray.config.fit_to_pool import resolved
from coreg_ray.config.student import ANNOTATOR
from coreg_ray.errors import UserError
from coreg_ray.run.features import FeaturesManifest
from coreg_ray.run.folder import MANIFEST, RunFolder, Split
from coreg_ray.run.storage import Folder
from coreg_ray.training.backbone import annotator_backbone, given_by, read_backbone, timm_backbone, write_backbone
from coreg_ray.training.embeddings import embedding_tables
from coreg_ray.training.features import (
    PART_ROWS,
    Stretch,
    copy_part,
    count_rows,
    make_part,
    manifest_for,
    names_of,
    other_features,
    stretches,
)
from coreg_ray.training.preact_resnets import PREACT_RESNETS
from coreg_ray.training.timm_models import timm_encoder

log = logging.getLogger(__name__)

_MOST_BLOCKS = 4096


def open_features(config: Config, run: RunFolder) -> None:
    """Look at the student's backbone before anything long begins; a frozen one's weights go into the run folder.

    Raises:
        UserError: timm does not know it, its weights do not fit or cannot be had, it takes no images of that size, or
            features of another backbone or of other views lie in the run folder.
    """
    student = config.student
    if student.name in (ANNOTATOR, *PREACT_RESNETS):
        return
    if not student.frozen:
        _try(student)
        return
    run.unlink("features")  # from now on it has its own
    given, there = given_by(student, config.seed), run.read_features_manifest()
    backbone = None if there and there.given == given else timm_backbone(student, config.seed)
    card = backbone.card if backbone else there.backbone if there else None
    assert card is not None
    _settle(manifest_for(config, card, given), run)
    if backbone and not there:
        write_backbone(run.features, backbone)
        run.write_features_manifest(manifest_for(config, card, given))
        log.info("backbone: %s, %d features of %d px images", card.name, card.features, card.resolution)


def fitting_features(config: Config, run: RunFolder, other: RunFolder, splits: list[Split]) -> Folder | None:
    """The features of another run, where they are those that this one would compute of its images, and whole."""
    student, there = config.student, other.read_features_manifest()
    own = (run / "features").exists(MANIFEST)
    if not student.frozen or student.name == ANNOTATOR or there is None or own or other.filesystem != run.filesystem:
        return None
    if there.given != given_by(student, config.seed):
        return None
    if there.fingerprint != manifest_for(config, there.backbone, there.given).fingerprint:
        return None
    for split in splits:
        made, rows = set((other.features / split).entries()), other.rows(split)
        if other.read_rows_manifest(split) is None or not names_of(_counts(rows)) <= made:
            return None
    log.info("features: those in %s", other.features.path)
    return other.features


def refuse_small_pool(config: Config, images: int) -> None:
    """Heads that see fewer than two batches in an epoch learn nothing. Raises UserError."""
    batch = resolved(config.method, images, frozen=True).batch_size
    if config.student.on_features and images < 2 * batch:
        raise UserError(
            f"the pool has {images} images, fewer than two batches of method.batch_size={batch}; give more images, or "
            f"--method.batch_size {max(2, images // 4)} or less"
        )


def write_features(config: Config, run: RunFolder, splits: list[Split]) -> None:
    """Compute what is missing of `features/<split>/` for all rows that the run folder holds.

    Raises:
        UserError: as `open_features`, or there are no rows of that size.
    """
    if not config.student.on_features:
        return
    started, new = time.monotonic(), 0
    for split in splits:
        new += _copy(config, run, split) if config.student.name == ANNOTATOR else _compute(config, run, split)
    if new:
        log.info("features of %d images in %.1f s", new, time.monotonic() - started)


def _try(student: StudentConfig) -> None:
    """Raises UserError where a timm model that is to be trained cannot be built. Workers fetch a hub's weights."""
    local = student.pretrained not in (None, "hub")
    if local and not Path(str(student.pretrained)).exists():
        return  # the workers' nodes may have it
    with torch.random.fork_rng(devices=[]):
        timm_encoder(student if local else student.model_copy(update={"pretrained": None}))


def _settle(manifest: FeaturesManifest, run: RunFolder) -> None:
    there = run.read_features_manifest()
    if there is not None and there.fingerprint != manifest.fingerprint:
        raise other_features(run, there.differences(manifest))


def _compute(config: Config, run: RunFolder, split: Split) -> int:
    """Features of one split; returns of how many images they were missing."""
    rows, features = run.rows(split), run.own("features", split)
    counts = _counts(rows)
    missing = stretches(counts, features)
    if not missing:
        return 0
    blocks: Any = ray.data.from_items(
        [{"part": stretch.part, "start": stretch.start} for stretch in missing],
        override_num_blocks=min(len(missing), _MOST_BLOCKS),
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    size, gpus = pool_size(config, len(missing))
    made = through(
        blocks,
        _Member,
        settings={"run": run, "split": split, "threads": threads_of(size)},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    images = sum(min(counts[stretch.part] - stretch.start, PART_ROWS) for stretch in missing)
    return watch(made, images, f"features of the {split} images")["images"]


def _copy(config: Config, run: RunFolder, split: Split) -> int:
    """The annotator's stored embeddings as features; returns of how many images they were missing."""
    annotators = [config.annotator, *config.further_annotators]
    tables = embedding_tables(run, split)
    if not tables:
        raise UserError(
            f"student.name=annotator: {run.annotations(split).path} holds no embeddings; annotate with an annotator of "
            "kind clip, or name a timm model with student.frozen true"
        )
    folder, card = tables[0]
    if split == "pool":
        clip = next(annotator for annotator in annotators if annotator.kind == "clip")
        _describe_annotator(config, clip, card.encoder, run)
    features = run.own("features", split)
    each_part = {part.name: 1 for part in parts(folder)}
    missing = [stretch.part for stretch in stretches(each_part, features)]
    return sum(each(copy_part, missing, folder, features))


def _describe_annotator(config: Config, annotator: AnnotatorConfig, encoder: str, run: RunFolder) -> None:
    """Keep the weights of the annotator's image encoder beside its embeddings; it is loaded once."""
    run.unlink("features")
    there = run.read_features_manifest()
    if there is None or there.given != encoder:
        made = task(_keep_annotators_encoder).options(num_cpus=annotator.num_cpus)
        ask(made.remote(config, annotator, encoder, run))


def _keep_annotators_encoder(config: Config, annotator: AnnotatorConfig, encoder: str, run: RunFolder) -> None:
    """Write the weights of an annotator's image encoder, and the manifest of its features."""
    backbone = annotator_backbone(annotator)
    manifest = manifest_for(config, backbone.card, encoder)
    _settle(manifest, run)
    write_backbone(run.features, backbone)
    run.write_features_manifest(manifest)


def _counts(folder: Folder) -> dict[str, int]:
    return dict(each(count_rows, [name for name in folder.entries() if name.endswith(".parquet")], folder))


def pool_size(config: Config, blocks: int) -> tuple[int, float]:
    """How many backbones work at once, and the GPUs of each: on all GPUs, else on all CPUs."""
    there = ray.cluster_resources()
    gpus = 0 if config.cluster.use_gpu is False else int(there.get("GPU", 0))
    return min(blocks, gpus or max(1, int(there.get("CPU", 1)))), float(gpus > 0)


def threads_of(size: int) -> int:
    """Of each of so many: those of a small pool share the cores of a machine, those of a larger one have one each."""
    return max(1, len(os.sched_getaffinity(0)) // size)


class _Member:
    """One backbone at work."""

    def __init__(self, run: RunFolder, split: Split, threads: int) -> None:
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        if device == "cpu":
            torch.set_num_threads(threads)
        manifest = run.read_features_manifest()
        assert manifest is not None
        self._run, self._split, self._manifest = run, split, manifest
        self._backbone = read_backbone(run.features, manifest.backbone).to(device)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        run, split = self._run, self._split
        rows, features = run.rows(split), run.own("features", split)
        made = [
            make_part(Stretch(str(part), int(start)), rows, features, self._backbone, self._manifest, split == "pool")
            for part, start in zip(batch["part"], batch["start"], strict=True)
        ]
        return {"images": np.array(made)}
