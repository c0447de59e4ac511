"""Ray carries the images: source -> annotator pool -> annotation table -> candidate sets -> rows to train on.

A listing task yields blocks of image ids to the object store; Ray Data streams them through a stage that reads, decodes
and resizes, a pool of annotators, and a stage that writes one part a block and answers with a line of figures. Those
lines are all that the driver sees. Work on parts that exist already is plain Ray tasks.

All functions expect `ray.init` to have been called.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.util.metrics
from numpy.typing import NDArray

from coreg_ray import assembly, preparation
from coreg_ray.annotations import MANIFEST, TEXT, Card, drop_outdated, drop_replaced, known_keys, next_run, parts
from coreg_ray.annotators import choice
from coreg_ray.config import KNOWS_CLASSES, AnnotatorConfig, Config
from coreg_ray.images import Fit
from coreg_ray.manual import check_manual
from coreg_ray.ray_candidates import build_candidates, zero_shot
from coreg_ray.ray_tasks import Listing, ask, each, task, through, watch
from coreg_ray.sources import Source, Split, open_source
from coreg_ray.storage import Folder
from coreg_ray.vocabulary import Vocabulary, vocabulary

__all__ = ["annotate", "announce", "build_candidates", "find_card", "open_pool", "write_rows", "zero_shot"]

log = logging.getLogger(__name__)

_EMBED_BATCH = 256  # images a CLIP annotator gets at a time; it may cut them smaller
_CHAT_BATCH = 32  # images between two writes of answers that cost money
_PART_IMAGES = 512  # images in a part, the unit that a crash loses


def annotate(config: Config, split: Split, output: Folder) -> dict[str, Any]:
    """Annotate what is not annotated yet, and bring votes up to date with the prompts and class names.

    Writes `annotations/<split>/<annotator>/`, `rejects/<split>/` and, where labels are known, `labels/<split>/`.

    Returns:
        `images` in the source, `encoded_images` in this run, `rejected_images` in all, `missing_images` that a spent
        budget or a failing server left open, `seconds`, `images_per_s`; for chat annotators `requests`,
        `input_tokens`, `output_tokens` and `cost` of this run.

    Raises:
        UserError: the source, the vocabulary or the model is not what it should be; before any image is annotated.
    """
    started = time.monotonic()
    wanted = [config.annotator, *config.further_annotators]
    for annotator in wanted:
        announce(annotator)
    words, source = open_pool(config, split)
    listing = Listing(source, output / "labels" / split)
    if split == "pool" and config.source.manual_labels:
        ask(task(check_manual).remote(config.source.manual_labels, words, listing.rows))
    table = output / "annotations" / split
    total: Counter[str] = Counter()
    used = []
    for annotator in wanted:
        figures, folder = _annotate_with(annotator, config, words, source, listing, output, split)
        total.update(figures)
        used.append(folder)
    table.write_json(assembly.USED, used)
    rejects = output / "rejects" / split
    rejected = sum(each(assembly.count_rows, parts(rejects), rejects))
    if rejected:
        log.warning("%d of %d images cannot be decoded; rejects/%s says why", rejected, listing.images, split)
    encoded, seconds = total.pop("images", 0), time.monotonic() - started
    return {
        "images": listing.images,
        "encoded_images": encoded,
        "rejected_images": rejected,
        "missing_images": total.pop("missing", 0),
        "seconds": seconds,
        "images_per_s": encoded / seconds,
        **total,
    }


def write_rows(config: Config, split: Split, output: Folder) -> dict[str, Any]:
    """Write `rows/<split>/`: every decodable image at the student's resolution, uint8 height x width x RGB.

    Bicubic, antialiased; what sticks out of a square is cropped evenly.
    """
    started = time.monotonic()
    source = open_pool(config, split)[1]
    listing = Listing(source, None)
    folder, side = output / "rows" / split, config.student.resolution
    folder.delete()
    prepared = through(
        listing.dataset(),
        _prepare,
        settings={"source": source, "fit": Fit.square(side)},
        batch_size=None,
        batch_format="pyarrow",
    )
    written = through(prepared, assembly.write_rows, settings={"folder": folder, "side": side}, batch_size=None)
    rows = watch(written, listing.images, f"writing the {split} rows")["images"]
    return {"rows": rows, "seconds": time.monotonic() - started}


def open_pool(config: Config, split: Split) -> tuple[Vocabulary, Source]:
    """The classes and prompts of a configuration, and the images of one split.

    Raises:
        UserError: one of them is not what it should be.
    """
    section = config.source
    own = section.kind in KNOWS_CLASSES and section.classes is None
    known = open_source(config, "pool").known_classes if own else ()
    words = vocabulary(section.kind, section.classes, section.prompts, known)
    return words, open_source(config, split, words.index())


def announce(annotator: AnnotatorConfig) -> None:
    """Name the host that images will be sent to, if any. Raises UserError where that is not allowed."""
    if annotator.kind == "chat":
        from coreg_ray.annotators.chat import check_upload

        log.warning("images are sent to %s", check_upload(annotator))


def _annotate_with(
    annotator: AnnotatorConfig,
    config: Config,
    words: Vocabulary,
    source: Source,
    listing: Listing,
    output: Folder,
    split: Split,
) -> tuple[dict[str, Any], str]:
    """Let one annotator see what it has not seen; returns the sums of its figures, and the name of its folder."""
    card = find_card(annotator, config, words, output, split)
    folder, rejects = output / "annotations" / split / card.folder, output / "rejects" / split
    text = ray.put(assembly.read_text(folder, card)) if card.dim else None
    again = sum(each(assembly.vote_again, drop_replaced(folder, card.text), folder, card, text))
    if again:
        log.info("new prompts or class names: %d images vote again from their stored embeddings", again)
    run = next_run(folder, rejects)
    known = task(known_keys).remote(folder, rejects)
    prepared = through(
        listing.dataset(),
        _prepare,
        settings={"source": source, "fit": Fit(**card.preprocess), "known": [known], "rejects": rejects, "run": run},
        batch_size=None,
        batch_format="pyarrow",
    )
    chat = annotator.kind == "chat"
    # Besides cutting parts this keeps Ray Data from fusing decoding into the annotators' processes.
    blocks = prepared.repartition(target_num_rows_per_block=_CHAT_BATCH if chat else _PART_IMAGES)
    answered = through(
        blocks,
        _Annotator,
        settings={"config": annotator, "folder": folder},
        batch_size=_CHAT_BATCH if chat else max(_EMBED_BATCH, annotator.batch_size or 0),
        compute=ray.data.ActorPoolStrategy(
            min_size=1 if chat else annotator.min_actors, max_size=1 if chat else annotator.max_actors
        ),
        num_cpus=1 if chat else annotator.num_cpus,
        num_gpus=annotator.num_gpus or None,
    )
    written = through(
        answered, assembly.write_annotations, settings={"folder": folder, "run": run, "card": card}, batch_size=None
    )
    figures = watch(written, listing.images, f"annotating the {split} images with {card.model}")
    missing = listing.images - ask(task(drop_outdated).remote(listing.rows, folder, rejects))
    if missing and not chat:
        raise RuntimeError(f"{missing} of {listing.images} images are not annotated; run again to go on")
    if missing:
        log.warning("%d images have no answer from %s yet; the same command goes on", missing, card.model)
    cost = figures["input_tokens"] * annotator.price_input + figures["output_tokens"] * annotator.price_output
    extra = {"missing": missing, "cost": cost / 1e6} if chat else {}
    return {**figures, **extra}, card.folder


def find_card(annotator: AnnotatorConfig, config: Config, words: Vocabulary, output: Folder, split: Split) -> Card:
    """The annotator's card, from an earlier run with the same model and texts or from loading the model.

    Manifest and text embeddings lie in its folder afterwards.
    """
    words = choice.vocabulary_for(annotator, words)
    background = config.source.background
    earlier = assembly.known_card(output / "annotations", choice.identity(annotator), words, background)
    if earlier is not None:
        card, text = earlier
    else:
        card, table = ask(task(choice.describe).remote(annotator, words, background))
        text = table.to_bytes() if table is not None else b""
    folder = output / "annotations" / split / card.folder
    if text:
        folder.write(TEXT, text)
    folder.write_json(MANIFEST, card.manifest())
    return card


def _prepare(block: pa.Table, known: list[ray.ObjectRef] | None = None, **settings: Any) -> Iterator[dict[str, Any]]:
    """`preparation.prepare`, with the known keys in the object store."""
    yield from preparation.prepare(block, known=ray.get(known[0]) if known else None, **settings)


class _Annotator:
    """One member of the annotator pool; what it does shows in Ray's metrics."""

    def __init__(self, config: AnnotatorConfig, folder: Folder) -> None:
        card = Card.from_manifest(folder.read_json(MANIFEST))
        text = assembly.read_text(folder, card) if card.dim else None
        threads = max(1, len(os.sched_getaffinity(0)) // config.max_actors)
        self._annotator = choice.build(config, card, text, threads)
        tags = {"annotator": card.folder}
        self._images = ray.util.metrics.Counter("coreg_annotated_images", "images annotated", ("annotator",))
        self._seconds = ray.util.metrics.Counter("coreg_annotator_seconds", "seconds spent annotating", ("annotator",))
        self._requests = ray.util.metrics.Counter("coreg_chat_requests", "requests sent", ("annotator",))
        for counter in (self._images, self._seconds, self._requests):
            counter.set_default_tags(tags)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        started = time.monotonic()
        answered = self._annotator(batch)
        self._seconds.inc(max(1e-9, time.monotonic() - started))
        if len(answered["votes"]):
            self._images.inc(len(answered["votes"]))
        if "requests" in answered and answered["requests"].sum():
            self._requests.inc(int(answered["requests"].sum()))
        return answered
