"""Purified labels of the whole pool: one pass of both networks over its rows, on Ray Data.

What travels is the names of files. A pool of actors, each with both networks, reads the pixels of a few parts of
`rows/pool`, held-out rows included, finds their candidate sets, and writes one part of `purified/` and one of
`probabilities/` (purifier.py). The candidate sets lie in the object store, with an index of 16 bytes a row. A part
that is there is not made again, so the same call goes on after an interruption. Labelled test images are scored in the
same pass.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import ray
import ray.data

from coreg_ray import metrics
from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.labels import Labels, read_labels
from coreg_ray.cluster.purifier import Chunk, Purifier, Stored, build_index, read_facts, seen
from coreg_ray.cluster.resources import scaling_config
from coreg_ray.cluster.tasks import added_up, ask, ended, task, through
from coreg_ray.cluster.waiting import moved
from coreg_ray.config import Config
from coreg_ray.deploy.predictions import Pair
from coreg_ray.deploy.purified import MOST_DOUBT, Making, calibrated, mark_of, part_names
from coreg_ray.errors import UserError
from coreg_ray.ids import fingerprint, row_numbers
from coreg_ray.report.confusions import Confusions
from coreg_ray.run.folder import MANIFEST, RunFolder, Split
from coreg_ray.run.records import PurifiedManifest
from coreg_ray.run.storage import Folder
from coreg_ray.run.trust import trust_figures
from coreg_ray.training import checkpoint
from coreg_ray.training.sample import Samples
from coreg_ray.training.soundness import Soundness

log = logging.getLogger(__name__)

_ROWS_PARTS = 4  # of at most 256 images, in one part of the labels
_CANDIDATE_PARTS = 32  # in one table of the object store
_LINE_EVERY_S = 10.0
_SCORES = (metrics.ACCURACY, metrics.ACCURACY_A, metrics.ACCURACY_B)


def purify(config: Config, run: RunFolder, samples: Samples | None = None) -> PurifiedManifest:
    """Make `purified/` and `probabilities/` from the newest whole checkpoint, unless they are there and made from it.

    Args:
        samples: of this run, where they are read already.

    Returns:
        The manifest that lies in `purified/`; its figures belong into `metrics.json`.

    Raises:
        UserError: the run holds no checkpoint, no candidate sets or no rows, or the latter two belong to other images.
    """
    mark = mark_of(run, config)
    known = run.read_purified_manifest()
    if known is not None and known.made_from == mark and known.parts == len(part_names(run.purified)):
        return known
    run.purified.delete(MANIFEST)  # first, so that no kill leaves it with a part of the labels
    for folder in (run.purified, run.probabilities):
        for name in part_names(folder):
            if not name.endswith(f"-{mark[:8]}.parquet"):
                folder.delete(name)
    chunks = _chunks(config, run, "pool", mark)
    if not chunks:
        raise UserError(f"{run.path} has no rows/; give the command that made the run again")
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    sound, doubt = task(_soundness).options(num_returns=2).remote(newest)
    pair, doubted = Pair.of(run), ask(doubt)
    assert pair is not None
    if doubted is not None and doubted > MOST_DOUBT:
        log.warning(
            "the networks find %.0f %% of the candidate sets unsound, so they have learned little yet or the annotator "
            "is of little use; purified labels lie between the two, look at them before you rely on them",
            100 * doubted,
        )
    making = calibrated(Making.of(run, config, doubted), run, pair, samples)
    there = set(part_names(run.purified))
    missing = [chunk for chunk in chunks if chunk.part not in there]
    scored = _pass(config, run, making, sound, [*missing, *_test_chunks(config, run, mark)])
    truth = task(read_labels).remote(run.labels("pool"))
    total = added_up(_counted, [chunk.part for chunk in chunks], run.purified, truth, making.class_names)
    figures = {**total.metrics(), **scored, **trust_figures(making.evidence)}
    manifest = PurifiedManifest(mark, len(chunks), making.doubt, making.temperature, figures)
    run.write_purified_manifest(manifest)
    _say(manifest, run)
    return manifest


def _chunks(config: Config, run: RunFolder, split: Split, mark: str) -> list[Chunk]:
    names = part_names(seen(run, split, config.student))
    some = [names[start : start + _ROWS_PARTS] for start in range(0, len(names), _ROWS_PARTS)]
    return [Chunk(split, f"{fingerprint(rows)}-{mark[:8]}.parquet", rows) for rows in some]


def _test_chunks(config: Config, run: RunFolder, mark: str) -> list[Chunk]:
    """Those of labelled test images."""
    return _chunks(config, run, "test", mark) if config.test.kind and run.labels("test").exists() else []


def _pass(config: Config, run: RunFolder, making: Making, sound: ray.ObjectRef, chunks: list[Chunk]) -> dict[str, Any]:
    """Both networks look at all rows of the chunks; returns the figures about test images."""
    if not chunks:
        return {}
    scaling = scaling_config(config.cluster)
    actors = max(1, min(int(scaling.num_workers), len(chunks)))  # type: ignore[arg-type]
    candidates = part_names(run.candidates)
    facts = [
        task(read_facts).remote(candidates[start : start + _CANDIDATE_PARTS], run.candidates)
        for start in range(0, len(candidates), _CANDIDATE_PARTS)
    ]
    tested, index = task(read_labels).remote(run.labels("test")), task(build_index).remote(facts)
    ended([*facts, tested, index])
    settings = {
        "run": run,
        "making": making,
        "precision": config.student.precision,
        "beside": 0 if scaling.use_gpu else actors,
        "stored": Stored(facts, [index], [sound], [tested]),
    }
    listed = ray.data.from_items([chunk.as_row() for chunk in chunks], override_num_blocks=len(chunks))
    written = through(
        listed,
        Purifier,
        settings=settings,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=1,
        num_gpus=1 if scaling.use_gpu else None,
    )
    started = last_logged = time.monotonic()
    images, strange, answers = 0, 0, []
    for line in written.iter_rows():
        moved()
        images, strange = images + line["images"], strange + line["strange"]
        answers += [line["tested"]] if line["tested"] else []
        if time.monotonic() - last_logged >= _LINE_EVERY_S:
            last_logged = time.monotonic()
            log.info("purifying: %d images, %.0f a second", images, images / (last_logged - started))
    if strange:
        raise UserError(
            f"{run.path}: {strange} images have no candidate set; remove rows/ and candidates/ and give the command "
            "that made the run again"
        )
    sums = [reduce(add, split) for split in zip(*answers, strict=True)]
    figures: dict[str, Any] = {}
    for name, confusions in zip(_SCORES, sums, strict=False):
        figures |= {key: value for key, value in confusions.metrics(name).items() if key != name}
    return figures


def _soundness(newest: Folder) -> tuple[Soundness, float | None]:
    sound = Soundness.of(newest)
    return sound, sound.doubt


@dataclass(frozen=True)
class _Counted:
    """What lies in some parts of the labels; `confusions` over images whose label is known."""

    images: int
    changed: int
    confusions: Confusions

    def __add__(self, other: _Counted) -> _Counted:
        return _Counted(self.images + other.images, self.changed + other.changed, self.confusions + other.confusions)

    def metrics(self) -> dict[str, Any]:
        """The figures for `metrics.json`."""
        figures: dict[str, Any] = {metrics.PURIFIED_IMAGES: self.images, metrics.PURIFIED_CHANGED: self.changed}
        return figures | (self.confusions.metrics(metrics.PURIFIED_ACCURACY) if len(self.confusions.true) else {})


def _counted(name: str, folder: Folder, truth: Labels, class_names: list[str]) -> _Counted:
    """Count one part; `truth`: known labels of the pool, which only score."""
    table = read_table(folder, name, ["image_id", "label", "changed"])
    number = {class_name: place for place, class_name in enumerate(class_names)}
    label = np.array([number[entry] for entry in table["label"].to_pylist()], np.int64)
    true = truth.of(row_numbers(table["image_id"].to_pylist())).numpy()
    known = true >= 0
    confusions = Confusions.of(true[known], label[known], len(class_names))
    return _Counted(len(table), int(np.sum(table["changed"].to_numpy())), confusions)


def _say(manifest: PurifiedManifest, run: RunFolder) -> None:
    """What came of it, and which images have no label."""
    images = manifest.figures[metrics.PURIFIED_IMAGES]
    log.info("%d purified labels in %s", images, run.purified.path)
    candidates = run.read_candidate_manifest()
    if candidates is not None and (left := candidates.quality.rows - images) > 0:
        log.warning(
            "%d images have candidate sets and no purified label, because rows/ does not hold them; give the command "
            "that made the run again",
            left,
        )
