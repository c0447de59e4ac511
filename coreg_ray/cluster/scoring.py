"""The pass over a split's annotations that makes candidate sets and counts; before it, what the whole pool has to tell.

A single annotator's table is scored part by part. The evidence of several is brought together by row number first, a
bucket of images at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from coreg_ray.annotation import candidate_builder, first_look
from coreg_ray.annotation.alignment import Alignment, wished_shares
from coreg_ray.annotation.candidate_builder import Making
from coreg_ray.annotation.parts import Part
from coreg_ray.annotation.quality import Score
from coreg_ray.annotation.rule import Rule
from coreg_ray.cluster.candidate_inputs import AskedAnnotator, CandidateInputs
from coreg_ray.cluster.tasks import added_up, ask, each, task, through
from coreg_ray.cluster.voters import blocks_of_parts, blocks_of_tables, fit_label_model
from coreg_ray.config import Config
from coreg_ray.ids import fingerprint
from coreg_ray.pure.cpl import cpl_bounds
from coreg_ray.pure.label_model import LabelModel
from coreg_ray.pure.voters import Survey
from coreg_ray.run.storage import Folder

_ROWS_PER_BUCKET = 20_000  # images whose evidence from several annotators is brought together at once
_SAMPLE = 20_000  # images that the bounds of mode cpl are read off,
_SAMPLED_NUMBERS = 20_000_000  # and images x classes
_WHOLE_POOL = ("label_model", "cpl")  # modes that look at the whole pool before they make a set


@dataclass(frozen=True)
class Scored:
    """The sums over all parts, and what the label model says, where there is one."""

    total: Score
    survey: Survey | None = None
    model: LabelModel | None = None


def score(
    inputs: CandidateInputs, config: Config, candidates: Folder | None, rejects: Folder, cpus: float = 1
) -> Scored:
    """The sums over all parts of a split's annotations, whose candidate sets are written on the way.

    Args:
        candidates: where sets go; None: nothing but counting, as if the mode were `union` where it needs the pool.
        rejects: where images go whose stored answers are not finite. cpus: that each task asks for.

    Raises:
        UserError: `candidates.align` names no shares.
    """
    classes, settings = len(inputs.words.names), config.candidates
    if candidates is None and settings.mode in _WHOLE_POOL:
        settings = settings.model_copy(update={"mode": "union"})
    shares = None if candidates is None else wished_shares(settings.align, classes)
    if not any(inputs.parts):  # a server that never answered, or nothing that could be decoded
        return Scored(Score.none(sum(len(card.prompts) for card in inputs.cards), classes))
    making = Making(settings, inputs.labels, inputs.manual, candidates, config.seed, inputs.rejected, rejects)
    looking = replace(making, output=None, rejects=None)
    if shares is not None:
        for one, listed in zip(inputs.annotators, inputs.parts, strict=True):
            if one.text is not None and listed:
                shared = ray.put(one.text)
                mean = added_up(
                    *(first_look.mass_of_part, listed, one.folder, one.card, shared, looking, one.places), cpus=cpus
                )
                making.ratios[one.card.folder] = looking.ratios[one.card.folder] = Alignment(mean, shares)
    several = len(inputs.cards) > 1
    together = _together(inputs, ray.put(making)) if several else None
    rule, survey = Rule(), None
    if settings.mode in _WHOLE_POOL:
        together = together.materialize() if together is not None else None
        if settings.mode == "label_model":
            survey, model = fit_label_model(_blocks(inputs, ray.put(looking), together, cpus), classes, cpus)
            rule = Rule(model=model)
        else:
            rule = _cpl(inputs, ray.put(looking), together, cpus)
    shared_making = ray.put(replace(making, rule=rule))
    if together is not None:
        return Scored(_score_together(together, shared_making, _prompts(inputs)), survey, rule.model)
    one = inputs.annotators[0]
    texts: Any = ray.put(one.text)
    total = added_up(
        *(candidate_builder.score_part, inputs.parts[0], one.folder, one.card, texts, shared_making, one.places),
        cpus=cpus,
    )
    return Scored(total, survey, rule.model)


def _prompts(inputs: CandidateInputs) -> list[int]:
    return [len(card.prompts) for card in inputs.cards]


def _blocks(
    inputs: CandidateInputs, looking: ray.ObjectRef, together: ray.data.Dataset | None, cpus: float
) -> list[ray.ObjectRef]:
    """References to all votes of the pool, block by block."""
    classes = len(inputs.words.names)
    if together is None:
        return blocks_of_parts(inputs.annotators[0], inputs.parts[0], looking, classes, cpus)
    return blocks_of_tables(together.to_arrow_refs(), _prompts(inputs), classes, cpus)


def _cpl(inputs: CandidateInputs, looking: ray.ObjectRef, together: ray.data.Dataset | None, cpus: float) -> Rule:
    """The bounds of mode cpl, read off a sample that the names of the parts decide: they are hashes."""
    most = max(1, min(_SAMPLE, _SAMPLED_NUMBERS // len(inputs.words.names)))
    if together is None:
        one, listed = inputs.annotators[0], sorted(inputs.parts[0], key=lambda part: part.images)
        rows = ask(task(first_look.count_rows, cpus).remote(listed[0], one.folder))
        shared = ray.put(one.text)
        read = task(first_look.sample_of_part, cpus)
        samples = [
            read.remote(part, one.folder, one.card, shared, looking, one.places)
            for part in listed[: -(-most // max(1, rows))]
        ]
    else:
        tables, sample = together.to_arrow_refs(), task(_sample_of_table, cpus)
        samples = [sample.remote(table, _prompts(inputs), -(-most // len(tables))) for table in tables]
    mass, floors = ask(task(_bounds, cpus).remote(*samples))
    return Rule(mass=mass, floors=floors)


def _sample_of_table(table: pa.Table, prompts: list[int], most: int) -> Any:
    if not len(table):
        return np.zeros((0, 0), np.float16)
    return candidate_builder.join(table, prompts).mean[:most].half().numpy()


def _bounds(*samples: Any) -> tuple[float, Any]:
    import torch

    return cpl_bounds(torch.from_numpy(np.concatenate([sample for sample in samples if len(sample)])).float())


def _together(inputs: CandidateInputs, making: ray.ObjectRef) -> ray.data.Dataset:
    """The evidence about each image from several annotators, in blocks that hold all about their images."""
    annotators = inputs.annotators
    listed = [(number, part) for number, some in enumerate(inputs.parts) for part in some]
    shared = [ray.put(source) for source in annotators]
    tables = zip(annotators, inputs.parts, strict=True)
    rows = max(sum(each(first_look.count_rows, some, one.folder)) for one, some in tables)
    named = ray.data.from_items([{"source": s, "part": p.name} for s, p in listed], override_num_blocks=len(listed))
    evidence = through(named, _evidence, settings={"annotators": shared, "making": [making]}, batch_size=1)
    return evidence.repartition(max(1, rows // _ROWS_PER_BUCKET), keys=["row"])


def _score_together(together: ray.data.Dataset, making: ray.ObjectRef, prompts: list[int]) -> Score:
    """Score the joined evidence about images as one."""
    scored = through(
        together,
        _score_bucket,
        settings={"making": [making], "prompts": prompts},
        batch_size=None,
        batch_format="pyarrow",
    )
    return reduce(add, (line["score"] for line in scored.iter_rows()))


def _evidence(batch: dict[str, Any], annotators: list[ray.ObjectRef], making: list[ray.ObjectRef]) -> pa.Table:
    number, part = int(batch["source"][0]), Part.parse(str(batch["part"][0]))
    source: AskedAnnotator = ray.get(annotators[number])
    evidence = candidate_builder.read_evidence(
        part, source.folder, source.card, source.text, ray.get(making[0]), source.places
    )
    return candidate_builder.to_table(evidence, number)


def _score_bucket(table: pa.Table, making: list[ray.ObjectRef], prompts: Sequence[int]) -> dict[str, Any]:
    if not len(table):
        return {"score": np.empty(0, dtype=object)}
    evidence = candidate_builder.join(table, prompts)
    name = fingerprint(evidence.image_ids)
    line = np.empty(1, dtype=object)
    line[0] = candidate_builder.score(evidence, ray.get(making[0]), name)
    return {"score": line}
