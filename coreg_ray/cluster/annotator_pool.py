"""The pipeline that lets one annotator see what it has not seen: decode, answer in a pool of actors, write.

What a chat model answers has been paid for: its one actor writes a block before it asks about the next, and what it has
to tell a person travels in the line of figures of the block.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import ray
import ray.data
from numpy.typing import NDArray

from coreg_ray.annotation import factory, writer
from coreg_ray.annotation.card import MANIFEST, Card
from coreg_ray.annotation.parts import drop_replaced, next_run
from coreg_ray.annotation.rejects import finite_rows, refuse_not_finite, settled_keys
from coreg_ray.cluster import metrics
from coreg_ray.cluster.decode import decode, size, unknown
from coreg_ray.cluster.pools import Pool
from coreg_ray.cluster.room import leave_room
from coreg_ray.cluster.rows import row_settings
from coreg_ray.cluster.tasks import ERROR, NOTE, ask, each, task, through, told, watch
from coreg_ray.cluster.votes import gather_votes, write_votes
from coreg_ray.config import AnnotatorConfig
from coreg_ray.images.decode import Fit
from coreg_ray.run.folder import Split
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_EMBED_BATCH = 256  # images a CLIP annotator gets at a time; it may cut them smaller
CHAT_BATCH = 32  # images between two writes of answers that cost money
_PART_IMAGES = 512  # images in a part, the unit that a crash loses
_PART_VOTES = 2048  # where only votes are lost, which are there


def run_annotator(
    annotator: AnnotatorConfig, card: Card, pools: list[Pool], side: int | None
) -> dict[Split, Counter[str]]:
    """Let one annotator answer for the images of all splits that it has not seen; returns sums for each split.

    Args:
        side: of the rows to write on the way, in pixels; None: no rows.

    Votes from files are about the pool alone.

    Returns:
        `images` answered for, for votes `unanswered` ones, and for chat annotators `requests`, `input_tokens` and
        `output_tokens`.

    Raises:
        UserError: a chat server refuses the key, the model or the address, a file cannot be read, or many answers are
            not finite; what was answered before is written.
    """
    settings = {pool.split: _settings(pool, pool.table / card.folder, card, side) for pool in pools}
    if all(_nothing_new(pool, **settings[pool.split]) for pool in pools):
        return {pool.split: Counter() for pool in pools}
    chat, prepared, places = annotator.kind == "chat", [], {}
    # Besides cutting parts this keeps Ray Data from fusing decoding into the annotators' processes.
    part = {"chat": max(CHAT_BATCH, 2 * annotator.concurrency), "votes": _PART_VOTES}.get(annotator.kind, _PART_IMAGES)
    tables = gather_votes(annotator, card, pools[0]) if annotator.kind == "votes" else []
    for pool in pools:
        folder = pool.table / card.folder
        run = next_run(folder, pool.rejects, *([pool.rows] if side else []))
        places[pool.split] = writer.Place(folder, run, pool.rejects)
        blocks = through(
            pool.listing.dataset(),
            decode,
            settings={
                "split": pool.split,
                "source": pool.source,
                "fit": Fit(**card.preprocess),
                "rejects": pool.rejects,
                "run": run,
                **settings[pool.split],
            },
            batch_size=None,
            batch_format="pyarrow",
        )
        prepared.append(blocks.repartition(target_num_rows_per_block=part))
    together = prepared[0].union(*prepared[1:]) if len(prepared) > 1 else prepared[0]
    if chat:
        room = leave_room("chat annotators", 1, 1, {"CPU": 1.0})
        written = through(
            together,
            ChatActor,
            settings={
                "config": annotator,
                "card": card,
                "places": places,
                "accounts": [pools[0].run.own("annotations", split) / card.folder for split in get_args(Split)],
            },
            batch_size=part,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=room.cpus,
        )
    elif annotator.kind == "votes":
        destinations = {"tables": tables, "places": places, "card": card}
        written = through(together, write_votes, settings=destinations, batch_size=None)
    else:
        needs = {"CPU": annotator.num_cpus, "GPU": annotator.num_gpus}
        room = leave_room("annotators", annotator.min_actors, annotator.max_actors, needs)
        answered = through(
            together,
            _Annotator,
            settings={"config": annotator, "folder": pools[0].table / card.folder, "most": room.most},
            batch_size=max(_EMBED_BATCH, annotator.batch_size or 0),
            compute=ray.data.ActorPoolStrategy(min_size=room.least, max_size=room.most),
            num_cpus=room.cpus,
            num_gpus=annotator.num_gpus or None,
        )
        destinations = {"places": places, "card": card}
        written = through(answered, writer.write_annotations, settings=destinations, batch_size=None)
    images = sum(pool.listing.images for pool in pools)

    def check(so_far: Counter[str]) -> None:
        for pool in pools:
            refuse_not_finite(so_far[f"{pool.split}/not_finite"], pool.listing.images, pool.split)

    total = watch(written, images, f"annotating the {' and '.join(places)} images ({card.model})", check)
    return {pool.split: _of_split(total, pool.split) for pool in pools}


def vote_again(folder: Folder, card: Card) -> None:
    """Bring the votes of stored embeddings up to date with the card's prompts and class names."""
    outdated = list(drop_replaced(folder, card.text))
    if not outdated:
        return
    text = ray.put(writer.read_text(folder, card)) if card.dim else None
    again = sum(each(writer.vote_again, outdated, folder, card, text))
    log.info("new prompts or class names: %d images vote again from their stored embeddings", again)


