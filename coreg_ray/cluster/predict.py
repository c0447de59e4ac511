"""A trained model over any source: blocks of images are read and decoded, a pool of models answers, parts are written.

Like annotation (annotate.py), a run that was cut short goes on where it stopped: the parts that lie in `predictions/`
and `rejects/` say which images are done. The driver sees one line of figures a part.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray

from coreg_ray import metrics
from coreg_ray.annotation import preparation, writer
from coreg_ray.annotation.parts import drop_outdated, next_run, parts
from coreg_ray.annotation.rejects import settled_keys, too_many, try_again
from coreg_ray.cluster.listing import Listing
from coreg_ray.cluster.predicted import write_predictions
from coreg_ray.cluster.room import leave_room
from coreg_ray.cluster.tasks import ask, each, task, watch
from coreg_ray.cluster.waiting import moved
from coreg_ray.deploy.abstain import abstention_of, threshold_of
from coreg_ray.deploy.calibration import calibration_error
from coreg_ray.deploy.model import WEIGHTS, Model, fit_of, read_card
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.images.base import Source
from coreg_ray.report.confusions import Confusions
from coreg_ray.run.claim import claim
from coreg_ray.run.records import PredictResult
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

RECORD = "predictions.json"
_DECODING_CPUS = 0.99  # not what a predictor asks for, or Ray Data would fuse decoding into the predictors' processes


@dataclass(frozen=True)
class Pool:
    """How the models run.

    Attributes:
        batch_size: images a model gets at a time.
        actors: models at work; each takes an equal share of a machine's cores.
        num_gpus: GPUs of each, fractions allowed; 0 runs on CPUs.
    """

    batch_size: int = 256
    actors: int = 1
    num_gpus: float = 0


@dataclass(frozen=True)
class Evaluation:
    """A model on labelled images.

    Attributes:
        confusions: how often which class is taken for which.
        calibration_error: expected calibration error of the stated probabilities.
        unreadable: labelled images that could not be decoded; they are not in `confusions`.
    """

    confusions: Confusions
    calibration_error: float
    unreadable: int

    @property
    def images(self) -> int:
        return int(self.confusions.images.sum())

    @property
    def accuracy(self) -> float:
        return self.confusions.accuracy

    def metrics(self) -> dict[str, Any]:
        """The figures under the names that a run's `metrics.json` uses."""
        return {
            **self.confusions.metrics(metrics.ACCURACY),
            metrics.CALIBRATION_ERROR: self.calibration_error,
            metrics.TEST_IMAGES: self.images,
        }

    def table(self, class_names: list[str]) -> str:
        """For people: a line for each of the K classes, then accuracy and calibration."""
        lines = [f"{'class':24} images  recall  precision"]
        for name, hits, true, predicted in zip(class_names, *self.confusions.by_class(), strict=True):
            recall, precision = (f"{hits / total:.3f}" if total else "-" for total in (true, predicted))
            lines.append(f"{name:24} {true:6}  {recall:>6}  {precision:>9}")
        counted = f"{self.images} images, {self.unreadable} labelled ones unreadable"
        summary = f"accuracy {self.accuracy:.4f}, expected calibration error {self.calibration_error:.4f}, {counted}"
        return "\n".join([*lines, summary])


def predict(
    model: Folder, source: Source, output: Folder, top_k: int = 5, pool: Pool | None = None, abstain: bool = False
) -> PredictResult:
    """Write `predictions/` (image_id, class, probability, top_classes, top_probabilities) and `rejects/`.

    Images that an earlier call predicted with the same model are left alone; rows of images that were predicted anew
    because they changed, or that left the source, are dropped. What can no longer be read or decoded keeps its row.

    Args:
        abstain: whether the class of images of which the model is less sure than its threshold is `unknown`.

    Raises:
        UserError: the model or the source is none, a file of it cannot be read, or the output holds the predictions of
            another model; or it is to abstain and stores no threshold.
    """
    started = time.monotonic()
    card, weights = _read(model)
    least = threshold_of(abstention_of(card), card["classes"]) if abstain else 0.0
    fingerprint = _claim(output, card, weights, top_k, least)
    listing = Listing(source, None)
    folder, rejects = output / "predictions", output / "rejects"
    ask(task(try_again).remote(rejects, False))
    run = next_run(folder, rejects)
    known = task(settled_keys).remote(folder, rejects)
    settings = {"source": source, "fit": fit_of(card), "known": [known], "rejects": rejects, "run": run}
    answered = _answered(listing, settings, card, weights, pool or Pool())
    written = answered.map_batches(
        write_predictions,
        fn_kwargs={
            "folder": folder,
            "rejects": rejects,
            "run": run,
            "fingerprint": fingerprint,
            "class_names": card["classes"],
            "top_k": top_k,
            "least": least,
        },
        batch_size=None,
    )
    images = listing.images
    figures = watch(written, images, "predicting", lambda so_far: _refuse_not_finite(so_far["not_finite"], images))
    ask(task(drop_outdated).remote(listing.rows, folder, rejects))
    rejected = sum(each(writer.count_rows, parts(rejects), rejects))
    if rejected:
        log.warning("%d of %d images cannot be decoded; %s/rejects says why", rejected, listing.images, output.path)
    return PredictResult(listing.images, figures["images"], rejected, time.monotonic() - started)


