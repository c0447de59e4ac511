"""What the candidate sets of a split are made of: annotators, their tables, labels; and a mark over all of that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coreg_ray import __version__
from coreg_ray.annotation import candidate_builder, writer
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.clip import TextTable
from coreg_ray.annotation.labels import Labels, read_labels
from coreg_ray.annotation.manual import read_manual
from coreg_ray.annotation.parts import Part, parts
from coreg_ray.annotation.rejects import Rejected, read_rejected
from coreg_ray.annotation.vocabulary import Vocabulary, prompts_that_count
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.ids import fingerprint
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.storage import Folder


@dataclass(frozen=True)
class AskedAnnotator:
    """One annotator's table, and which of its prompts count.

    Attributes:
        card, text: as if only those prompts had been asked. places: theirs among those asked; None: all count.
    """

    folder: Folder
    card: Card
    text: TextTable | None
    places: list[int] | None = None

    @classmethod
    def of(cls, folder: Folder, config: Config) -> AskedAnnotator:
        """Raises UserError where `source.prompts` names one that was not asked, or no description was."""
        card = writer.read_card(folder)
        text = writer.read_text(folder, card) if card.dim else None
        source = config.source
        counted = (source.prompts, source.descriptions, source.description_votes)
        chosen = card.prompts if text is None else prompts_that_count(card.prompts, *counted)
        if text is None or set(chosen) == set(card.prompts):
            return cls(folder, card, text)
        missing = [prompt for prompt in chosen if prompt not in card.prompts]
        if missing:
            raise UserError(
                f"source.prompts: {missing[0]!r} and {len(missing) - 1} more were not asked in {folder.path}; annotate "
                "with them first (the images are not encoded again), or name some of those that were"
            )
        places = [card.prompts.index(prompt) for prompt in chosen]
        return cls(folder, *candidate_builder.choose_prompts(card, text, places), places)


def only_votes(annotated: RunFolder) -> bool:
    """Whether the pool was annotated by votes from files alone."""
    used = annotated.read_used("pool")
    return bool(used) and all(writer.read_card(folder).kind == "votes" for folder in used)


@dataclass(frozen=True)
class CandidateInputs:
    """What the candidate sets of a split and their figures are made of.

    Attributes:
        annotators: those whose votes count. parts: of each one's table. labels, manual, rejected: as
            `candidate_builder.Making` takes them. mark: 16 hex digits over all of that, the settings and the version of
            this code.
    """

    annotators: list[AskedAnnotator]
    parts: list[list[Part]]
    labels: Labels
    manual: Labels
    rejected: Rejected
    mark: str

    @classmethod
    def of(cls, config: Config, annotated: RunFolder, split: Split, cpus: float = 1) -> CandidateInputs:
        """What lies in the run folder `annotated`. Raises UserError as `candidates.build_candidates` does."""
        annotators = [AskedAnnotator.of(folder, config) for folder in annotated.read_used(split)]
        if not annotators:
            raise UserError(
                f"{annotated.annotations(split).path} holds no annotations; annotate the {split} images first"
            )
        own = [parts(annotator.folder) for annotator in annotators]
        labels = ask(task(read_labels, cpus).remote(annotated.labels(split)))
        rejected: Rejected = ask(task(read_rejected, cpus).remote(annotated.rejects(split)))
        manual = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if split == "pool" and config.source.manual_labels:
            card = annotators[0].card
            manual = read_manual(config.source.manual_labels, Vocabulary(card.names, card.prompts))[1]
        answers = [(annotator.card.manifest(), annotator.places) for annotator in annotators]
        listed = [[part.name for part in some] for some in own]
        settings = [config.candidates.model_dump(), config.seed, __version__]
        without = [rejected.digest()] if len(rejected.keys) else []
        mark = fingerprint(answers, listed, labels.digest(), manual.digest(), settings, *without)
        return cls(annotators, own, labels, manual, rejected, mark)

    @property
    def cards(self) -> list[Card]:
        return [annotator.card for annotator in self.annotators]

    @property
    def words(self) -> Vocabulary:
        """The classes, and the prompts of the first annotator."""
        return Vocabulary(self.cards[0].names, self.cards[0].prompts)
