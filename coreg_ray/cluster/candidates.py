"""Candidate sets and quality figures from annotations that are there: one Ray task a part."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from coreg_ray import __version__
from coreg_ray.annotation import candidate_builder, quality, writer
from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.card import MANIFEST, Card
from coreg_ray.annotation.clip import TextTable, look_alike
from coreg_ray.annotation.labels import Labels, read_labels
from coreg_ray.annotation.manual import check_manual, read_manual
from coreg_ray.annotation.parts import Part, parts
from coreg_ray.annotation.quality import Score
from coreg_ray.annotation.vocabulary import Vocabulary, templates
from coreg_ray.cluster.tasks import added_up, ask, each, task, through
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.ids import fingerprint
from coreg_ray.images.base import Split
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_ROWS_PER_BUCKET = 20_000  # images whose evidence from several annotators is brought together at once


def build_candidates(
    config: Config, output: Folder, annotated: Folder | None = None, cpus: float = 1
) -> dict[str, Any]:
    """Turn the pool's annotations into `candidates/` and say how good they are; sets that are still right stay.

    Where `source.prompts` names some of the prompts that were asked, only those count.

    Args:
        annotated: run folder of the annotations, if it is another one.
        cpus: that each task asks for; 0 where whoever waits holds them all (one annotator only).

    Returns:
        The figures of `quality.Score`, among them `prior` (K numbers, the mean of the annotators' probabilities) and,
        where labels are known, `zero_shot_accuracy` of the mean of the prompts; `warnings` in plain words. `rows` is 0
        where no image has an answer.

    Raises:
        UserError: there are no annotations, those of another run folder hold no answer, or a manual label is wrong.
    """
    folder = output / "candidates"
    inputs = _Inputs.of(config, annotated or output, "pool", cpus)
    known = _made_from(inputs, folder, MANIFEST)
    if known is not None and known.get("parts") == len(_part_names(folder)):  # else some were deleted, or never copied
        figures = {**known["quality"], "prior": known["prior"]}
        _warn(figures)
        return figures
    folder.delete(MANIFEST)  # first, so that no kill leaves it with a part of the sets
    folder.delete()
    figures, cards = _score(inputs, config, folder, cpus), inputs.cards
    if annotated and not figures["rows"]:
        raise UserError(f"{annotated.path} holds no answer about any image; annotate there first (jobs/annotate.py)")
    if annotated and config.source.manual_labels:  # else annotation has looked at them
        words = Vocabulary(cards[0].names, cards[0].prompts)
        ask(task(_check_manual, cpus).remote(config.source.manual_labels, words, folder))
    names = [entry[0] for entry in cards[0].names]
    _warn(figures)
    kept = {name: value for name, value in figures.items() if name != "prior"}
    mark = fingerprint([card.manifest()["fingerprint"] for card in cards], config.candidates.model_dump())
    manifest = {"num_classes": len(names), "class_names": names, "names": cards[0].names, "fingerprint": mark}
    manifest["prior"] = figures["prior"]
    manifest |= {"quality": kept, "made_from": inputs.mark, "parts": len(_part_names(folder))}
    folder.write_json(MANIFEST, manifest)
    return figures


def _part_names(folder: Folder) -> list[str]:
    return [name for name in folder.entries() if name.endswith(".parquet")]


def _made_from(inputs: _Inputs, folder: Folder, name: str) -> dict[str, Any] | None:
    """What an earlier call has written about these very inputs."""
    known = folder.read_json(name) if folder.exists(name) else {}
    return known if known.get("made_from") == inputs.mark else None


def _warn(figures: dict[str, Any]) -> None:
    for warning in figures["warnings"]:
        log.warning("%s", warning)


def _check_manual(path: str, words: Vocabulary, candidates: Folder) -> None:
    """Manual labels against the images that have candidate sets; raises UserError, see `check_manual`."""
    rows = [read_table(candidates, name, ["row"])["row"] for name in _part_names(candidates)]
    check_manual(path, words, np.sort(np.concatenate(rows)))


def zero_shot(config: Config, output: Folder, annotated: Folder | None = None) -> dict[str, float]:
    """How well the annotators alone do on the test images: `test/zero_shot_accuracy`.

    Empty where no image with a label could be read. Arguments and UserError as with `build_candidates`.
    """
    folder, name = output / "candidates", "test.json"
    inputs = _Inputs.of(config, annotated or output, "test")
    known = _made_from(inputs, folder, name)
    if known is None:
        known = {"made_from": inputs.mark, "zero_shot_accuracy": None, **_score(inputs, config, None)}
        folder.write_json(name, {key: known[key] for key in ("made_from", "zero_shot_accuracy")})
    accuracy = known["zero_shot_accuracy"]
    return {} if accuracy is None else {"test/zero_shot_accuracy": accuracy}


@dataclass(frozen=True)
class _Inputs:
    """What the candidate sets of a split and their figures are made of.

    Attributes:
        asked: the annotators. parts: of each one's table. labels, manual: as `scoring.Making` takes them.
        mark: 16 hex digits over all of that, the settings and the version of this code.
    """

    asked: list[_Asked]
    parts: list[list[Part]]
    labels: Labels
    manual: Labels
    mark: str

    @classmethod
    def of(cls, config: Config, annotated: Folder, split: Split, cpus: float = 1) -> _Inputs:
        """Raises UserError as `build_candidates` does."""
        table = annotated / "annotations" / split
        if not table.exists(writer.USED):
            raise UserError(f"{table.path} holds no annotations; annotate the {split} images first")
        asked = [_Asked.of(table / name, config) for name in table.read_json(writer.USED)]
        own = [parts(source.folder) for source in asked]
        labels = ask(task(read_labels, cpus).remote(annotated / "labels" / split))
        manual = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if split == "pool" and config.source.manual_labels:
            words = Vocabulary(asked[0].card.names, asked[0].card.prompts)
            manual = read_manual(config.source.manual_labels, words)[1]
        told = [(source.card.manifest(), source.places) for source in asked]
        listed = [[part.name for part in some] for some in own]
        settings = [config.candidates.model_dump(), config.seed, __version__]
        mark = fingerprint(told, listed, labels.digest(), manual.digest(), settings)
        return cls(asked, own, labels, manual, mark)

    @property
    def cards(self) -> list[Card]:
        return [source.card for source in self.asked]


def _score(inputs: _Inputs, config: Config, candidates: Folder | None, cpus: float = 1) -> dict[str, Any]:
    """Figures over all parts of a split's annotations, whose candidate sets are written on the way."""
    asked, cards = inputs.asked, inputs.cards
    words = Vocabulary(cards[0].names, cards[0].prompts)
    making = ray.put(candidate_builder.Making(config.candidates, inputs.labels, inputs.manual, candidates, config.seed))
    if not any(inputs.parts):  # a server that never answered, or nothing that could be decoded
        total = Score.none(sum(len(card.prompts) for card in cards), len(words.names))
    elif len(cards) == 1:
        one, shared = asked[0], ray.put(asked[0].text)
        total = added_up(
            candidate_builder.score_part, inputs.parts[0], one.folder, one.card, shared, making, one.places, cpus=cpus
        )
    else:
        total = reduce(add, _scores_together(asked, making))
    names, prompts = words.shown, [prompt for card in cards for prompt in card.prompts]
    figures = total.summary(names)
    alike = look_alike(asked[0].text, names) if asked[0].text is not None else []
    return {**figures, "warnings": quality.warnings(figures, names, prompts, alike)}


@dataclass(frozen=True)
class _Asked:
    """One annotator's table, and which of its prompts count.

    Attributes:
        card, text: as if only those prompts had been asked. places: theirs among those asked; None: all count.
    """

    folder: Folder
    card: Card
    text: TextTable | None
    places: list[int] | None = None

    @classmethod
    def of(cls, folder: Folder, config: Config) -> _Asked:
        """Raises UserError where `source.prompts` names one that was not asked."""
        card = writer.read_card(folder)
        text = writer.read_text(folder, card) if card.dim else None
        wanted = card.prompts if text is None or config.source.prompts is None else templates(config.source.prompts)
        if text is None or set(wanted) == set(card.prompts):
            return cls(folder, card, text)
        missing = [prompt for prompt in wanted if prompt not in card.prompts]
        if missing:
            raise UserError(
                f"source.prompts: {missing[0]!r} and {len(missing) - 1} more were not asked in {folder.path}; annotate "
                "with them first (the images are not encoded again), or name some of those that were"
            )
        places = [card.prompts.index(prompt) for prompt in wanted]
        return cls(folder, *candidate_builder.choose_prompts(card, text, places), places)


def _scores_together(asked: list[_Asked], making: ray.ObjectRef) -> Iterator[Score]:
    """Bring the evidence about each image together by its row number, then score it as one."""
    listed = [(number, part) for number, source in enumerate(asked) for part in parts(source.folder)]
    shared = [ray.put(source) for source in asked]
    rows = sum(each(writer.count_rows, parts(asked[0].folder), asked[0].folder))
    found = ray.data.from_items([{"source": s, "part": p.name} for s, p in listed], override_num_blocks=len(listed))
    evidence = through(found, _evidence, settings={"asked": shared}, batch_size=1)
    together = evidence.repartition(max(1, rows // _ROWS_PER_BUCKET), keys=["row"])
    prompts = [len(source.card.prompts) for source in asked]
    scored = through(
        together,
        _score_bucket,
        settings={"making": [making], "prompts": prompts},
        batch_size=None,
        batch_format="pyarrow",
    )
    for line in scored.iter_rows():
        yield line["score"]


def _evidence(batch: dict[str, Any], asked: list[ray.ObjectRef]) -> pa.Table:
    number, part = int(batch["source"][0]), Part.parse(str(batch["part"][0]))
    source: _Asked = ray.get(asked[number])
    return candidate_builder.to_table(
        candidate_builder.read_evidence(part, source.folder, source.card, source.text, source.places), number
    )


def _score_bucket(table: pa.Table, making: list[ray.ObjectRef], prompts: list[int]) -> dict[str, Any]:
    if not len(table):
        return {"score": np.empty(0, dtype=object)}
    evidence = candidate_builder.join(table, prompts)
    name = fingerprint(evidence.image_ids)
    line = np.empty(1, dtype=object)
    line[0] = candidate_builder.score(evidence, ray.get(making[0]), name)
    return {"score": line}
