"""Candidate sets and quality figures from annotations that are there: one Ray task a part."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from coreg_ray import assembly, quality, scoring
from coreg_ray.annotations import MANIFEST, Card, Labels, Part, fingerprint, parts, read_labels
from coreg_ray.annotators.clip import TextTable, look_alike
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.manual import read_manual
from coreg_ray.quality import Score
from coreg_ray.ray_tasks import ask, each, task, through
from coreg_ray.sources import Split
from coreg_ray.storage import Folder
from coreg_ray.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_ROWS_PER_BUCKET = 20_000  # images whose evidence from several annotators is brought together at once


def build_candidates(config: Config, output: Folder, annotated: Folder | None = None) -> dict[str, Any]:
    """Turn the pool's annotations into `candidates/` and say how good they are.

    Args:
        annotated: run folder of the annotations, if it is another one.

    Returns:
        The figures of `quality.Score`, among them `prior` (K numbers, the mean of the annotators' probabilities) and,
        where labels are known, `zero_shot_accuracy` of the mean of the prompts; `warnings` in plain words.
    """
    folder = output / "candidates"
    folder.delete()
    figures, cards = _score(config, annotated or output, "pool", folder)
    names = [entry[0] for entry in cards[0].names]
    for warning in figures["warnings"]:
        log.warning("%s", warning)
    known = {name: value for name, value in figures.items() if name != "prior"}
    mark = fingerprint([card.manifest()["fingerprint"] for card in cards], config.candidates.model_dump())
    manifest = {"num_classes": len(names), "class_names": names, "fingerprint": mark, "prior": figures["prior"]}
    folder.write_json(MANIFEST, {**manifest, "quality": known})
    return figures


def zero_shot(config: Config, output: Folder, split: Split = "test") -> dict[str, Any]:
    """How well the annotators do alone on a split: the figures of `build_candidates`, without writing any."""
    return _score(config, output, split, None)[0]


def _score(
    config: Config, annotated: Folder, split: Split, candidates: Folder | None
) -> tuple[dict[str, Any], list[Card]]:
    """Figures over all parts of a split's annotations, and the cards of the annotators."""
    table = annotated / "annotations" / split
    if not table.exists(assembly.USED):
        raise UserError(f"{table.path} holds no annotations; annotate the {split} images first")
    folders = [table / name for name in table.read_json(assembly.USED)]
    cards = [assembly.read_card(folder) for folder in folders]
    words = Vocabulary(cards[0].names, cards[0].prompts)
    labels = ask(task(read_labels).remote(annotated / "labels" / split))
    none = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))
    trusted = split == "pool" and config.source.manual_labels
    manual = read_manual(config.source.manual_labels or "", words)[1] if trusted else none
    making = ray.put(scoring.Making(config.candidates, labels, manual, candidates, config.seed))
    texts = [assembly.read_text(f, card) if card.dim else None for f, card in zip(folders, cards, strict=True)]
    if len(cards) == 1:
        shared = ray.put(texts[0])
        scores = each(scoring.score_part, parts(folders[0]), folders[0], cards[0], shared, making)
    else:
        scores = _scores_together(folders, cards, texts, making)
    names, prompts = words.shown, [prompt for card in cards for prompt in card.prompts]
    total = reduce(add, scores)
    figures = total.summary(names)
    alike = look_alike(texts[0], names) if texts[0] is not None else []
    return {**figures, "warnings": quality.warnings(figures, names, prompts, alike)}, cards


def _scores_together(
    folders: list[Folder], cards: list[Card], texts: list[TextTable | None], making: ray.ObjectRef
) -> Iterator[Score]:
    """Bring the evidence about each image together by its row number, then score it as one."""
    listed = [(source, part) for source, folder in enumerate(folders) for part in parts(folder)]
    shared = [ray.put(text) for text in texts]
    rows = sum(each(assembly.count_rows, parts(folders[0]), folders[0]))
    found = ray.data.from_items([{"source": s, "part": p.name} for s, p in listed], override_num_blocks=len(listed))
    evidence = through(found, _evidence, settings={"folders": folders, "cards": cards, "texts": shared}, batch_size=1)
    together = evidence.repartition(max(1, rows // _ROWS_PER_BUCKET), keys=["row"])
    prompts = [len(card.prompts) for card in cards]
    scored = through(
        together,
        _score_bucket,
        settings={"making": [making], "prompts": prompts},
        batch_size=None,
        batch_format="pyarrow",
    )
    for line in scored.iter_rows():
        yield line["score"]


def _evidence(batch: dict[str, Any], folders: list[Folder], cards: list[Card], texts: list[ray.ObjectRef]) -> pa.Table:
    source, part = int(batch["source"][0]), Part.parse(str(batch["part"][0]))
    text = ray.get(texts[source])
    return scoring.to_table(scoring.read_evidence(part, folders[source], cards[source], text), source)


def _score_bucket(table: pa.Table, making: list[ray.ObjectRef], prompts: list[int]) -> dict[str, Any]:
    if not len(table):
        return {"score": np.empty(0, dtype=object)}
    evidence = scoring.join(table, prompts)
    name = fingerprint(evidence.image_ids)
    line = np.empty(1, dtype=object)
    line[0] = scoring.score(evidence, ray.get(making[0]), name)
    return {"score": line}
