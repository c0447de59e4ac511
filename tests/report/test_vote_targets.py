"""What students are taught where the answers are votes alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from coreg_ray.annotation.arrow import lists, write_table
from coreg_ray.annotation.card import Card
from coreg_ray.report.vote_targets import MAJORITY, MODELLED, only_votes, vote_targets
from coreg_ray.run.folder import RunFolder
from coreg_ray.training.sample import Sample

CARD = Card("votes", "v.csv", "0123456789", ("ann",), (("cat",), ("dog",), ("cow",)), {})


def test_targets_are_the_most_votes_and_the_stored_posterior(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path)
    sizes, indices = np.array([2, 1, 2]), np.array([0, 2, 1, 1, 2], np.int32)
    table = {
        "row": [7, 3, 5],
        "candidates": lists(sizes, indices),
        "votes": lists(sizes, np.array([1, 3, 2, 1, 1], np.int32)),
        "scores": lists(sizes, np.array([0.1, 0.7, 1.0, 0.25, 0.75], np.float16)),
    }
    write_table(run.candidates, "x.parquet", pa.table(table))
    numbers = np.array([5, 7])
    nothing = torch.zeros(2, dtype=torch.int64)
    sample = Sample(
        numbers, torch.zeros(2, 3, 1, 1), ["a", "b"], nothing, torch.zeros(2, 3).bool(), nothing, nothing, 2
    )
    targets = vote_targets(run, sample, "label_model")
    assert targets[MAJORITY].tolist() == [[0, 1, 0], [0, 0, 1]]  # of equals the lower class
    assert targets[MODELLED].flatten().tolist() == pytest.approx([0, 0.25, 0.75, 0.125, 0, 0.875], abs=1e-3)
    assert list(vote_targets(run, sample, "union")) == [MAJORITY]


def test_votes_alone_are_told_from_votes_beside_a_model(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path)
    assert not only_votes(run)
    cards = [CARD, replace(CARD, kind="clip")]
    for card in cards:
        (run.own("annotations", "pool") / card.folder).write_json("manifest.json", card.manifest())
    run.write_used("pool", [CARD.folder])
    assert only_votes(run)
    run.write_used("pool", [card.folder for card in cards])
    assert not only_votes(run)
