"""What the main commands consist of, from annotation to report; every stage continues where an earlier call stopped."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from coreg_ray import metrics
from coreg_ray.annotation.answered import unanswered
from coreg_ray.annotation.writer import images_in
from coreg_ray.cluster.annotate import annotate_splits
from coreg_ray.cluster.baselines import begin_comparison, end_comparison
from coreg_ray.cluster.candidates import build_candidates, zero_shot
from coreg_ray.cluster.features import fitting_features, open_features, refuse_small_pool, write_features
from coreg_ray.cluster.overlap import pool_overlap
from coreg_ray.cluster.purify import purify
from coreg_ray.cluster.rows import write_rows
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.cluster.waiting import watched
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool
from coreg_ray.deploy.export import ASKED_IMAGES, complete, draft
from coreg_ray.deploy.reviewed import verdict
from coreg_ray.errors import UserError
from coreg_ray.methods import KINDS
from coreg_ray.report.page import write_report
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import AnnotateResult, CandidateManifest, Overlap, RowsManifest
from coreg_ray.run.storage import Folder
from coreg_ray.training.sample import Samples

log = logging.getLogger(__name__)


def settle_method(config: Config, run: RunFolder) -> Config:
    """The configuration with its method whole: fitted to the pool now that its rows are made, once, and kept."""
    begun, manifest = run.read_config(), run.read_candidate_manifest()
    config = fitted_to_pool(config, manifest.quality.rows if manifest else 0, begun)
    if begun is None or begun.method.empty:
        run.write_config(config)
        method = config.method
        log.info(
            "fitted to the pool: %s epochs, %s of them warm-up, batches of %s, learning rate %g, queue of %s",
            method.epochs, method.warmup_epochs, method.batch_size, method.learning_rate, method.queue_size,
        )  # fmt: skip
    return config


def finish(config: Config, run: RunFolder, trained_s: float) -> dict[str, Any]:
    """From the last checkpoint to what a user takes home: model, labels, comparison, report; returns all figures."""
    manifest = run.read_candidate_manifest()
    class_names = manifest.class_names if manifest else []
    samples = Samples(run, config.student.resolution, len(class_names), max(ASKED_IMAGES, config.report.images))
    started = time.monotonic()
    with watched(), ThreadPoolExecutor(1) as beside:  # the model's forms are made here, labels on the cluster
        comparison = begin_comparison(config, run, trained_s)
        drafted = beside.submit(draft, run, samples, KINDS[config.method.kind].DEPLOYED)
        purified = purify(config, run, samples)
        figures = {**purified.figures, **verdict(run), metrics.PURIFY_S: time.monotonic() - started}
        run.update_metrics(figures, stale=(metrics.TRUST,))
        complete(drafted.result(), run)  # after the labels: the model's card says how far to trust them
        end_comparison(comparison, run)
    write_report(run, samples)
    return run.read_metrics()


@dataclass(frozen=True)
class Prepared:
    """What annotation came to; `annotated` is None where another run had done that, `overlap` without test images."""

    candidates: CandidateManifest
    scores: dict[str, Any]
    overlap: Overlap | None
    annotated: AnnotateResult | None = None

    def metrics(self) -> dict[str, Any]:
        annotated = self.annotated.metrics() if self.annotated else {}
        overlap = self.overlap.metrics() if self.overlap else {}
        return {**annotated, **self.candidates.quality.metrics(), **self.scores, **overlap}


def prepare(config: Config, run: RunFolder, annotated: RunFolder | None = None) -> dict[str, Any]:
    """Annotations, candidate sets, rows and features of the pool and, where there is one, of the labelled test split.

    Args:
        annotated: run folder whose annotations are used instead of annotating anew.

    Returns:
        Figures by name.

    Raises:
        UserError: all test images lie in the pool, or images have no answer, among others.
    """
    started = time.monotonic()
    theirs = fitting_features(config, run, annotated, _splits(config)) if annotated else None
    if theirs is None:
        open_features(config, run)
    if annotated is None:
        prepared = annotate(config, run, rows=True)
        assert prepared.annotated is not None
        _refuse_unanswered(prepared.annotated, prepared.candidates.quality.rows, run)
    else:
        prepared = _take_over(config, run, annotated, theirs)
    figures, at_rows = prepared.metrics(), time.monotonic()
    if config.student.on_features and theirs is None:
        write_features(config, run, _splits(config))
        figures[metrics.FEATURES_S] = time.monotonic() - at_rows
    return {**figures, metrics.ANNOTATE_S: time.monotonic() - started}


def annotate(config: Config, run: RunFolder, rows: bool) -> Prepared:
    """Annotate here what is not annotated yet."""
    done = annotate_splits(config, _splits(config), run, rows=rows)
    for split, figures in done.items():
        log.info("%s: %d images annotated, %d of them now", split, figures.images, figures.encoded_images)
    overlap = pool_overlap(run) if config.test.kind else None
    manifest, scores = _judged(config, run)
    return Prepared(manifest, scores, overlap, AnnotateResult(done["pool"], done.get("test")))


def _judged(
    config: Config, run: RunFolder, annotated: RunFolder | None = None
) -> tuple[CandidateManifest, dict[str, Any]]:
    """The pool's candidate sets; and what annotators alone come to on the test images, found at the same time."""
    with ThreadPoolExecutor(1) as beside:
        alone = beside.submit(zero_shot, config, run, annotated) if config.test.kind else None
        manifest = build_candidates(config, run, annotated)
        return manifest, alone.result() if alone else {}


