"""Ray carries the images: source -> annotator pool -> annotation table -> candidate sets -> rows to train on.

A listing task yields blocks of image ids to the object store; Ray Data streams them through a stage that reads, decodes
and resizes (and writes the rows to train on), a pool of annotators, and a stage that writes one part a block and
answers with a line of figures. Those lines are all that the driver sees. Work on parts that exist already is plain Ray
tasks.

All functions expect `ray.init` to have been called.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.data
from numpy.typing import NDArray

from coreg_ray.annotation import factory, writer
from coreg_ray.annotation.card import MANIFEST, Card
from coreg_ray.annotation.manual import check_manual
from coreg_ray.annotation.parts import drop_outdated, drop_replaced, known_keys, next_run, parts
from coreg_ray.cluster import metrics
from coreg_ray.cluster.candidates import build_candidates, zero_shot
from coreg_ray.cluster.decode import decode, size, unknown
from coreg_ray.cluster.pools import Pool, announce, describe, keep, open_pool, settle
from coreg_ray.cluster.rows import row_settings, settle_rows, write_rows
from coreg_ray.cluster.tasks import Listing, ask, each, task, through, told, watch
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.errors import UserError
from coreg_ray.images.base import Split
from coreg_ray.images.decode import Fit
from coreg_ray.run.storage import Folder

__all__ = ["annotate", "annotate_splits", "build_candidates", "open_pool", "vote_again", "write_rows", "zero_shot"]

log = logging.getLogger(__name__)

_EMBED_BATCH = 256  # images a CLIP annotator gets at a time; it may cut them smaller
_CHAT_BATCH = 32  # images between two writes of answers that cost money
_PART_IMAGES = 512  # images in a part, the unit that a crash loses


def annotate(config: Config, split: Split, output: Folder) -> dict[str, Any]:
    """`annotate_splits` for one split, without rows."""
    return annotate_splits(config, [split], output)[split]


def annotate_splits(
    config: Config, splits: Sequence[Split], output: Folder, *, rows: bool = False
) -> dict[Split, dict[str, Any]]:
    """Annotate what is not annotated yet, and bring votes up to date with the prompts and class names.

    All splits go through one pool of annotators, and every image that needs it is decoded once. Writes
    `annotations/<split>/<annotator>/`, `rejects/<split>/` and, where labels are known, `labels/<split>/`.

    Args:
        rows: write `rows/<split>/` on the way, as `write_rows` does.

    Returns:
        For each split: `images` in the source, `encoded_images` in this run, `rejected_images` in all, `missing_images`
        that a spent budget or a failing server left open, `seconds`, `images_per_s`; for chat annotators `requests`,
        `input_tokens`, `output_tokens` and `cost` of this run, `requests_in_all` and `cost_in_all` of all runs.

    Raises:
        UserError: the source, the vocabulary or the model is not what it should be, or no test image has a label;
            before any image is annotated.
    """
    started = time.monotonic()
    wanted = [config.annotator, *config.further_annotators]
    for annotator in wanted:
        announce(annotator)
    words, _ = open_pool(config, splits[0])
    described = [describe(annotator, config, words, output) for annotator in wanted]
    pools = []
    for split in splits:
        source = open_pool(config, split)[1]
        pools.append(Pool(split, source, Listing(source, output / "labels" / split), output))
        if any(isinstance(answer, ray.ObjectRef) for answer in described):
            pools[-1].listing.dataset()  # now, while models load: Ray Data asks for the sizes of the blocks in tasks
    if splits[0] == "pool" and config.source.manual_labels:
        ask(task(check_manual).remote(config.source.manual_labels, words, pools[0].listing.rows))
    cards = [settle(answer) for answer in described]
    if "test" in splits:
        _refuse_unlabelled(pools[list(splits).index("test")])
    totals: dict[Split, Counter[str]] = {split: Counter() for split in splits}
    for number, (annotator, (card, text)) in enumerate(zip(wanted, cards, strict=True)):
        side = config.student.resolution if rows and not number else None
        for pool in pools:
            keep(card, text, pool.table / card.folder)
        for split, figures in _annotate_with(annotator, card, pools, side).items():
            totals[split].update(figures)
    for pool in pools:
        pool.table.write_json(writer.USED, [card.folder for card, _ in cards])
    seconds = time.monotonic() - started
    return {pool.split: _figures(pool, totals[pool.split], seconds) for pool in pools}


def _refuse_unlabelled(test: Pool) -> None:
    """Test images without labels can score nothing. Raises UserError."""
    images, labels = test.listing.images, test.output / "labels" / "test"
    if not labels.files(".parquet"):
        raise UserError(
            f"none of the {images} test images has a label; name their column with --source.label_column, sort them "
            "into sub-folders named like the classes, or leave them out with --test.kind null"
        )


def _figures(pool: Pool, total: Counter[str], seconds: float) -> dict[str, Any]:
    """What `annotate_splits` returns about one split."""
    rejected = sum(each(writer.count_rows, parts(pool.rejects), pool.rejects))
    images, encoded = pool.listing.images, total.pop("images", 0)
    if rejected:
        log.warning("%d of %d images cannot be decoded; rejects/%s says why", rejected, images, pool.split)
    return {
        "images": images,
        "encoded_images": encoded,
        "rejected_images": rejected,
        "missing_images": total.pop("missing", 0),
        "seconds": seconds,
        "images_per_s": encoded / seconds,
        **total,
    }


def _annotate_with(
    annotator: AnnotatorConfig, card: Card, pools: list[Pool], side: int | None
) -> dict[Split, dict[str, Any]]:
    """Let one annotator see what it has not seen; returns the sums of its figures for each split.

    Args:
        side: of the rows to write on the way, in pixels; None: no rows.
    """
    chat, prepared, places = annotator.kind == "chat", [], {}
    wanted = {pool.split: _wanted(pool, pool.table / card.folder, card, side) for pool in pools}
    if all(_nothing_new(pool, **wanted[pool.split]) for pool in pools):
        return {pool.split: _account(annotator, card, pool, Counter(), side) for pool in pools}
    for pool in pools:
        folder = pool.table / card.folder
        run = next_run(folder, pool.rejects, *([pool.rows] if side else []))
        places[pool.split] = writer.Place(folder, run)
        blocks = through(
            pool.listing.dataset(),
            decode,
            settings={
                "split": pool.split,
                "source": pool.source,
                "fit": Fit(**card.preprocess),
                "rejects": pool.rejects,
                "run": run,
                **wanted[pool.split],
            },
            batch_size=None,
            batch_format="pyarrow",
        )
        # Besides cutting parts this keeps Ray Data from fusing decoding into the annotators' processes.
        part = max(_CHAT_BATCH, 2 * annotator.concurrency) if chat else _PART_IMAGES
        prepared.append(blocks.repartition(target_num_rows_per_block=part))
    answered = through(
        prepared[0].union(*prepared[1:]) if len(prepared) > 1 else prepared[0],
        _Annotator,
        settings={"config": annotator, "folder": pools[0].table / card.folder},
        batch_size=part if chat else max(_EMBED_BATCH, annotator.batch_size or 0),
        compute=ray.data.ActorPoolStrategy(
            min_size=1 if chat else annotator.min_actors, max_size=1 if chat else annotator.max_actors
        ),
        num_cpus=1 if chat else annotator.num_cpus,
        num_gpus=annotator.num_gpus or None,
    )
    written = through(answered, writer.write_annotations, settings={"places": places, "card": card}, batch_size=None)
    names = " and ".join(places)
    total = watch(written, sum(pool.listing.images for pool in pools), f"annotating the {names} images ({card.model})")
    return {pool.split: _account(annotator, card, pool, total, side) for pool in pools}


def _wanted(pool: Pool, folder: Folder, card: Card, side: int | None) -> dict[str, Any]:
    """What says which images of a split need work; stored embeddings have answered the card's questions then."""
    vote_again(folder, card)
    rows = row_settings(pool, side, pool.rejects) if side else {}
    return {"known": [task(known_keys).remote(folder, pool.rejects)], **rows}


