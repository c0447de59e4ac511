"""The report on voters and on how many labels can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from finished_run import run_config

from coreg_ray import metrics
from coreg_ray.annotation.arrow import lists, write_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.voters import voter_lines, voters_for_the_report
from coreg_ray.commands import pipeline
from coreg_ray.config import Config
from coreg_ray.ids import row_numbers
from coreg_ray.pure.label_fit import fit
from coreg_ray.pure.label_model import block_sums
from coreg_ray.pure.rng import generator
from coreg_ray.pure.voters import survey_votes
from coreg_ray.report.data import Run
from coreg_ray.report.page import render
from coreg_ray.report.sections import comparison
from coreg_ray.report.usable import BINS, Usable, count_usable, usable_section
from coreg_ray.report.voters import voter_section
from coreg_ray.run.folder import MANIFEST, RunFolder
from coreg_ray.run.records import CandidateFigures, CandidateManifest
from coreg_ray.run.voters import Voters

NAMES = ["cat", "dog", "cow"]
VOTES = {"annotator": {"kind": "votes", "votes": "votes.csv"}}


@pytest.fixture(scope="module")
def voters() -> Voters:
    """Four voters of 600 images: good ones, one who takes dogs for cows, one who guesses, and one without a vote."""
    random = generator(0)
    truth = torch.randint(0, 3, (600,), generator=random)
    votes = truth[:, None].repeat(1, 5)
    for voter, share in enumerate((0.1, 0.15, 0.1, 0.97)):
        guessed = torch.rand(600, generator=random) < share
        votes[guessed, voter] = torch.randint(0, 3, (int(guessed.sum()),), generator=random)
    votes[(truth == 1) & (torch.rand(600, generator=random) < 0.6), 2] = 2
    votes[:, 4] = -1
    survey = survey_votes(votes, 3)
    model = fit(survey, lambda one: block_sums(votes, one))
    card = Card("votes", "x", "e", ("ann", "bob", "eve", "joe", "<b>sam</b>"), tuple((n,) for n in NAMES), {})
    lines = voter_lines(survey, model, [card], NAMES, [0.9, 0.9, None, 0.35, None])
    return voters_for_the_report(lines, model, NAMES)


def test_what_is_told_of_voters_survives_its_file(voters: Voters) -> None:
    assert Voters.from_json(voters.as_json()) == voters
    assert voters.tables is not None
    assert np.array(voters.tables).shape == (5, 3, 3)
    assert voters.tables[2][1][2] == pytest.approx(60, abs=8)  # percent of the dogs
    worst = voters.mistakes[2][0]
    assert (worst.shown, worst.named) == ("dog", "cow")
    assert worst.share == pytest.approx(0.6, abs=0.08)
    assert voters.mistakes[4] == []


def test_who_is_ignored_is_said_with_the_reason(voters: Voters) -> None:
    assert [line.voter for line in voters.ignored] == ["joe"]
    section = voter_section(voters, NAMES)
    assert section is not None
    assert [told.split(":")[0] for told in section.told] == ["Hardly listened to"]
    assert "joe: no better than chance" in section.told[0]
    assert len(section.drawn) == 4  # who has not voted has no confusions
    page = render(Run(voters=voters, class_names=NAMES), "run")
    assert "Who is worth listening to" in page
    assert "dog \u2192 cow" in page
    assert "&lt;b&gt;sam" in page
    assert "<b>sam" not in page
    assert voter_section(None, NAMES) is None


def stored(tmp_path: Path, purified: bool) -> tuple[RunFolder, Config]:
    """100 images: labels of probability 0.5 to 0.995, of which the least probable err; the truth of every second."""
    run = RunFolder.at(tmp_path)
    ids = [f"{number:03d}" for number in range(100)]
    probability = (0.5 + np.arange(100) / 200).astype(np.float32)
    rows, right = row_numbers(ids), np.arange(100) >= 40
    if purified:
        table: dict[str, Any] = {
            "image_id": ids,
            "label": [NAMES[0] if ok else NAMES[1] for ok in right],
            "probability": probability,
        }
        for part, some in enumerate((slice(0, 30), slice(30, 100))):
            write_table(run.purified, f"{part}.parquet", pa.table({name: v[some] for name, v in table.items()}))
    sizes = np.full(100, 2)
    votes = np.where(right[:, None], [3, 1], [1, 3]).reshape(-1)
    sets = {
        "row": rows, "image_id": ids, "candidates": lists(sizes, np.tile([0, 1], 100).astype(np.int32)),
        "votes": lists(sizes, votes.astype(np.int32)), "scores": lists(sizes, (votes / 4).astype(np.float16)),
        "trusted": np.zeros(100, bool),
    }  # fmt: skip
    write_table(run.candidates, "sets.parquet", pa.table(sets))
    manifest = CandidateManifest(NAMES, "x", CandidateFigures(100), [0.4, 0.3, 0.3])
    run.candidates.write_json(MANIFEST, manifest.as_json())
    write_table(run.labels("pool"), "0.parquet", pa.table({"row": rows[::2], "label": np.zeros(50, np.int32)}))
    return run, run_config(run, NAMES)


def test_labels_are_counted_by_probability_and_judged_where_the_truth_is_known(tmp_path: Path) -> None:
    run, config = stored(tmp_path, purified=True)
    usable = count_usable(run, config)
    assert usable is not None
    assert usable.purified
    assert usable.at_least(0.0) == (100, pytest.approx(0.7475, abs=1e-4), 0.6)
    assert usable.at_least(0.7) == (60, pytest.approx(0.8475, abs=1e-4), 1.0)
    assert usable.at_least(0.6)[::2] == (80, 0.75)
    assert usable.at_least(1.0) == (0, None, None)
    section = usable_section(usable)
    assert section is not None
    assert [row["images"] for row in section["rows"]] == [100, 60, 40, 20, 10, 2]
    assert (section["counted"], section["of"], section["known"]) == (100, 100, 50)
    page = render(Run(usable=usable), "run")
    assert "votes and networks together" in page
    assert '<th class="n">right</th>' in page


def test_before_any_training_the_annotators_own_labels_are_counted(tmp_path: Path) -> None:
    run, config = stored(tmp_path, purified=False)
    usable = count_usable(run, config)
    assert usable is not None
    assert not usable.purified
    assert usable.images.sum() == 100
    assert usable.at_least(0.0)[2] == 0.6
    assert "by the annotators&#39; answers alone" in render(Run(usable=usable), "run")
    assert count_usable(RunFolder.at(tmp_path / "nothing"), config) is None


def test_without_a_known_label_nothing_is_said_of_the_truth() -> None:
    images = np.zeros(BINS, np.int64)
    images[900] = 5
    usable = Usable(images, 0.9 * images.astype(np.float64), np.zeros_like(images), np.zeros_like(images), True, 7)
    page = render(Run(usable=usable), "run")
    assert "sample of 5 of 7 images" in page
    assert '<th class="n">right</th>' not in page


def test_a_run_on_votes_says_what_stands_in_the_place_of_zero_shot(tmp_path: Path) -> None:
    figures = {
        metrics.ACCURACY: 0.9, metrics.ANNOTATE_S: 1.0, metrics.TRAIN_S: 2.0,
        "annotation/majority_accuracy": 0.8, "annotation/label_model_accuracy": 0.85,
    }  # fmt: skip
    run = Run(config=run_config(RunFolder.at(tmp_path), NAMES, **VOTES), metrics=figures)
    first = comparison(run)[0]
    right = "the most votes are right for 0.800, the label model for 0.850 of the images whose label is known"
    assert (first["name"], first["accuracy"]) == ("Votes alone", None)
    assert first["note"] == f"about the pool, not the test images; there {right}"
    told = pipeline.summary(figures, "runs/x")
    assert f"Test accuracy 0.900; votes are about the pool alone, where {right}." in told
    unknown = {name: value for name, value in figures.items() if not name.startswith("annotation/")}
    assert "votes are about the pool alone." in pipeline.summary(unknown, "runs/x")
    assert "Voters agree" in render(Run(config=run.config, metrics={"annotation/agreement": 0.5}), "run")
