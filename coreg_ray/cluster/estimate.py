"""What annotating a whole pool will cost, from a sample of 200 images that are annotated for good."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreg_ray.annotation import factory, preparation, writer
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.parts import Part, next_run
from coreg_ray.cluster.pools import announce, find_card, open_pool
from coreg_ray.cluster.tasks import Listing, ask, task
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.errors import UserError
from coreg_ray.ids import images_hash, row_numbers
from coreg_ray.images.base import Source
from coreg_ray.images.decode import Fit
from coreg_ray.run.storage import Folder

SAMPLE = 200  # images
_BLOCKS = 8  # of the listing, that they come from: reading a few rows of every Parquet file would take for ever


def estimate(config: Config, output: Folder) -> dict[str, Any]:
    """Annotate a sample of the pool and say what the rest will take.

    The sample becomes part of the annotation table, so nothing that it cost is lost.

    Returns:
        `images`, `sample`, `hours`, `gpu_hours`, `gigabytes` (annotations) and `requests` for the whole pool, and the
        seconds an image takes to read and decode (`decode_s`, on one CPU) and to annotate (`annotate_s`, one actor).
    """
    annotator = config.annotator
    announce(annotator)
    words, source = open_pool(config, "pool")
    listing = Listing(source, None)
    card = find_card(annotator, config, words, output, "pool")
    measure = task(_measure).options(num_cpus=annotator.num_cpus, num_gpus=annotator.num_gpus)
    folder = output / "annotations" / "pool" / card.folder
    of_each = -(-SAMPLE // min(_BLOCKS, len(listing.blocks)))
    measured = ask(measure.remote(annotator, card, source, of_each, folder))
    images = listing.images
    cpus = max(1.0, ray.cluster_resources().get("CPU", 1) - annotator.max_actors * annotator.num_cpus)
    actors = 1 if annotator.kind == "chat" else annotator.max_actors
    slower = max(measured["annotate_s"] / actors, measured["decode_s"] / cpus)
    return {
        "images": images,
        "sample": measured["sample"],
        "hours": images * slower / 3600,
        "gpu_hours": images * measured["annotate_s"] * annotator.num_gpus / 3600,
        "gigabytes": images * measured["bytes"] / 1e9,
        "requests": round(images * measured["requests"]),
        "decode_s": measured["decode_s"],
        "annotate_s": measured["annotate_s"],
    }


def in_words(figures: dict[str, Any], config: Config) -> str:
    """The estimate as lines for a terminal."""
    hours, annotators = figures["hours"], config.annotator.max_actors
    duration = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
    lines = [
        f"{figures['images']} images; measured on {figures['sample']} of them, which stay annotated:",
        f"  time      {duration} with {annotators} annotator(s)",
        f"  GPU       {figures['gpu_hours']:.2f} hours",
        f"  disk      {figures['gigabytes'] * 1000:.1f} MB of annotations",
        f"  requests  {figures['requests']}",
    ]
    return "\n".join(lines)


def _measure(config: AnnotatorConfig, card: Card, source: Source, of_each: int, folder: Folder) -> dict[str, float]:
    """Annotate the sample and time what it takes an image."""
    blocks = _sample(source, of_each)
    started = time.perf_counter()
    batches = [
        batch for block in blocks for batch in preparation.prepare(block, source=source, fit=Fit(**card.preprocess))
    ]
    if not batches:
        count = sum(map(len, blocks))
        raise UserError(f"none of the {count} images of the sample can be decoded; look at what the source holds")
    decode_s = time.perf_counter() - started
    batch = {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}
    text = writer.read_text(folder, card) if card.dim else None
    annotator = factory.build(config, card, text, max(1, len(os.sched_getaffinity(0)) // config.max_actors))
    if card.dim:
        annotator({name: values[:32] for name, values in batch.items()})  # the first call is slower than all others
    started = time.perf_counter()
    answered = annotator(dict(batch))
    annotate_s = time.perf_counter() - started
    run = next_run(folder)
    answered["split"] = np.full(len(answered["image_id"]), "pool", dtype=object)
    writer.write_annotations(answered, places={"pool": writer.Place(folder, run)}, card=card)
    ids, contents = answered["image_id"].tolist(), answered["content"].tolist()
    size = folder.size(Part(run, images_hash(ids, contents), card.text).name) if ids else 0
    count = len(batch["image_id"])
    requests = float(answered["requests"].sum()) if "requests" in answered else 0.0
    return {
        "sample": count,
        "decode_s": decode_s / count,
        "annotate_s": annotate_s / count,
        "bytes": size / max(1, len(ids)),
        "requests": requests / count,
    }


def _sample(source: Source, of_each: int) -> list[pa.Table]:
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
