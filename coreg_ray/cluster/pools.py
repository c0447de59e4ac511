"""What stands ready before images move: classes, and sources with their listings."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from coreg_ray.annotation.vocabulary import Vocabulary, vocabulary
from coreg_ray.cluster.listing import Listing
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


def open_pool(config: Config, split: Split) -> tuple[Vocabulary, Source]:
    """The classes and prompts of a configuration, and the images of one split.

    Raises:
        UserError: one of them is not what it should be.
    """
    words = asked_about(config, open_source(config, "pool").known_classes if own_classes(config) else ())
    return words, open_source(config, split, words.index())


def own_classes(config: Config) -> bool:
    """Whether the class names are those that the source brings along."""
    return config.source.kind in KNOWS_CLASSES and config.source.classes is None


def asked_about(config: Config, known: tuple[str, ...]) -> Vocabulary:
    """The classes and prompts of a configuration; `known`: names that the source brings along.

    Raises:
        UserError: they are not what they should be.
    """
    section = config.source
    return vocabulary(
        section.kind, section.classes, section.prompts, known, section.descriptions, section.description_votes
    )


def announce(annotator: AnnotatorConfig) -> None:
    """Name the host that images will be sent to, if any. Raises UserError where that is not allowed."""
    if annotator.kind == "chat":
        from coreg_ray.annotation.chat_client import check_upload

        log.warning("images are sent to %s", check_upload(annotator))
