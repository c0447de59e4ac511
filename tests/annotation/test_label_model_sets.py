"""Candidate sets of the label model and of CPL, alignment, and what `voters.csv` says."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from coreg_ray.annotation.alignment import Alignment, aligned_answers, wished_shares
from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.candidate_builder import Making, score
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.clip import TextTable, probabilities
from coreg_ray.annotation.evidence import Evidence
from coreg_ray.annotation.labels import Labels
from coreg_ray.annotation.rule import Rule
from coreg_ray.annotation.voters import about_voters, voter_lines
from coreg_ray.config import CandidatesConfig
from coreg_ray.errors import UserError
from coreg_ray.pure.candidates import combine_votes
from coreg_ray.pure.cpl import cpl_bounds, cpl_sets
from coreg_ray.pure.label_fit import fit
from coreg_ray.pure.label_model import LabelModel, block_sums, posterior, sets_by_mass
from coreg_ray.pure.voters import Survey, survey_votes
from coreg_ray.run.storage import Folder
from coreg_ray.run.voters import VoterLine, as_csv

CLASSES, ROWS = 4, 300
NAMES = ["cat", "dog", "=cow", "fish"]
NONE = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))


def voted() -> tuple[torch.Tensor, torch.Tensor]:
    """True classes (N,), and votes (N, 5) of three good voters, one who guesses and one who knows one class alone."""
    generator = torch.Generator().manual_seed(5)
    truth = torch.randint(CLASSES, (ROWS,), generator=generator)
    wrong = torch.randint(CLASSES, (ROWS, 5), generator=generator)
    right = torch.rand(ROWS, 5, generator=generator) < torch.tensor([0.9, 0.8, 0.8, 0.0, 0.0])
    votes = torch.where(right, truth[:, None], wrong).int()
    votes[:, 4] = 2
    votes[::7, 0] = -1
    votes[-1] = -1
    return truth, votes


def fitted(votes: torch.Tensor) -> tuple[Survey, LabelModel]:
    survey = survey_votes(votes, CLASSES)
    return survey, fit(survey, lambda model: block_sums(votes, model))


def evidence(votes: torch.Tensor) -> Evidence:
    ids = [f"i{number}" for number in range(len(votes))]
    shares = torch.full((len(votes), CLASSES), 1 / CLASSES)
    nothing = torch.full((len(votes),), torch.nan)
    return Evidence(ids, votes, shares, nothing, torch.zeros(len(votes), dtype=torch.bool))


def test_scores_are_the_posterior_and_sets_reach_its_mass(tmp_path: Path) -> None:
    truth, votes = voted()
    _, model = fitted(votes)
    whole = evidence(votes)
    order = np.argsort(whole.rows)
    labels = Labels(whole.rows[order], truth.numpy()[order])
    settings = CandidatesConfig.model_validate({"mode": "label_model"})
    total = score(whole, Making(settings, labels, NONE, Folder.at(tmp_path), 0, rule=Rule(model=model)), "x")
    belief = posterior(votes, model)
    member = sets_by_mass(belief, votes, 0.95)
    stored = read_table(Folder.at(tmp_path), "x.parquet").to_pylist()
    assert [row["candidates"] for row in stored] == [row.nonzero().flatten().tolist() for row in member]
    assert np.concatenate([row["scores"] for row in stored]) == pytest.approx(belief[member].numpy(), abs=1e-3)
    figures, there = total.figures(NAMES), (votes >= 0).any(1)
    assert figures.label_model_accuracy == pytest.approx(float((belief.argmax(1) == truth)[there].double().mean()))
    counts = torch.stack([torch.bincount(row[row >= 0].long(), minlength=CLASSES) for row in votes])
    assert figures.majority_accuracy == pytest.approx(float((counts.argmax(1) == truth)[there].double().mean()))
    union = combine_votes(votes, CLASSES)[there]
    assert figures.union_mean_candidates == pytest.approx(float(union.sum(1).double().mean()))
    assert figures.union_coverage == pytest.approx(float(union[torch.arange(len(union)), truth[there]].double().mean()))
    assert figures.mean_candidates != figures.union_mean_candidates
    assert total.prior() == pytest.approx(belief.mean(0).tolist())


def test_voters_are_listed_judged_and_warned_of() -> None:
    truth, votes = voted()
    survey, model = fitted(votes)
    cards = [Card("votes", "v", "e", ("ann", "bob", "eve", "=1+1", "one"), tuple((name,) for name in NAMES), {})]
    true = [float((votes[:, v] == truth)[votes[:, v] >= 0].double().mean()) for v in range(5)]
    lines = voter_lines(survey, model, cards, NAMES, true)
    assert lines[0].votes == int((votes[:, 0] >= 0).sum())
    assert sum(line.weight for line in lines) == pytest.approx(1.0)
    assert max(lines[3].weight, lines[4].weight) < 0.1 < min(line.weight for line in lines[:3])
    told = about_voters(model, lines)
    assert any("voter 'one'" in line and "sure of one class: 100% of its votes are for '=cow'" in line for line in told)
    rows = list(csv.reader(io.StringIO(as_csv(lines))))
    assert rows[0] == ["annotator", "voter", "votes", "accuracy", "weight", "note", "true_accuracy"]
    assert rows[4][1] == "'=1+1"  # no spreadsheet runs it
    assert [float(row[6]) for row in rows[1:]] == pytest.approx(true, abs=1e-6)


def test_several_annotators_have_their_voters_side_by_side_and_a_lone_voter_is_left_as_it_is() -> None:
    votes = voted()[1]
    survey, model = fitted(votes)
    cards = [Card("chat", "m", "1", ("q",), (), {}), Card("votes", "v", "2", ("a", "b", "c", "d"), (), {})]
    lines = voter_lines(survey, model, cards, NAMES, [None] * 5)
    assert [(line.annotator, line.voter) for line in lines[:2]] == [("chat-1", "q"), ("votes-2", "a")]
    one, alone = fitted(votes[:, :1])
    (line,) = voter_lines(one, alone, [replace(cards[0], prompts=("q",))], NAMES, [None])
    told = about_voters(alone, [line])
    assert told[0] == (
        "the label model can tell nothing and leaves the votes as they are: fewer than three different voters"
    )
    assert voter_lines(None, None, cards, NAMES, []) == []
    silent = VoterLine("a", "b", 0, None, 0.0, "has not voted", None)
    assert as_csv([silent]).splitlines()[1] == "a,b,0,,0.0,has not voted,"


def test_cpl_keeps_what_rows_and_classes_need(tmp_path: Path) -> None:
    probs = torch.rand(50, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    mass, floors = cpl_bounds(probs)
    given = replace(evidence(torch.zeros(50, 2, dtype=torch.int32)), mean=probs)
    settings = CandidatesConfig.model_validate({"mode": "cpl"})
    score(given, Making(settings, NONE, NONE, Folder.at(tmp_path), 0, rule=Rule(mass=mass, floors=floors)), "x")
    stored = read_table(Folder.at(tmp_path), "x.parquet")["candidates"].to_pylist()
    assert stored == [row.nonzero().flatten().tolist() for row in cpl_sets(probs, mass, floors)]


def test_alignment_brings_each_prompt_to_the_wished_shares(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    text = TextTable(F.normalize(torch.randn(3, CLASSES, 8, generator=generator), dim=2), torch.zeros(0, 8), 4.0, 0.0)
    embedding = F.normalize(torch.randn(40, 8, generator=generator), dim=1).half()
    probs = torch.cat(list(probabilities(embedding, text)))  # (N, P, K)
    shares = wished_shares("uniform", CLASSES)
    assert shares is not None
    votes, mean = aligned_answers(embedding, text, Alignment(probs.mean(dim=(0, 1)), shares))
    by_hand = probs * shares.float() / probs.mean(dim=(0, 1))
    by_hand = by_hand / by_hand.sum(dim=2, keepdim=True)
    assert torch.equal(votes, by_hand.argmax(dim=2).int())
    torch.testing.assert_close(mean, by_hand.mean(dim=1))
    (tmp_path / "shares.json").write_text(json.dumps([1, 1, 0, 2]))
    assert wished_shares("none", CLASSES) is None
    read = wished_shares(str(tmp_path / "shares.json"), CLASSES)
    assert read is not None
    assert read.tolist() == [0.25, 0.25, 0.0, 0.5]
    for number, content in enumerate(("[1, 2]", "[1, 1, 1, -1]", "[0, 0, 0, 0]", '"even"', "no JSON")):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        with pytest.raises(UserError, match=r"candidates\.align="):
            wished_shares(str(path), CLASSES)