def evaluate(model: Folder, source: Source, pool: Pool | None = None) -> Evaluation:
    """How good a model is on a labelled source; images without a label are passed over.

    Raises:
        UserError: the model or the source is none, no image has a label, or one is beyond the model's classes.
    """
    card, weights = _read(model)
    labels: dict[int, int] = {}
    for block in source.listing():
        rows = row_numbers(block["image_id"].to_pylist()).tolist()
        labels |= {row: label for row, label in zip(rows, block["label"].to_pylist(), strict=True) if label is not None}
    if not labels:
        raise UserError("the test images have no labels, so there is nothing to score; use jobs/predict.py instead")
    classes = len(card["classes"])
    if max(labels.values()) >= classes:
        raise UserError(
            f"the test images have a label number {max(labels.values())}, the model knows {classes} classes (0 to "
            f"{classes - 1}: {', '.join(card['classes'][:3])}, ...); give images of the model's own classes"
        )
    true, predicted, confidence = [], [], []
    answered = _answered(Listing(source, None), {"source": source, "fit": fit_of(card)}, card, weights, pool or Pool())
    for batch in answered.iter_batches(batch_size=None, batch_format="numpy"):
        moved()
        label = np.array([labels.get(row, -1) for row in row_numbers(batch["image_id"].tolist()).tolist()], np.int64)
        known = label >= 0
        true.append(label[known])
        predicted.append(batch["probabilities"].argmax(axis=1)[known])
        confidence.append(batch["probabilities"].max(axis=1)[known])
    true_class, predicted_class = (np.concatenate([np.zeros(0, np.int64), *batches]) for batches in (true, predicted))
    scored = len(true_class)
    error = calibration_error(_tensor(confidence), torch.from_numpy(predicted_class == true_class)) if scored else 0.0
    return Evaluation(Confusions.of(true_class, predicted_class, classes), error, len(labels) - scored)


def _refuse_not_finite(count: int, images: int) -> None:
    """Raises UserError where the model does not work."""
    if too_many(count, images):
        raise UserError(
            f"the model's probabilities of {count} of {images} images are not finite (NaN or infinite); export or "
            "train it anew"
        )


def _answered(listing: Listing, settings: dict[str, Any], card: dict[str, Any], weights: bytes, pool: Pool) -> Any:
    """A Ray dataset of `image_id`, `content`, `probabilities` (B, K): all images that can be read and are not known."""
    room = leave_room("models", pool.actors, pool.actors, {"CPU": 1.0, "GPU": pool.num_gpus})
    prepared: Any = listing.dataset().map_batches(
        _prepare, fn_kwargs=settings, batch_size=None, batch_format="pyarrow", num_cpus=_DECODING_CPUS
    )
    return prepared.map_batches(
        _Predictor,
        fn_constructor_kwargs={"card": card, "pool": replace(pool, actors=room.most)},
        fn_kwargs={"weights": [ray.put(weights)]},
        batch_size=pool.batch_size,
        compute=ray.data.ActorPoolStrategy(min_size=room.least, max_size=room.most),
        num_cpus=room.cpus,
        num_gpus=pool.num_gpus or None,
    )


def _prepare(block: pa.Table, known: list[ray.ObjectRef] | None = None, **settings: Any) -> Iterator[dict[str, Any]]:
    """`preparation.prepare`, with the known keys in the object store."""
    yield from preparation.prepare(block, known=ray.get(known[0]) if known else None, **settings)


class _Predictor:
    """One member of the pool; the weights come through the object store, so no machine needs the model's folder."""

    def __init__(self, card: dict[str, Any], pool: Pool) -> None:
        if not pool.num_gpus:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // pool.actors))
        self._card, self._device = card, "cuda" if pool.num_gpus else "cpu"
        self._model: Model | None = None

    def __call__(self, batch: dict[str, NDArray[Any]], weights: list[ray.ObjectRef]) -> dict[str, NDArray[Any]]:
        if self._model is None:
            self._model = Model.build(self._card, ray.get(weights[0]), self._device)
        pixels = torch.from_numpy(batch.pop("image")).permute(0, 3, 1, 2)
        return {**batch, "probabilities": self._model.probabilities(pixels).cpu().numpy()}


def _read(model: Folder) -> tuple[dict[str, Any], bytes]:
    """The content of a model's files, checked by building it once here rather than in every actor."""
    card = read_card(model)
    Model.load(model)
    return card, model.read(WEIGHTS)


def _claim(output: Folder, card: dict[str, Any], weights: bytes, top_k: int, least: float) -> str:
    """Make the output folder this model's, or refuse it; returns 32 hex digits over the model."""
    fingerprint = blake2b(repr((card["classes"], card["temperature"])).encode() + weights, digest_size=16).hexdigest()
    mine = {"model": fingerprint, "classes": card["classes"], "top_k": top_k, **({"abstain": least} if least else {})}

    def refuse_other(text: str) -> None:
        there = json.loads(text)
        if there != mine:
            raise UserError(
                f"--output {output.path} holds predictions of another model, top_k or threshold (model "
                f"{there.get('model')}, top_k {there.get('top_k')}, abstaining below {there.get('abstain', 0)}; now "
                f"{fingerprint}, {top_k}, {least}); choose another folder"
            )

    content = json.dumps(mine, indent=1, sort_keys=True) + "\n"
    claim(output, output.path, holds="predictions", record=RECORD, content=content, check=refuse_other)
    return fingerprint


def _tensor(parts: list[NDArray[Any]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))