def _take_over(config: Config, run: RunFolder, annotated: RunFolder, features: Folder | None) -> Prepared:
    """Candidate sets, labels and rows from the annotations of another run folder; `features`: its own, if they fit."""
    overlap = pool_overlap(annotated) if config.test.kind else None
    manifest, scores = _judged(config, run, annotated)
    refuse_small_pool(config, manifest.quality.rows)
    if annotated.filesystem == run.filesystem:  # what the method is compared with learns from the embeddings
        links = {"annotations": annotated.resolve("annotations")}
        run.link(**(links | {"features": features} if features else links))
    _copy_labels(annotated, run)
    take_rows(config, run, annotated)
    return Prepared(manifest, scores, overlap)


def take_rows(config: Config, run: RunFolder, annotated: RunFolder) -> None:
    """The images that were annotated in another run folder, at the student's resolution.

    Raises:
        UserError: the source holds other images now.
    """
    for split in _splits(config):
        _take_rows(config, split, run, annotated)


def _splits(config: Config) -> list[Split]:
    return ["pool", "test"] if config.test.kind else ["pool"]


def _copy_labels(annotated: RunFolder, run: RunFolder) -> None:
    """True labels, which only score, come along with annotations of another run folder."""
    labels = annotated.resolve("labels")
    for path in labels.files(".parquet"):
        name = path.removeprefix(f"{labels.path}/")
        run.write(f"labels/{name}", labels.read(name))


def _refuse_unanswered(annotated: AnnotateResult, voted_on: int, run: RunFolder) -> None:
    """Training needs an answer about every image. Raises UserError where a budget or a server has left some open."""
    pool = annotated.pool
    missing = ask(task(unanswered).remote(pool.images, run.candidates, run.rejects("pool")))
    if missing:
        raise UserError(
            f"{missing} of {pool.images} images have no answer yet, because annotator.max_requests is spent or "
            "the server fails; the same command again goes on, with a higher max_requests where that is the reason"
        )
    if not voted_on:
        raise UserError(f"none of the {pool.images} images can be decoded; rejects/pool says why")


def _take_rows(config: Config, split: Split, run: RunFolder, annotated: RunFolder) -> None:
    """Images at the student's resolution, unless these very ones are there already.

    Raises:
        UserError: the pool holds other images than those that were annotated.
    """
    wished = RowsManifest(config.student.resolution, _digest(annotated, split))
    if run.read_rows_manifest(split) == wished:
        return
    rows = write_rows(config, split, run, annotated)
    if split == "pool" and run.read_rows_manifest(split) != wished:
        raise UserError(
            f"the {rows} images that source.path={config.source.path} holds now are not those annotated in "
            f"{annotated.path}: the source has changed since, or some have no answer yet; run coreg-ray annotate on "
            "that folder first, then this command again"
        )


def _digest(annotated: RunFolder, split: Split) -> str:
    """16 hex digits over the ids and contents of all images of a split that an annotator has answered for."""
    return str(ask(task(images_in).remote(annotated.read_used(split), annotated.rejects(split))))
