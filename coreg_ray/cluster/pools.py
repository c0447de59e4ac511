"""What stands ready before images move: classes, sources with their listings, and annotators' cards."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import ray

from coreg_ray.annotation import factory, writer
from coreg_ray.annotation.card import MANIFEST, TEXT, Card
from coreg_ray.annotation.vocabulary import Vocabulary, vocabulary
from coreg_ray.cluster.listing import Listing
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.config.sections import KNOWS_CLASSES
from coreg_ray.images import open_source
from coreg_ray.images.base import Source
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """One split on its way through the annotators: where its images come from, and where what is made of them goes."""

    split: Split
    source: Source
    listing: Listing
    run: RunFolder

    @property
    def table(self) -> Folder:
        return self.run.own("annotations", self.split)

    @property
    def rejects(self) -> Folder:
        return self.run.rejects(self.split)

    @property
    def rows(self) -> Folder:
        return self.run.own("rows", self.split)


@dataclass(frozen=True)
class Described:
    """An annotator that is known: its card, and its text embeddings as a file; empty where it has none."""

    card: Card
    text: bytes = b""


def open_pool(config: Config, split: Split) -> tuple[Vocabulary, Source]:
    """The classes and prompts of a configuration, and the images of one split.

    Raises:
        UserError: one of them is not what it should be.
    """
    section = config.source
    own = section.kind in KNOWS_CLASSES and section.classes is None
    known = open_source(config, "pool").known_classes if own else ()
    words = vocabulary(
        section.kind, section.classes, section.prompts, known, section.descriptions, section.description_votes
    )
    return words, open_source(config, split, words.index())


def announce(annotator: AnnotatorConfig) -> None:
    """Name the host that images will be sent to, if any. Raises UserError where that is not allowed."""
    if annotator.kind == "chat":
        from coreg_ray.annotation.chat_client import check_upload

        log.warning("images are sent to %s", check_upload(annotator))


def find_card(annotator: AnnotatorConfig, config: Config, words: Vocabulary, run: RunFolder, split: Split) -> Card:
    """The annotator's card, from an earlier run with the same model and texts or from loading the model.

    Manifest and text embeddings lie in its folder afterwards.
    """
    described = settle(describe(annotator, config, words, run))
    keep(described, run.own("annotations", split) / described.card.folder)
    return described.card


def describe(
    annotator: AnnotatorConfig, config: Config, words: Vocabulary, run: RunFolder
) -> Described | ray.ObjectRef:
    """What an earlier run knows of an annotator, else a reference: the model is loaded in a task of its own.

    Votes in files are always read, since they may have changed.
    """
    asked, background = factory.vocabulary_for(annotator, words), config.source.background
    if annotator.kind == "votes":
        return task(factory.describe).remote(annotator, asked, background)
    earlier = writer.known_card(run / "annotations", factory.identity(annotator), asked, background)
    return Described(*earlier) if earlier else task(factory.describe).remote(annotator, asked, background)


def settle(described: Described | ray.ObjectRef) -> Described:
    """What `describe` came to. Raises UserError where the model cannot be loaded."""
    if isinstance(described, Described):
        return described
    card, table = ask(described)
    return Described(card, table.to_bytes() if table is not None else b"")


def keep(described: Described, folder: Folder) -> None:
    """Write a card and its text embeddings, if there are any, into the annotator's folder."""
    if described.text:
        folder.write(TEXT, described.text)
    folder.write_json(MANIFEST, described.card.manifest())
