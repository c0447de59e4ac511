"""Candidate sets and quality figures from annotations that are there: one Ray task a part."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from coreg_ray import metrics
from coreg_ray.annotation import candidate_builder, quality, writer
from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.clip import look_alike
from coreg_ray.annotation.manual import check_manual
from coreg_ray.annotation.parts import Part, parts
from coreg_ray.annotation.quality import Score
from coreg_ray.annotation.rejects import count_not_finite, forget_not_finite, refuse_not_finite, rejected_rows
from coreg_ray.annotation.set_marks import decided_by, digits, mark_of_file, remembered
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.cluster.candidate_inputs import AskedAnnotator, CandidateInputs
from coreg_ray.cluster.copies import copies_warnings
from coreg_ray.cluster.tasks import added_up, ask, each, task, through
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.ids import fingerprint
from coreg_ray.run.folder import BEFORE, MANIFEST, ZERO_SHOT, RunFolder, Split
from coreg_ray.run.records import CandidateFigures, CandidateManifest, from_json
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_ROWS_PER_BUCKET = 20_000  # images whose evidence from several annotators is brought together at once


def build_candidates(
    config: Config, run: RunFolder, annotated: RunFolder | None = None, cpus: float = 1
) -> CandidateManifest:
    """Turn the pool's annotations into `candidates/` and say how good they are; sets that are still right stay.

    Where `source.prompts` names some of the prompts that were asked, only those count. Answers about what a file no
    longer holds make no set, nor do stored ones that are not finite, which become rejects of `run`.

    Args:
        annotated: run folder of the annotations, if it is another one.
        cpus: that each task asks for; 0 where whoever waits holds them all (one annotator only).

    Returns:
        What is written to the sets' manifest; `quality.rows` is 0 where no image has an answer.

    Raises:
        UserError: there are no annotations, those of another run folder hold no answer, many answers are not finite, or
            a manual label is wrong.
    """
    folder = run / "candidates"
    inputs = CandidateInputs.of(config, annotated or run, "pool", cpus)
    manifest = _manifest_of(inputs, folder)
    if manifest is None:
        before = _set_aside(folder, cpus)
        manifest = replace(_make(inputs, config, run, annotated, cpus), known_as=remembered(before))
        folder.write_json(MANIFEST, manifest.as_json())
        folder.delete(BEFORE)
    for warning in manifest.quality.warnings or []:
        log.warning("%s", warning)
    return manifest


@dataclass(frozen=True)
class _ZeroShot:
    """`candidates/test.json`: how well the annotators alone do on the test images; None without a labelled one.

    Attributes:
        made_from: mark of all that it was computed from. zero_shot_recall: (K,) None where a class has no image.
    """

    made_from: str
    zero_shot_accuracy: float | None
    zero_shot_macro_f1: float | None = None
    zero_shot_recall: list[float | None] | None = None

    def metrics(self) -> dict[str, Any]:
        """The figures for `metrics.json`."""
        figures = {
            metrics.ZERO_SHOT: self.zero_shot_accuracy,
            metrics.macro_f1_of(metrics.ZERO_SHOT): self.zero_shot_macro_f1,
            metrics.recall_of(metrics.ZERO_SHOT): self.zero_shot_recall,
        }
        return {name: value for name, value in figures.items() if value is not None}


def zero_shot(config: Config, run: RunFolder, annotated: RunFolder | None = None) -> dict[str, Any]:
    """How well the annotators alone do on the test images, as figures by name.

    Empty where no image with a label could be read. Arguments and UserError as with `build_candidates`.
    """
    folder = run / "candidates"
    inputs = CandidateInputs.of(config, annotated or run, "test")
    known = from_json(_ZeroShot, folder.read_json(ZERO_SHOT)) if folder.exists(ZERO_SHOT) else None
    if known is None or known.made_from != inputs.mark:
        rejects = _rejects(run, "test", annotated)
        made = _figures(_score(inputs, config, None, rejects), inputs)
        _refuse_not_finite(rejects, made, "test")
        scores = (made.zero_shot_accuracy, made.zero_shot_macro_f1, made.zero_shot_recall)
        known = _ZeroShot(inputs.mark, *scores)
        folder.write_json(ZERO_SHOT, asdict(known))
    return known.metrics()


def _manifest_of(inputs: CandidateInputs, folder: Folder) -> CandidateManifest | None:
    """What an earlier call has written about these very inputs, if all of its sets are there."""
    if not folder.exists(MANIFEST):
        return None
    manifest = CandidateManifest.from_json(folder.read_json(MANIFEST))
    whole = manifest.parts == len(_part_names(folder))  # else some were deleted, or never copied
    return manifest if whole and manifest.made_from == inputs.mark else None


def _part_names(folder: Folder) -> list[str]:
    return [name for name in folder.entries() if name.endswith(".parquet")]


def _set_aside(folder: Folder, cpus: float) -> CandidateManifest | None:
    """Remove candidate sets, and keep what they were known by until they are made again, however often that is begun.

    None where there were no whole ones.
    """
    kept = MANIFEST if folder.exists(MANIFEST) else BEFORE
    before = CandidateManifest.from_json(folder.read_json(kept)) if folder.exists(kept) else None
    names = _part_names(folder)
    if before is not None and kept == MANIFEST:
        if before.sets is None and before.parts in (None, len(names)):  # of an earlier version
            total = sum(each(mark_of_file, names, folder, cpus=cpus))
            before = replace(before, sets=digits(total))
        folder.write_json(BEFORE, before.as_json())
    folder.delete(MANIFEST)  # first, so that no kill leaves it with a part of the sets
    for name in folder.entries():
        if name != BEFORE:
            folder.delete(name)
    return before


def _rejects(run: RunFolder, split: Split, annotated: RunFolder | None) -> Folder:
    """Where images go whose stored answers are not finite; of another run's annotations they are found anew."""
    rejects = run.rejects(split)
    if annotated is not None:
        forget_not_finite(rejects)
    return rejects


