"""Confusions by the pairs that occur: equal to the dense matrix, and small where that would be gigabytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coreg_ray.cluster import predict
from coreg_ray.deploy.calibration import calibration_error
from coreg_ray.deploy.predictions import Judgement
from coreg_ray.ids import row_numbers
from coreg_ray.images.base import block
from coreg_ray.report import sections
from coreg_ray.report.confusions import Confusions
from coreg_ray.report.data import Looked, Run
from coreg_ray.run.storage import Folder
from coreg_ray.training.sample import Sample

MANY = 3000  # classes; a matrix of int64 has 72 MB
ROWS = 300


def answers(num_classes: int, rows: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True classes, and predicted ones of which half are true."""
    random = np.random.default_rng(seed)
    true = random.integers(num_classes, size=rows)
    return true, np.where(random.random(rows) < 0.5, true, random.integers(num_classes, size=rows))


def peak(work: Callable[[], object]) -> int:
    """Bytes that numpy and Python held at most meanwhile."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_they_are_those_of_the_dense_matrix() -> None:
    true, predicted = answers(7, 200)
    dense = np.zeros((7, 7), np.int64)
    np.add.at(dense, (true, predicted), 1)
    confusions = Confusions.of(true, predicted, 7)
    assert (confusions.matrix() == dense).all()
    assert confusions.accuracy == dense.trace() / 200
    for one, other in zip(confusions.by_class(), (dense.diagonal(), dense.sum(1), dense.sum(0)), strict=True):
        assert one.tolist() == other.tolist()
    wrong = dense - np.diag(dense.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    worst = [(cell // 7, cell % 7, wrong.flat[cell]) for cell in order.tolist() if wrong.flat[cell]]
    assert confusions.worst(10) == worst


def test_of_no_image_and_of_no_mistake() -> None:
    nothing = np.zeros(0, np.int64)
    empty = Confusions.of(nothing, nothing, 3)
    assert (empty.accuracy, empty.worst(10), empty.matrix().sum()) == (0, [], 0)
    assert Confusions.of(np.arange(3), np.arange(3), 3).worst(10) == []


def test_the_report_needs_no_matrix_of_very_many_classes() -> None:
    true, predicted = answers(MANY, ROWS)
    nothing = np.zeros((3, ROWS), np.float32)
    judged = Judgement(np.stack([predicted] * 3), nothing, true, nothing, nothing[0])
    unknown = torch.full((ROWS,), -1)
    sample = Sample(np.arange(ROWS), unknown, [""] * ROWS, torch.from_numpy(true), unknown, unknown, unknown > 0, ROWS)
    looked = Looked(sample, torch.zeros(2, ROWS, 1), torch.zeros(ROWS, 1), judged)
    run = Run(class_names=[f"class {number}" for number in range(MANY)], test=looked)
    tables: list[Any] = []
    assert peak(lambda: tables.append(sections.test_tables(run))) < 10_000_000
    (table,) = tables
    assert table["accuracy"] == (true == predicted).mean()
    assert (table["confusion"], len(table["per_class"]), len(table["confusions"])) == ("", MANY, 10)
    fewer = replace(run, class_names=run.class_names[:100], test=replace(looked, judged=of_few(judged)))
    few = sections.test_tables(fewer)
    assert few is not None
    assert "<svg" in few["confusion"]


def of_few(judged: Judgement) -> Judgement:
    return replace(judged, best=judged.best % 100, given=judged.given % 100)


class Answered:
    """What Ray Data would answer: batches of ids and of probabilities in which the predicted class has a half."""

    def __init__(self, ids: list[str], predicted: NDArray[np.int64]) -> None:
        self.ids, self.predicted = ids, predicted

    def iter_batches(self, **_: Any) -> Iterator[dict[str, NDArray[Any]]]:
        for start in range(0, len(self.ids), 50):
            best = self.predicted[start : start + 50]
            probabilities = np.full((len(best), MANY), 0.5 / (MANY - 1), np.float32)
            probabilities[np.arange(len(best)), best] = 0.5
            yield {"image_id": np.array(self.ids[start : start + 50]), "probabilities": probabilities}


def test_evaluation_needs_none_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    true, predicted = answers(MANY, ROWS)
    ids = [str(number) for number in range(ROWS)]
    labels = [None if number % 10 == 0 else label for number, label in enumerate(true.tolist())]
    listing = block([*ids, "unreadable"], labels=[*labels, 5])
    source: Any = SimpleNamespace(listing=lambda: iter([listing]))
    class_names = [f"class {number}" for number in range(MANY)]
    card = {"classes": class_names, "resolution": 8}
    monkeypatch.setattr(predict, "_read", lambda model: (card, b""))
    monkeypatch.setattr(predict, "Listing", lambda *_: None)
    monkeypatch.setattr(predict, "_answered", lambda *_: Answered(ids, predicted))
    evaluations: list[predict.Evaluation] = []
    assert len(set(row_numbers(ids))) == ROWS
    assert peak(lambda: evaluations.append(predict.evaluate(Folder.at(tmp_path), source))) < 10_000_000
    (evaluation,) = evaluations
    known = np.arange(ROWS) % 10 > 0
    right = torch.from_numpy((true == predicted)[known])
    assert (evaluation.images, evaluation.unreadable) == (known.sum(), 1)
    assert evaluation.accuracy == pytest.approx(float(right.double().mean()))
    assert evaluation.calibration_error == pytest.approx(calibration_error(torch.full((len(right),), 0.5), right))
    lines = evaluation.table(class_names).splitlines()
    assert len(lines) == MANY + 2
    label = int(true[1])
    of_it = true[known] == label
    hits = (predicted[known] == label) & of_it
    assert lines[1 + label].split()[2:4] == [str(of_it.sum()), f"{hits.sum() / of_it.sum():.3f}"]


def test_macro_f1_and_recall_are_scikit_learns() -> None:
    from sklearn.metrics import f1_score, recall_score

    true, predicted = answers(7, ROWS)
    true[true == 2] = 3  # a class without images, which some are taken for
    predicted[predicted == 5] = 6
    made = Confusions.of(true, predicted, 8)  # and one that does not occur at all
    assert made.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro"))
    recall = recall_score(true, predicted, average=None, labels=range(8), zero_division=np.nan)
    assert made.recall == [None if np.isnan(value) else pytest.approx(value) for value in recall]
    assert made.recall[2] is None
    assert made.recall[7] is None
    assert Confusions.of(true[:0], predicted[:0], 8).macro_f1 == 0


def test_figures_stand_beside_their_accuracy() -> None:
    true, predicted = answers(4, ROWS)
    figures = Confusions.of(true, predicted, 4).metrics("test/accuracy_a")
    assert list(figures) == ["test/accuracy_a", "test/macro_f1_a", "test/recall_a"]
    assert len(figures["test/recall_a"]) == 4


def test_parts_add_up_to_the_whole() -> None:
    true, predicted = answers(30, ROWS)
    whole = Confusions.of(true, predicted, 30)
    parts = Confusions.of(true[:100], predicted[:100], 30) + Confusions.of(true[100:], predicted[100:], 30)
    assert np.array_equal(parts.matrix(), whole.matrix())
    assert len(parts.true) == len(whole.true)
    with pytest.raises(ValueError, match="30 and 31 classes"):
        whole + Confusions.of(true, predicted, 31)
