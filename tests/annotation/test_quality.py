"""Votes and the figures about them against the oracle."""

from __future__ import annotations

import json

import numpy as np
import oracle
import pytest
import torch

from coreg_ray.annotation.quality import Score
from coreg_ray.pure.candidates import Quality, combine_votes, quality, votes_per_class

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_votes(rows, prompts, classes, seed=0):
    return torch.randint(-1, classes, (rows, prompts), generator=seeded(seed))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(60, 4, 5), (30, 1, 3), (20, 3, 1), (0, 2, 3)])
def test_votes_agree_with_the_oracle(device, dtype, shape):
    rows, prompts, classes = shape
    votes = random_votes(rows, prompts, classes)
    votes[:3] = -1
    labels = torch.randint(-1, classes, (rows,), generator=seeded(9))
    on_device = votes.to(device, dtype)
    assert np.array_equal(combine_votes(on_device, classes).cpu().numpy(), oracle.combine_votes(votes.numpy(), classes))
    expected = oracle.quality(votes.numpy(), classes, labels.numpy())
    got = quality(on_device, classes, labels.to(device))
    assert got.keys() == expected.keys()
    for name, figure in expected.items():
        assert got[name] == (figure if figure is None else pytest.approx(figure)), name
    assert votes_per_class(on_device, classes).tolist() == expected["votes_per_class"]
    assert quality(on_device, classes) == {name: got[name] for name in oracle.quality(votes.numpy(), classes)}


def test_quality_adds_up_over_blocks():
    votes, labels = random_votes(101, 5, 7), torch.randint(0, 7, (101,), generator=seeded(1))
    parts = []
    for votes_part, labels_part in zip(votes.split(30), labels.split(30), strict=True):
        parts.append(Quality(7, 5))
        parts[-1].update(votes_part, labels_part)
    before = parts[0].summary()
    assert sum(parts, Quality(7, 5)).summary() == quality(votes, 7, labels)
    assert parts[0].summary() == before  # adding does not write to the parts
    one = Quality(7, 5)
    for votes_part, labels_part in zip(votes.split(17), labels.split(17), strict=True):
        one.update(votes_part, labels_part)
    assert one.summary() == quality(votes, 7, labels)


def test_quality_of_a_known_table():
    votes = torch.tensor([[0, 0, 0], [0, 1, -1], [-1, -1, -1], [2, 2, 0]])
    figures = quality(votes, 4, torch.tensor([0, 2, 1, -1]))
    assert figures["rows_without_vote"] == 1
    assert figures["mean_candidates"] == pytest.approx(5 / 3)
    assert figures["singletons"] == pytest.approx(1 / 3)
    assert figures["agreement"] == pytest.approx(4 / 7)
    assert figures["votes_per_class"] == [5, 1, 2, 0]
    assert figures["classes_without_votes"] == [3]
    assert figures["prompt_accuracy"] == pytest.approx([1 / 3] * 3)
    assert figures["coverage"] == 0.5
    assert figures["eta"] == 0.5


def test_quality_without_rows_labels_or_pairs_is_plain_json():
    figures = quality(torch.zeros(0, 1, dtype=torch.int64), 2)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["mean_candidates"] is None
    assert figures["agreement"] is None
    assert "coverage" not in figures
    assert "coverage" not in quality(torch.tensor([[1]]), 2, torch.tensor([-1]))


def test_bad_votes_are_named():
    with pytest.raises(ValueError, match=r"votes run over -2 \.\. 1"):
        combine_votes(torch.tensor([[-2, 1]]), 3)
    with pytest.raises(ValueError, match=r"-1 \.\. 2"):
        votes_per_class(torch.tensor([[3, 1]]), 3)
    with pytest.raises(ValueError, match="2 prompts"):
        Quality(3, 2).update(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels"):
        quality(torch.zeros(4, 3, dtype=torch.int64), 3, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="each annotator"):
        Quality(3, 2) + Quality(3, 1)


def test_macro_f1_and_recall_of_the_mean_are_scikit_learns():
    from sklearn.metrics import f1_score

    classes, rows = 6, 80
    labels = torch.randint(-1, classes - 1, (rows,), generator=seeded(1))  # some unknown, and none of the last class
    mean = torch.rand(rows, classes, generator=seeded(2)).softmax(dim=1)
    votes = random_votes(rows, 3, classes)
    nothing = torch.full((rows,), torch.nan)
    figures = Score.of(votes, mean, mean > 0.1, nothing, nothing > 0, labels).figures([str(k) for k in range(classes)])
    known = labels >= 0
    true, guessed = labels[known].numpy(), mean.argmax(dim=1)[known].numpy()
    assert figures.zero_shot_macro_f1 == pytest.approx(f1_score(true, guessed, average="macro"))
    assert figures.zero_shot_recall[-1] is None
    for number in range(classes - 1):
        assert figures.zero_shot_recall[number] == pytest.approx(np.mean(guessed[true == number] == number))
