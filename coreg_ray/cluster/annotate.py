"""Ray carries the images: source -> annotator pool -> annotation table, and the rows to train on, on the way.

A listing task yields blocks of image ids to the object store; Ray Data streams them through a stage that reads, decodes
and resizes (and writes the rows to train on), a pool of annotators, and a stage that writes one part a block and
answers with a line of figures (annotator_pool.py). Those lines are all that the driver sees.

All functions expect `ray.init` to have been called.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from coreg_ray.annotation import ledger, writer
from coreg_ray.annotation.card import TEXT, Card
from coreg_ray.annotation.manual import check_manual
from coreg_ray.annotation.parts import drop_outdated, parts
from coreg_ray.annotation.rejects import (
    count_not_finite,
    drop_answered,
    refuse_not_finite,
    try_again,
    without_vote,
)
from coreg_ray.cluster.annotator_pool import run_annotator
from coreg_ray.cluster.describing import Described, describe, keep, settle
from coreg_ray.cluster.features import refuse_small_pool
from coreg_ray.cluster.listing import Listing
from coreg_ray.cluster.pools import Pool, announce, open_pool
from coreg_ray.cluster.rows import settle_rows, write_rows
from coreg_ray.cluster.tasks import ask, each, task
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.errors import UserError
from coreg_ray.methods import refuse_classes
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import Spent, SplitAnnotation
from coreg_ray.training.embeddings import refuse_unasked

log = logging.getLogger(__name__)


def annotate(config: Config, split: Split, run: RunFolder) -> SplitAnnotation:
    """`annotate_splits` for one split, without rows."""
    return annotate_splits(config, [split], run)[split]


def annotate_splits(
    config: Config, splits: Sequence[Split], run: RunFolder, *, rows: bool = False
) -> dict[Split, SplitAnnotation]:
    """Annotate what is not annotated yet, and bring votes up to date with the prompts and class names.

    All splits go through one pool of annotators, and every image that needs it is decoded once. Writes
    `annotations/<split>/<annotator>/`, `rejects/<split>/` and, where labels are known, `labels/<split>/`.

    Args:
        rows: write `rows/<split>/` on the way, as `rows.write_rows` does.

    Raises:
        UserError: the source, the vocabulary or the model is not what it should be, the run holds annotations of other
            images, or no test image has a label; before any image is annotated. Or a file cannot be read, a chat server
            refuses all, or many answers are not finite; what was answered before is written.
    """
    started = time.monotonic()
    for split in splits:
        run.refuse_other_images(config, split)
    run.unlink("annotations", "labels", "rows", "candidates", "rejects")  # from now on it has its own
    annotators = [config.annotator, *config.further_annotators]
    for annotator in annotators:
        announce(annotator)
    words, _ = open_pool(config, splits[0])
    refuse_classes(config.method.kind, len(words.names))
    refuse_unasked(config.method.distil.prompt, words.prompts, "this run (source.prompts)")
    described = [describe(annotator, config, words, run) for annotator in annotators]
    pools = []
    for split in splits:
        source = open_pool(config, split)[1]
        pools.append(Pool(split, source, Listing(source, run.own("labels", split)), run))
        if not all(isinstance(answer, Described) for answer in described):
            pools[-1].listing.dataset()  # now, while models load: Ray Data asks for the sizes of the blocks in tasks
    if splits[0] == "pool" and config.source.manual_labels:
        ask(task(check_manual).remote(config.source.manual_labels, words, pools[0].listing.rows))
    if rows and splits[0] == "pool":
        refuse_small_pool(config, pools[0].listing.images)
    settled = [settle(answer) for answer in described]
    if "test" in splits:
        _refuse_unlabelled(pools[list(splits).index("test")])
    accounts: dict[Split, list[_Account]] = {split: [] for split in splits}
    folders = [one.card.folder for one in settled]
    for pool in pools:
        run.write_origin(config, pool.split)
        _try_again(pool, folders, any(annotator.retry_rejects for annotator in annotators))
    side, with_rows = config.student.resolution if rows else None, set[Split]()
    for annotator, one in sorted(zip(annotators, settled, strict=True), key=lambda pair: pair[0].kind == "votes"):
        asked = [pool for pool in pools if annotator.kind != "votes" or pool.split == "pool"]
        if not asked:
            continue
        for pool in asked:
            keep(one, pool.table / one.card.folder)
        counted = run_annotator(annotator, one.card, asked, None if with_rows else side)
        with_rows |= {pool.split for pool in asked}
        for pool in asked:
            accounts[pool.split].append(_account(annotator, one.card, pool, counted[pool.split]))
    for pool in pools:
        own = [one.card.folder for one in settled if pool.split == "pool" or one.card.kind != "votes"]
        answered = [pool.table / name for name in own]
        ask(task(drop_answered).remote(pool.rejects, answered))
        run.write_used(pool.split, own)
        if side and pool.split in with_rows:
            settle_rows(pool, side, pool.rejects, answered)
        elif side:  # nobody but votes, which are about the pool
            write_rows(config, pool.split, run)
    seconds = time.monotonic() - started
    return {pool.split: _summary(pool, accounts[pool.split], seconds) for pool in pools}


def _try_again(pool: Pool, folders: list[str], all_of_them: bool) -> None:
    """Forget the rejects that this run is to try again, `all_of_them` or those that could not be read."""
    ask(task(try_again).remote(pool.rejects, all_of_them))
    for folder in [pool.table / name for name in folders] if all_of_them else []:
        if folder.exists(TEXT):  # versions before kept embeddings that are not finite
            again = sum(each(writer.drop_not_finite, parts(folder), folder))
            log.info("%s: %d stored embeddings are not finite and are asked for again", pool.split, again)


def _refuse_unlabelled(test: Pool) -> None:
    """Test images without labels can score nothing. Raises UserError."""
    images = test.listing.images
    if not test.run.labels("test").files(".parquet"):
        raise UserError(
            f"none of the {images} test images has a label; name their column with --source.label_column, sort them "
            "into sub-folders named like the classes, or leave them out with --test.kind null"
        )


@dataclass(frozen=True)
class _Account:
    """What one annotator did for one split.

    Attributes:
        images: answered for in this run. missing: left open. spent: None unless it is a chat model.
    """

    images: int
    missing: int = 0
    spent: Spent | None = None


def _account(annotator: AnnotatorConfig, card: Card, pool: Pool, counted: Counter[str]) -> _Account:
    """Leave one answer for each image, and say what is missing and what was spent.

    Raises:
        UserError: many answers are not finite, in this run or an earlier one.
    """
    folder = pool.table / card.folder
    missing = pool.listing.images - ask(task(drop_outdated).remote(pool.listing.rows, folder, pool.rejects))
    bad = ask(task(count_not_finite).remote(pool.rejects))
    refuse_not_finite(bad, pool.listing.images, pool.split)
    if annotator.kind == "votes":
        without, first = ask(task(without_vote).remote(pool.rejects, card.folder))
        if without:
            log.warning(
                "%d of %d images have no vote in %s (%s); they are left out, unless another annotator answers for them",
                *(without, pool.listing.images, card.model, ", ".join(map(repr, first))),
            )
    if annotator.kind != "chat":
        if missing:
            raise RuntimeError(f"{missing} of {pool.listing.images} images are not annotated; run again to go on")
        return _Account(counted["images"])
    if missing:
        log.warning("%d images have no answer from %s yet; the same command goes on", missing, card.model)
    ever = Counter(vars(ask(task(ledger.spent).remote(folder))))
    return _Account(
        counted["images"],
        missing,
        Spent(
            requests=counted["requests"],
            input_tokens=counted["input_tokens"],
            output_tokens=counted["output_tokens"],
            cost=_price(annotator, counted),
            requests_in_all=ever["requests"],
            cost_in_all=_price(annotator, ever),
        ),
    )


def _price(annotator: AnnotatorConfig, spent: Counter[str]) -> float:
    return (spent["input_tokens"] * annotator.price_input + spent["output_tokens"] * annotator.price_output) / 1e6


def _summary(pool: Pool, accounts: list[_Account], seconds: float) -> SplitAnnotation:
    """What all annotators together did for one split."""
    rejected = sum(each(writer.count_rows, parts(pool.rejects), pool.rejects))
    images, paid = pool.listing.images, [account.spent for account in accounts if account.spent is not None]
    if rejected:
        log.warning("%d of %d images were rejected; rejects/%s says why", rejected, images, pool.split)
    return SplitAnnotation(
        images=images,
        encoded_images=sum(account.images for account in accounts),
        rejected_images=rejected,
        missing_images=sum(account.missing for account in accounts),
        seconds=seconds,
        spent=sum(paid[1:], paid[0]) if paid else None,
    )
