"""Candidate sets and quality figures from annotations that are there: one Ray task a part."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from coreg_ray import metrics
from coreg_ray.annotation import quality
from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.clip import look_alike
from coreg_ray.annotation.manual import check_manual
from coreg_ray.annotation.rejects import count_not_finite, forget_not_finite, refuse_not_finite, rejected_rows
from coreg_ray.annotation.set_marks import decided_by, digits, mark_of_file, remembered
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.annotation.voters import about_voters, voter_lines, voters_for_the_report
from coreg_ray.cluster.candidate_inputs import CandidateInputs, only_votes
from coreg_ray.cluster.copies import copies_warnings
from coreg_ray.cluster.scoring import Scored, score
from coreg_ray.cluster.tasks import ask, each, task
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.run.folder import BEFORE, MANIFEST, ZERO_SHOT, RunFolder, Split
from coreg_ray.run.records import CandidateFigures, CandidateManifest, from_json
from coreg_ray.run.storage import Folder
from coreg_ray.run.voters import VOTERS_JSON, VoterLine

log = logging.getLogger(__name__)


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

    Empty where no image with a label could be read, or there are votes alone, which are about the pool. Arguments and
    UserError as with `build_candidates`.
    """
    folder = run / "candidates"
    if only_votes(annotated or run):
        return {}
    inputs = CandidateInputs.of(config, annotated or run, "test")
    known = from_json(_ZeroShot, folder.read_json(ZERO_SHOT)) if folder.exists(ZERO_SHOT) else None
    if known is None or known.made_from != inputs.mark:
        rejects = _rejects(run, "test", annotated)
        made = _figures(score(inputs, config, None, rejects), inputs)[0]
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
        if name not in (BEFORE, ZERO_SHOT):  # that is about the test images, and may be in use at this moment
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
    scored = score(inputs, config, folder, rejects, cpus)
    total, (figures, lines) = scored.total, _figures(scored, inputs)
    _refuse_not_finite(rejects, figures, "pool")
    tables = [(asked.folder, own, asked.places) for asked, own in zip(inputs.annotators, inputs.parts, strict=True)]
    figures = replace(figures, warnings=[*(figures.warnings or []), *copies_warnings(tables, cpus)])
    if annotated and not figures.rows:
        raise UserError(f"{annotated.path} holds no answer about any image; annotate there first (coreg-ray annotate)")
    if annotated and config.source.manual_labels:  # else annotation has looked at them
        ask(task(_check_manual, cpus).remote(config.source.manual_labels, inputs.words, folder))
    run.write_voters(lines)
    if scored.model is not None:
        folder.write_json(VOTERS_JSON, voters_for_the_report(lines, scored.model, inputs.words.shown).as_json())
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


def _figures(scored: Scored, inputs: CandidateInputs) -> tuple[CandidateFigures, list[VoterLine]]:
    """The sums as figures, with warnings, and the lines of `voters.csv` where there is a label model."""
    names, prompts = inputs.words.shown, [prompt for card in inputs.cards for prompt in card.prompts]
    figures, text = scored.total.figures(names), inputs.annotators[0].text
    alike = look_alike(text, names) if text is not None else []
    noun = "voter" if any(card.kind == "votes" for card in inputs.cards) else "prompt"
    told = quality.warnings(figures, names, prompts, alike, noun)
    lines = voter_lines(scored.survey, scored.model, inputs.cards, names, scored.total.voter_accuracy())
    if scored.model is not None:
        told += about_voters(scored.model, lines)
    return replace(figures, warnings=told), lines