def _nothing_new(pool: Pool, known: list[ray.ObjectRef], rows_known: Sequence[ray.ObjectRef] = (), **_: Any) -> bool:
    """Whether no image needs work; found without an annotator, which may take a GPU and minutes to start."""
    tables = [*known, *rows_known]
    if any(ask(task(size).remote(table)) < pool.listing.images for table in tables):
        return False
    blocks = pool.listing.blocks
    found = each(unknown, blocks, pool.source, tables, a_task=1)  # every image is read
    return not any(told(found, len(blocks), f"looking for new {pool.split} images, part"))


def vote_again(folder: Folder, card: Card) -> None:
    """Bring the votes of stored embeddings up to date with the card's prompts and class names."""
    outdated = list(drop_replaced(folder, card.text))
    if not outdated:
        return
    text = ray.put(writer.read_text(folder, card)) if card.dim else None
    again = sum(each(writer.vote_again, outdated, folder, card, text))
    log.info("new prompts or class names: %d images vote again from their stored embeddings", again)


def _account(
    annotator: AnnotatorConfig, card: Card, pool: Pool, total: Counter[str], side: int | None
) -> dict[str, Any]:
    """Leave one answer for each image, and say what is missing and what was spent."""
    folder = pool.table / card.folder
    mine = {name.partition("/")[2]: value for name, value in total.items() if name.startswith(f"{pool.split}/")}
    missing = pool.listing.images - ask(task(drop_outdated).remote(pool.listing.rows, folder, pool.rejects))
    if side:
        settle_rows(pool, side, pool.rejects)
    if annotator.kind != "chat":
        if missing:
            raise RuntimeError(f"{missing} of {pool.listing.images} images are not annotated; run again to go on")
        return mine
    if missing:
        log.warning("%d images have no answer from %s yet; the same command goes on", missing, card.model)
    ever: Counter[str] = Counter()
    for spent in each(writer.spent_on, parts(folder), folder):
        ever.update(spent)
    return {
        **mine,
        "missing": missing,
        "cost": _price(annotator, mine),
        "requests_in_all": ever["requests"],
        "cost_in_all": _price(annotator, ever),
    }


def _price(annotator: AnnotatorConfig, spent: Mapping[str, int]) -> float:
    tokens = (spent.get("input_tokens", 0), spent.get("output_tokens", 0))
    return (tokens[0] * annotator.price_input + tokens[1] * annotator.price_output) / 1e6


class _Annotator:
    """One member of the annotator pool; what it does shows in Ray's metrics."""

    def __init__(self, config: AnnotatorConfig, folder: Folder) -> None:
        card = Card.from_manifest(folder.read_json(MANIFEST))
        text = writer.read_text(folder, card) if card.dim else None
        threads = max(1, len(os.sched_getaffinity(0)) // config.max_actors)
        self._annotator = factory.build(config, card, text, threads)
        self._name = card.folder

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        started = time.monotonic()
        answered = self._annotator(batch)
        metrics.count(metrics.SECONDS, self._name, time.monotonic() - started)
        metrics.count(metrics.ANNOTATED, self._name, len(answered["votes"]))
        if "requests" in answered:
            metrics.count(metrics.REQUESTS, self._name, int(answered["requests"].sum()))
        return answered