def _refuse_not_finite(rejects: Folder, figures: CandidateFigures, split: Split) -> None:
    """Raises UserError where many answers are not finite."""
    images = figures.rows + len(np.unique(rejected_rows(rejects)))
    refuse_not_finite(count_not_finite(rejects), images, split)


def _make(
    inputs: CandidateInputs, config: Config, run: RunFolder, annotated: RunFolder | None, cpus: float
) -> CandidateManifest:
    """Write all candidate sets, and count."""
    folder, rejects = run / "candidates", _rejects(run, "pool", annotated)
    total = _score(inputs, config, folder, rejects, cpus)
    figures = _figures(total, inputs)
    _refuse_not_finite(rejects, figures, "pool")
    tables = [(asked.folder, own, asked.places) for asked, own in zip(inputs.annotators, inputs.parts, strict=True)]
    figures = replace(figures, warnings=[*(figures.warnings or []), *copies_warnings(tables, cpus)])
    if annotated and not figures.rows:
        raise UserError(f"{annotated.path} holds no answer about any image; annotate there first (coreg-ray annotate)")
    if annotated and config.source.manual_labels:  # else annotation has looked at them
        ask(task(_check_manual, cpus).remote(config.source.manual_labels, inputs.words, folder))
    names = inputs.cards[0].names
    mark = decided_by(config, inputs.cards, inputs.manual, inputs.labels, total.voted)
    return CandidateManifest(
        class_names=[entry[0] for entry in names],
        names=[list(entry) for entry in names],
        fingerprint=mark,
        prior=total.prior(),
        quality=figures,
        made_from=inputs.mark,
        parts=len(_part_names(folder)),
        sets=digits(total.chosen),
    )


def _check_manual(path: str, words: Vocabulary, candidates: Folder) -> None:
    """Manual labels against the images that have candidate sets; raises UserError, see `check_manual`."""
    rows = [read_table(candidates, name, ["row"])["row"] for name in _part_names(candidates)]
    check_manual(path, words, np.sort(np.concatenate(rows)))


def _score(
    inputs: CandidateInputs, config: Config, candidates: Folder | None, rejects: Folder, cpus: float = 1
) -> Score:
    """The sums over all parts of a split's annotations, whose candidate sets are written on the way."""
    annotators, cards = inputs.annotators, inputs.cards
    making = ray.put(
        candidate_builder.Making(
            config.candidates, inputs.labels, inputs.manual, candidates, config.seed, inputs.rejected, rejects
        )
    )
    if not any(inputs.parts):  # a server that never answered, or nothing that could be decoded
        return Score.none(sum(len(card.prompts) for card in cards), len(inputs.words.names))
    if len(cards) > 1:
        return reduce(add, _scores_together(annotators, making))
    one, shared = annotators[0], ray.put(annotators[0].text)
    return added_up(
        candidate_builder.score_part, inputs.parts[0], one.folder, one.card, shared, making, one.places, cpus=cpus
    )


def _figures(total: Score, inputs: CandidateInputs) -> CandidateFigures:
    """The sums as figures, with warnings."""
    names, prompts = inputs.words.shown, [prompt for card in inputs.cards for prompt in card.prompts]
    figures, text = total.figures(names), inputs.annotators[0].text
    alike = look_alike(text, names) if text is not None else []
    return replace(figures, warnings=quality.warnings(figures, names, prompts, alike))


def _scores_together(annotators: list[AskedAnnotator], making: ray.ObjectRef) -> Iterator[Score]:
    """Bring the evidence about each image together by its row number, then score it as one."""
    listed = [(number, part) for number, source in enumerate(annotators) for part in parts(source.folder)]
    shared = [ray.put(source) for source in annotators]
    rows = sum(each(writer.count_rows, parts(annotators[0].folder), annotators[0].folder))
    named = ray.data.from_items([{"source": s, "part": p.name} for s, p in listed], override_num_blocks=len(listed))
    evidence = through(named, _evidence, settings={"annotators": shared, "making": [making]}, batch_size=1)
    together = evidence.repartition(max(1, rows // _ROWS_PER_BUCKET), keys=["row"])
    prompts = [len(source.card.prompts) for source in annotators]
    scored = through(
        together,
        _score_bucket,
        settings={"making": [making], "prompts": prompts},
        batch_size=None,
        batch_format="pyarrow",
    )
    for line in scored.iter_rows():
        yield line["score"]


def _evidence(batch: dict[str, Any], annotators: list[ray.ObjectRef], making: list[ray.ObjectRef]) -> pa.Table:
    number, part = int(batch["source"][0]), Part.parse(str(batch["part"][0]))
    source: AskedAnnotator = ray.get(annotators[number])
    evidence = candidate_builder.read_evidence(
        part, source.folder, source.card, source.text, ray.get(making[0]), source.places
    )
    return candidate_builder.to_table(evidence, number)


def _score_bucket(table: pa.Table, making: list[ray.ObjectRef], prompts: list[int]) -> dict[str, Any]:
    if not len(table):
        return {"score": np.empty(0, dtype=object)}
    evidence = candidate_builder.join(table, prompts)
    name = fingerprint(evidence.image_ids)
    line = np.empty(1, dtype=object)
    line[0] = candidate_builder.score(evidence, ray.get(making[0]), name)
    return {"score": line}
