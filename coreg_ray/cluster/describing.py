"""What annotators are, before they see an image: from an earlier run, from a task, or from here while Ray starts.

A model must be loaded to be described. On a cluster a task does that, since a driver's machine is often a small one. A
Ray of one's own takes seconds to start, in which a core is idle: there the model is loaded in a thread meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from coreg_ray.annotation import factory, writer
from coreg_ray.annotation.card import MANIFEST, TEXT, Card
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.cluster.connect import starts_own
from coreg_ray.cluster.pools import asked_about, own_classes
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.ids import fingerprint
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.storage import Folder

if TYPE_CHECKING:
    from coreg_ray.annotation.clip import TextTable

Told = tuple[Card, "TextTable | None"]
_begun: dict[str, Future[Told]] = {}  # by what is asked of which model
_imported = threading.Event()  # whether the thread that loads models has what it imports
_imported.set()


@dataclass(frozen=True)
class Described:
    """An annotator that is known: its card, and its text embeddings as a file; empty where it has none."""

    card: Card
    text: bytes = b""


def begin(config: Config, run: RunFolder) -> None:
    """Load CLIP models here and now, where `connect` will start a Ray of one's own and no earlier run knows them.

    Errors wait, as the answers do, for `settle`.

    Raises:
        UserError: the class names or prompts are not what they should be.
    """
    if not starts_own() or (own_classes(config) and config.source.kind != "digits"):
        return  # sets that bring their names along may have to be loaded for them
    words, background = asked_about(config, ()), config.source.background
    waiting = []
    for annotator in (config.annotator, *config.further_annotators):
        if annotator.kind == "clip" and known(annotator, config, words, run) is None:
            answer = _begun[_asked(annotator, words, background)] = Future()
            waiting.append((answer, annotator))
    if waiting:  # one after the other; no daemon, which Python's end would break off within torch
        _imported.clear()
        threading.Thread(target=_tell, args=(waiting, words, background)).start()


def _tell(waiting: list[tuple[Future[Told], AnnotatorConfig]], words: Vocabulary, background: list[str]) -> None:
    try:
        import open_clip  # noqa: F401  # here, beside Ray's start
        import torch
    except BaseException as error:  # a torchvision that does not load, for one: nobody may wait for ever
        for answer, _ in waiting:
            answer.set_exception(error)
        return
    finally:
        _imported.set()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a task of one CPU: the same bits
    with _silence():
        for answer, annotator in waiting:
            try:
                answer.set_result(factory.describe(annotator, words, background))
            except BaseException as error:  # whatever it is, whoever asks raises it
                answer.set_exception(error)
    torch.set_num_threads(before)


@contextmanager
def _silence() -> Iterator[None]:
    """What open_clip tells the root logger in this thread is not for the terminal, unless it is a warning."""
    here, handlers = threading.get_ident(), list(logging.getLogger().handlers)

    def heard(record: logging.LogRecord) -> bool:
        return record.thread != here or record.levelno >= logging.WARNING

    for handler in handlers:
        handler.addFilter(heard)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(heard)


def wait_for_imports() -> None:
    """Wait until `begin` imports nothing any more: two threads that import parts of torch may get halves of them."""
    _imported.wait()


def _asked(annotator: AnnotatorConfig, words: Vocabulary, background: list[str]) -> str:
    return fingerprint(factory.identity(annotator), words.names, words.prompts, words.descriptions, background)


def find_card(annotator: AnnotatorConfig, config: Config, words: Vocabulary, run: RunFolder, split: Split) -> Card:
    """The annotator's card, from an earlier run with the same model and texts or from loading the model.

    Manifest and text embeddings lie in its folder afterwards.
    """
    described = settle(describe(annotator, config, words, run))
    keep(described, run.own("annotations", split) / described.card.folder)
    return described.card


def describe(
    annotator: AnnotatorConfig, config: Config, words: Vocabulary, run: RunFolder
) -> Described | Future[Told] | ray.ObjectRef:
    """What an earlier run knows of an annotator, else what will tell: it has begun here, or a task of its own does."""
    asked, background = factory.vocabulary_for(annotator, words), config.source.background
    earlier = known(annotator, config, words, run)
    begun = _begun.pop(_asked(annotator, words, background), None) if annotator.kind == "clip" else None
    return earlier or begun or task(factory.describe).remote(annotator, asked, background)


def known(annotator: AnnotatorConfig, config: Config, words: Vocabulary, run: RunFolder) -> Described | None:
    """What an earlier run knows of an annotator; of votes in files nothing, since they may have changed."""
    if annotator.kind == "votes":
        return None
    asked = factory.vocabulary_for(annotator, words)
    earlier = writer.known_card(run / "annotations", factory.identity(annotator), asked, config.source.background)
    return Described(*earlier) if earlier else None


def settle(described: Described | Future[Told] | ray.ObjectRef) -> Described:
    """What `describe` came to. Raises UserError where the model cannot be loaded."""
    if isinstance(described, Described):
        return described
    card, table = described.result() if isinstance(described, Future) else ask(described)
    return Described(card, table.to_bytes() if table is not None else b"")


def keep(described: Described, folder: Folder) -> None:
    """Write a card and its text embeddings, if there are any, into the annotator's folder."""
    if described.text:
        folder.write(TEXT, described.text)
    folder.write_json(MANIFEST, described.card.manifest())
