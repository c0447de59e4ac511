"""What stands ready before images move: classes, sources with their listings, and annotators' cards."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from coreg_ray.annotation import factory, writer
from coreg_ray.annotation.card import MANIFEST, TEXT, Card
from coreg_ray.annotation.vocabulary import Vocabulary, vocabulary
from coreg_ray.cluster.tasks import Listing, ask, task
from coreg_ray.config import KNOWS_CLASSES, AnnotatorConfig, Config
from coreg_ray.images import open_source
from coreg_ray.images.base import Source, Split
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """One split on its way through the annotators: where its images come from, and where what is made of them goes."""

    split: Split
    source: Source
    listing: Listing
    output: Folder

    @property
    def table(self) -> Folder:
        return self.output / "annotations" / self.split

    @property
    def rejects(self) -> Folder:
        return self.output / "rejects" / self.split

    @property
    def rows(self) -> Folder:
        return self.output / "rows" / self.split


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
        from coreg_ray.annotation.chat import check_upload

        log.warning("images are sent to %s", check_upload(annotator))


def find_card(annotator: AnnotatorConfig, config: Config, words: Vocabulary, output: Folder, split: Split) -> Card:
    """The annotator's card, from an earlier run with the same model and texts or from loading the model.

    Manifest and text embeddings lie in its folder afterwards.
    """
    card, text = settle(describe(annotator, config, words, output))
    keep(card, text, output / "annotations" / split / card.folder)
    return card


def describe(annotator: AnnotatorConfig, config: Config, words: Vocabulary, output: Folder) -> Any:
    """Card and text embeddings from an earlier run, else a reference: the model is loaded in a task of its own."""
    asked, background = factory.vocabulary_for(annotator, words), config.source.background
    earlier = writer.known_card(output / "annotations", factory.identity(annotator), asked, background)
    return earlier or task(factory.describe).remote(annotator, asked, background)


def settle(described: Any) -> tuple[Card, bytes]:
    """What `describe` found. Raises UserError where the model cannot be loaded."""
    if isinstance(described, tuple):
        return described
    card, table = ask(described)
    return card, table.to_bytes() if table is not None else b""


def keep(card: Card, text: bytes, folder: Folder) -> None:
    """Write a card and its text embeddings, if there are any, into the annotator's folder."""
    if text:
        folder.write(TEXT, text)
    folder.write_json(MANIFEST, card.manifest())
