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

from coreg_ray.annotations import assembly, quality, scoring
from coreg_ray.annotations.manual import check_manual, read_manual
from coreg_ray.annotations.quality import Score
from coreg_ray.annotations.table import MANIFEST, Card, Labels, Part, fingerprint, parts, read_labels, read_table
from coreg_ray.annotations.vocabulary import Vocabulary, templates
from coreg_ray.annotators.clip import TextTable, look_alike
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.ray_tasks import added_up, ask, each, task, through
from coreg_ray.sources.source import Split
from coreg_ray.storage import Folder

log = logging.getLogger(__name__)

_ROWS_PER_BUCKET = 20_000  # images whose evidence from several annotators is brought together at once


def build_candidates(
    config: Config, output: Folder, annotated: Folder | None = None, cpus: float = 1
) -> dict[str, Any]:
    """Turn the pool's annotations into `candidates/` and say how good they are.

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
    folder.delete()
    figures, cards = _score(config, annotated or output, "pool", folder, cpus)
    if annotated and not figures["rows"]:
        raise UserError(f"{annotated.path} holds no answer about any image; annotate there first (jobs/annotate.py)")
    if annotated and config.source.manual_labels:  # else annotation has looked at them
        words = Vocabulary(cards[0].names, cards[0].prompts)
        ask(task(_check_manual, cpus).remote(config.source.manual_labels, words, folder))
    names = [entry[0] for entry in cards[0].names]
    for warning in figures["warnings"]:
        log.warning("%s", warning)
    known = {name: value for name, value in figures.items() if name != "prior"}
    mark = fingerprint([card.manifest()["fingerprint"] for card in cards], config.candidates.model_dump())
    manifest = {"num_classes": len(names), "class_names": names, "names": cards[0].names, "fingerprint": mark}
    manifest["prior"] = figures["prior"]
    folder.write_json(MANIFEST, {**manifest, "quality": known})
    return figures


def _check_manual(path: str, words: Vocabulary, candidates: Folder) -> None:
    """Manual labels against the images that have candidate sets; raises UserError, see `check_manual`."""
    names = [name for name in candidates.entries() if name.endswith(".parquet")]
    check_manual(path, words, np.sort(np.concatenate([read_table(candidates, n, ["row"])["row"] for n in names])))


def zero_shot(config: Config, output: Folder) -> dict[str, float]:
    """How well the annotators alone do on the test images: `test/zero_shot_accuracy`.

    Empty where no image with a label could be read. Raises UserError as `build_candidates` does.
    """
    figures = _score(config, output, "test", None)[0]
    return {"test/zero_shot_accuracy": figures["zero_shot_accuracy"]} if "zero_shot_accuracy" in figures else {}


def _score(
    config: Config, annotated: Folder, split: Split, candidates: Folder | None, cpus: float = 1
) -> tuple[dict[str, Any], list[Card]]:
    """Figures over all parts of a split's annotations, and the cards of the annotators."""
    table = annotated / "annotations" / split
    if not table.exists(assembly.USED):
        raise UserError(f"{table.path} holds no annotations; annotate the {split} images first")
    folders = [table / name for name in table.read_json(assembly.USED)]
    asked = [_Asked.of(folder, config) for folder in folders]
    cards = [source.card for source in asked]
    words = Vocabulary(cards[0].names, cards[0].prompts)
    labels = ask(task(read_labels, cpus).remote(annotated / "labels" / split))
    none = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))
    trusted = split == "pool" and config.source.manual_labels
    manual = read_manual(config.source.manual_labels or "", words)[1] if trusted else none
    making = ray.put(scoring.Making(config.candidates, labels, manual, candidates, config.seed))
    whole = [parts(folder) for folder in folders]
    if not any(whole):  # a server that never answered, or nothing that could be decoded
        total = Score.none(sum(len(card.prompts) for card in cards), len(words.names))
    elif len(cards) == 1:
        shared, places = ray.put(asked[0].text), asked[0].places
        total = added_up(scoring.score_part, whole[0], folders[0], cards[0], shared, making, places, cpus=cpus)
    else:
        total = reduce(add, _scores_together(asked, making))
    names, prompts = words.shown, [prompt for card in cards for prompt in card.prompts]
    figures = total.summary(names)
    alike = look_alike(asked[0].text, names) if asked[0].text is not None else []
    return {**figures, "warnings": quality.warnings(figures, names, prompts, alike)}, cards


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
        card = assembly.read_card(folder)
        text = assembly.read_text(folder, card) if card.dim else None
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
        return cls(folder, *scoring.choose_prompts(card, text, places), places)


def _scores_together(asked: list[_Asked], making: ray.ObjectRef) -> Iterator[Score]:
    """Bring the evidence about each image together by its row number, then score it as one."""
    listed = [(number, part) for number, source in enumerate(asked) for part in parts(source.folder)]
    shared = [ray.put(source) for source in asked]
    rows = sum(each(assembly.count_rows, parts(asked[0].folder), asked[0].folder))
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
    return scoring.to_table(scoring.read_evidence(part, source.folder, source.card, source.text, source.places), number)


def _score_bucket(table: pa.Table, making: list[ray.ObjectRef], prompts: list[int]) -> dict[str, Any]:
    if not len(table):
        return {"score": np.empty(0, dtype=object)}
    evidence = scoring.join(table, prompts)
    name = fingerprint(evidence.image_ids)
    line = np.empty(1, dtype=object)
    line[0] = scoring.score(evidence, ray.get(making[0]), name)
    return {"score": line}
