"""What annotating a whole pool will cost, from a sample of 200 images that are annotated for good."""

from __future__ import annotations

import logging
import os
import resource
import time
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray

from coreg_ray.annotation import factory, preparation, writer
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.parts import Part, next_run
from coreg_ray.cluster.annotator_pool import CHAT_BATCH
from coreg_ray.cluster.describing import find_card
from coreg_ray.cluster.listing import Listing
from coreg_ray.cluster.pools import announce, open_pool
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.errors import UserError
from coreg_ray.ids import images_hash, row_numbers
from coreg_ray.images.base import Source
from coreg_ray.images.decode import Fit
from coreg_ray.run.folder import RunFolder, Split

log = logging.getLogger(__name__)

SAMPLE = 200  # images
_BLOCKS = 8  # of the listing, that they come from: reading a few rows of every Parquet file would take for ever


@dataclass(frozen=True)
class Estimate:
    """What annotating a whole pool will take.

    Attributes:
        images: of the pool. sample: of these that were measured. gigabytes: of annotations. decode_s: seconds an image
            takes to read and decode, on one CPU. annotate_s: and to annotate, one actor. memory: bytes of one actor.
    """

    images: int
    sample: int
    hours: float
    gpu_hours: float
    gigabytes: float
    requests: int
    decode_s: float
    annotate_s: float
    memory: int = 0

    def in_words(self, annotators: int) -> str:
        """Lines for a terminal; `annotators`: most of them at work."""
        duration = f"{self.hours:.1f} hours" if self.hours >= 1 else f"{self.hours * 60:.1f} minutes"
        lines = [
            f"{self.images} images; measured on {self.sample} of them, which stay annotated:",
            f"  time      {duration} with {annotators} annotator(s)",
            f"  GPU       {self.gpu_hours:.2f} hours",
            f"  disk      {self.gigabytes * 1000:.1f} MB of annotations",
            f"  requests  {self.requests}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Measured:
    """Means an image over the sample."""

    sample: int
    decode_s: float
    annotate_s: float
    bytes: float
    requests: float
    memory: int = 0
    notes: tuple[str, ...] = ()


def estimate(config: Config, run: RunFolder) -> Estimate:
    """Annotate a sample of the pool and say what the rest will take.

    The sample becomes part of the annotation table, so nothing that it cost is lost; what it took of a chat model's
    budget stands in the account.

    Raises:
        UserError: the source or the annotator is not what it should be, or the run holds annotations of other images;
            what was answered until then is written.
    """
    annotator = config.annotator
    if annotator.kind == "votes":
        raise UserError("annotator.kind=votes has all answers already: there is nothing to estimate; annotate at once")
    run.refuse_other_images(config, "pool")
    announce(annotator)
    words, source = open_pool(config, "pool")
    listing = Listing(source, None)
    card = find_card(annotator, config, words, run, "pool")
    run.write_origin(config, "pool")
    measure = task(_measure).options(num_cpus=annotator.num_cpus, num_gpus=annotator.num_gpus)
    of_each = of_each_block(listing)
    measured: _Measured = ask(measure.remote(annotator, card, source, of_each, run))
    for note in measured.notes:
        log.warning("%s", note)
    images = listing.images
    cpus = max(1.0, ray.cluster_resources().get("CPU", 1) - annotator.max_actors * annotator.num_cpus)
    actors = 1 if annotator.kind == "chat" else annotator.max_actors
    slower = max(measured.annotate_s / actors, measured.decode_s / cpus)
    return Estimate(
        images=images,
        sample=measured.sample,
        hours=images * slower / 3600,
        gpu_hours=images * measured.annotate_s * annotator.num_gpus / 3600,
        gigabytes=images * measured.bytes / 1e9,
        requests=round(images * measured.requests),
        decode_s=measured.decode_s,
        annotate_s=measured.annotate_s,
        memory=measured.memory,
    )


def of_each_block(listing: Listing) -> int:
    """How many images of each of some blocks make up a sample."""
    return -(-SAMPLE // min(_BLOCKS, len(listing.blocks)))


def _measure(config: AnnotatorConfig, card: Card, source: Source, of_each: int, run: RunFolder) -> _Measured:
    """Annotate the sample and time what it takes an image."""
    blocks = sample_of(source, of_each)
    started = time.perf_counter()
    batches = [
        batch for block in blocks for batch in preparation.prepare(block, source=source, fit=Fit(**card.preprocess))
    ]
    if not batches:
        count = sum(map(len, blocks))
        raise UserError(f"none of the {count} images of the sample can be decoded; look at what the source holds")
    decode_s = time.perf_counter() - started
    batch = {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}
    folder, count = run.own("annotations", "pool") / card.folder, len(batch["image_id"])
    place = writer.Place(folder, next_run(folder, run.rejects("pool")), run.rejects("pool"))
    batch["split"] = np.full(count, "pool", dtype=object)
    if config.kind == "chat":
        return _measure_chat(config, card, batch, place, run, decode_s / count)
    text = writer.read_text(folder, card)
    annotator = factory.build(config, card, text, max(1, len(os.sched_getaffinity(0)) // config.max_actors))
    annotator({name: values[:32] for name, values in batch.items()})  # the first call is slower than all others
    started = time.perf_counter()
    answered = annotator(dict(batch))
    annotate_s = time.perf_counter() - started
    writer.write_annotations(answered, places={"pool": place}, card=card)
    size = _size(answered, place, card) / count
    return _Measured(count, decode_s / count, annotate_s / count, size, 0.0, peak_memory())


def _measure_chat(
    config: AnnotatorConfig, card: Card, batch: dict[str, Any], place: writer.Place, run: RunFolder, decode_s: float
) -> _Measured:
    """Ask a chat model about the sample, a block at a time, each written before the next."""
    folders = [run.own("annotations", split) / card.folder for split in get_args(Split)]
    annotator = factory.build_chat(config, card, folders)
    started, spent = time.perf_counter(), 0
    notes: list[str] = []
    answered = size = 0
    count, at_once = len(batch["image_id"]), max(CHAT_BATCH, config.concurrency)
    for first in range(0, count, at_once):
        answers = annotator({name: values[first : first + at_once] for name, values in batch.items()})
        writer.write_answers(answers, split="pool", places={"pool": place}, card=card)
        if answers.error:
            raise UserError(answers.error)
        spent += answers.usage.requests
        answered += len(answers.answered["image_id"])
        size += _size(answers.answered, place, card)
        notes += answers.notes
    seconds = (time.perf_counter() - started) / count
    told = tuple(dict.fromkeys(notes))
    return _Measured(count, decode_s, seconds, size / max(1, answered), spent / count, peak_memory(), told)


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _size(answered: dict[str, Any], place: writer.Place, card: Card) -> int:
    """Bytes of the part that these answers are in."""
    ids, contents = answered["image_id"].tolist(), answered["content"].tolist()
    return place.folder.size(Part(place.run, images_hash(ids, contents), card.text).name) if ids else 0


def sample_of(source: Source, of_each: int) -> list[pa.Table]:
    """SAMPLE images or a few more: of some blocks, those with the lowest row numbers; the same at every call."""
    chosen: list[tuple[int, pa.Table]] = []
    for block in source.listing():
        rows = row_numbers(block["image_id"].to_pylist())
        if len(rows):
            chosen.append((int(rows[0]), block.take(pa.array(np.sort(np.argsort(rows)[:of_each])))))
        chosen.sort(key=lambda entry: entry[0])
        while sum(len(few) for _, few in chosen[:-1]) >= SAMPLE:
            chosen.pop()
    return [few for _, few in chosen]