def _of_split(total: Counter[str], split: Split) -> Counter[str]:
    return Counter({name.partition("/")[2]: n for name, n in total.items() if name.startswith(f"{split}/")})


def _settings(pool: Pool, folder: Folder, card: Card, side: int | None) -> dict[str, Any]:
    """What says which images of a split need work; stored embeddings have answered the card's questions then."""
    vote_again(folder, card)
    rows = row_settings(pool, side, pool.rejects) if side else {}
    return {"known": [task(settled_keys).remote(folder, pool.rejects)], **rows}


def _nothing_new(pool: Pool, known: list[ray.ObjectRef], rows_known: Sequence[ray.ObjectRef] = (), **_: Any) -> bool:
    """Whether no image needs work; found without an annotator, which may take a GPU and minutes to start."""
    tables = [*known, *rows_known]
    if any(ask(task(size).remote(table)) < pool.listing.images for table in tables):
        return False
    blocks = pool.listing.blocks
    counts = each(unknown, blocks, pool.source, tables, a_task=1)  # every image is read
    return not any(told(counts, len(blocks), f"looking for new {pool.split} images, part"))


class _Annotator:
    """One member of the annotator pool; what it does shows in Ray's metrics."""

    def __init__(self, config: AnnotatorConfig, folder: Folder, most: int) -> None:
        card = Card.from_manifest(folder.read_json(MANIFEST))
        text = writer.read_text(folder, card) if card.dim else None
        threads = max(1, len(os.sched_getaffinity(0)) // most)
        self._annotator = factory.build(config, card, text, threads)
        self._name = card.folder

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        started = time.monotonic()
        answered = self._annotator(batch)
        metrics.count(metrics.SECONDS, self._name, time.monotonic() - started)
        metrics.count(metrics.ANNOTATED, self._name, int(finite_rows(answered).sum()))
        return answered


class ChatActor:
    """The one that asks a chat model and writes what it answers; Ray-free but for Ray's metrics."""

    def __init__(
        self, config: AnnotatorConfig, card: Card, places: dict[str, writer.Place], accounts: list[Folder]
    ) -> None:
        self._annotator = factory.build_chat(config, card, accounts)
        self._card, self._places = card, places

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Ask about a block, write what came of it, and answer with its line of figures."""
        started = time.monotonic()
        answers = self._annotator(batch)
        charged = str(batch["split"][0])
        line = writer.write_answers(answers, split=charged, places=self._places, card=self._card)
        metrics.count(metrics.SECONDS, self._card.folder, time.monotonic() - started)
        metrics.count(metrics.ANNOTATED, self._card.folder, len(answers.answered["votes"]))
        metrics.count(metrics.REQUESTS, self._card.folder, answers.usage.requests)
        for split in self._places:
            metrics.count(metrics.REJECTED, split, line[f"{split}/refused"][0])
        return {**line, NOTE: ["\n".join(answers.notes)], ERROR: [answers.error]}
