"""The method on toy data: it learns, it beats its own warm-up, it repeats itself, and it stays small."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
import toy
from many_classes import Largest, many_classes
from torch import Tensor

from coreg_ray.config import StudentConfig
from coreg_ray.methods import coreg
from coreg_ray.training import assess as assessment
from coreg_ray.training.assess import Opinion, assess, opinion_metrics, swap_opinions
from coreg_ray.training.evaluate import Scored, evaluate
from coreg_ray.training.fit import NonFiniteLossError, _set_learning_rate, fit, train_epoch
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import pack
from coreg_ray.training.plan import split_plan
from coreg_ray.training.rows import Rows, make_rows
from coreg_ray.training.state import State, build_state
from coreg_ray.training.steps import Batch

SHORT: dict[str, Any] = {"epochs": 3, "warmup_epochs": 1}


def trained(seed: int = 0, count: int = 80, **settings: Any) -> State:
    data = toy.toy(count=count)
    state, rows = toy.start(data, Mesh(), seed, **(SHORT | settings))
    list(fit(state, rows, data.scored, Mesh(), coreg))
    return state


@pytest.fixture(scope="module")
def short() -> State:
    return trained()


def test_the_two_networks_differ(short: State) -> None:
    a, b = short.learners
    assert not torch.allclose(pack(a.student), pack(b.student))
    assert torch.equal(pack(a.peer), pack(b.student))
    assert torch.equal(pack(b.peer), pack(a.student))
    assert torch.equal(a.memory.prototypes, b.memory.prototypes)
    assert a.memory.prototypes.norm(dim=1) == pytest.approx([1, 1, 1, 1])


def test_a_seed_decides_everything(short: State) -> None:
    torch.manual_seed(99)  # no global random state is asked
    toy.same(trained().history, short.history)
    other = trained(seed=1).history
    assert [metrics["loss/a"] for metrics in other] != [metrics["loss/a"] for metrics in short.history]


def test_equal_weights_give_the_history_without_any_and_others_another() -> None:
    data = toy.toy(count=80)
    plain = toy.history(data, Mesh(), **SHORT)
    data.rows.weights = torch.ones(len(data.rows.indices), dtype=torch.float16)
    toy.same(toy.history(data, Mesh(), **SHORT), plain)
    data.rows.weights[::3] = 0.1
    assert toy.history(data, Mesh(), **SHORT)[0]["loss/a"] != plain[0]["loss/a"]


def test_the_sequential_order_runs_and_differs(short: State) -> None:
    state = trained(order="sequential")
    assert all(math.isfinite(metrics["loss/b"]) for metrics in state.history)
    toy.same(state.history[:1], short.history[:1])  # warm-up knows no order
    assert state.history[2]["loss/b"] != short.history[2]["loss/b"]
    a, b = state.learners
    assert torch.equal(pack(a.peer), pack(b.student))
    assert torch.equal(pack(b.peer), pack(a.student))
    assert torch.equal(a.memory.prototypes, b.memory.prototypes)


@pytest.mark.parametrize("exchanges", [1, 50])
def test_any_number_of_exchanges(exchanges: int) -> None:
    history = trained(exchanges=exchanges).history  # fifty are more than there are steps
    assert all(math.isfinite(metrics["loss/a"]) for metrics in history)


def test_the_learning_rate_falls_to_a_thousandth_over_the_configured_epochs() -> None:
    state = trained(epochs=2, warmup_epochs=2, learning_rate=0.1)
    rates = []
    for epoch in (0, 5, 10):
        state.method = state.method.model_copy(update={"epochs": 10})
        _set_learning_rate(state.learners[0], state, epoch)
        rates.append(state.learners[0].optimizer.learning_rate)
    assert rates == pytest.approx([0.1, 0.05005, 0.0001])


def test_a_poisoned_network_stops_the_run() -> None:
    data = toy.toy(count=40)
    state, rows = toy.start(data, Mesh(), **SHORT)
    epochs = fit(state, rows, data.scored, Mesh(), coreg)
    next(epochs)
    state.learners[1].student.classifier.bias.data[2] = torch.inf
    with pytest.raises(NonFiniteLossError, match=r"^epoch 1, step 0, network b: the \w+ loss is not finite; lower"):
        next(epochs)
    assert state.epoch == 1


def test_without_a_clean_row_the_network_warms_up_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state, rows = toy.start(toy.toy(count=40), Mesh(), **SHORT)
    honest = coreg.swap_opinions

    def nothing_for_a(*arguments: Any) -> Any:
        opinions = honest(*arguments)
        opinions[0].clean.zero_()
        opinions[1].clean.fill_(1.0)
        return opinions

    monkeypatch.setattr(coreg, "swap_opinions", nothing_for_a)
    with caplog.at_level(logging.WARNING):
        turns = coreg.turns(state, rows, Mesh(), epoch=1)
        metrics = train_epoch(state, rows, Mesh(), 1, turns, coreg)
    assert [record.message for record in caplog.records] == ["epoch 1, network a: no clean row; it warms up once more"]
    assert metrics["partial/a"] > 0 == metrics["label/a"]
    assert metrics["label/b"] > 0 == metrics["partial/b"]
    assert metrics["consistency/b"] == 0


def test_shares_of_rows_are_counted_from_the_opinions() -> None:
    sets = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 0]], dtype=torch.bool)
    rows = make_rows(torch.arange(4), torch.zeros(4, toy.SIDE, toy.SIDE, 3, dtype=torch.uint8), sets)
    state = build_state(toy.method(**SHORT), toy.STUDENT, 0, toy.CLASSES, rows, Mesh(), coreg.remember)

    def metrics(clean: list[float], a: list[float], b: list[float]) -> dict[str, float]:
        one, other = (
            Opinion(torch.tensor(clean), torch.tensor(a).half()),
            Opinion(torch.ones(4), torch.tensor(b).half()),
        )
        return opinion_metrics(state, {0: one, 1: other}, {0: other, 1: one}, rows, Mesh())

    b = [0.9, 0.1, 0.1, 0.1, 0.8, 1.0, 0.3, 0.7]
    figures = metrics([0.1, 0.6, 0.5, 0.9], [0.2, 0.8, 0.1, 0.1, 0.8, 1.0, 0.5, 0.5], b)
    assert figures == {
        "clean/a": 0.5,
        "agreement": 0.5,
        "clean/b": 1.0,
    }
    assert state.learners[0].memory.choices.tolist() == [1, 2, 0, 0]  # the first of equals
    figures = metrics([1, 1, 1, 1], [0.7, 0.3, 0.1, 0.1, 0.8, 1.0, 0.5, 0.5], b)
    assert figures["churn/a"] == 0.25
    assert figures["churn/b"] == 0


def bytes_per(state: State, rows: Rows, tensors: list[Tensor]) -> tuple[float, float]:
    """Bytes per row and per candidate, told apart by the tensors' lengths."""
    per_row = per_candidate = 0.0
    for tensor in tensors:
        if len(rows.indices) in tensor.shape:
            per_candidate += tensor.nbytes / len(rows.indices)
        elif rows.numbers.shape[0] in tensor.shape or rows.numbers.shape[0] + 1 in tensor.shape:
            per_row += tensor.nbytes / len(rows)
    return per_row, per_candidate


def test_the_state_of_a_row_takes_few_bytes() -> None:
    state, rows = toy.start(toy.toy(count=1000, partial=0.3), Mesh(), **SHORT)
    assert len(rows.indices) > 1001
    own = {learner.network: assess(state, learner, rows, Mesh(), 1) for learner in state.learners}
    others = swap_opinions(own, Mesh())
    shared = [rows.numbers, rows.indptr, rows.indices, rows.trusted]
    of_a = [state.learners[0].memory.losses, state.learners[0].memory.choices]
    of_a += [own[0].clean, own[0].soft_labels, others[0].clean, others[0].soft_labels]
    per_row, per_candidate = bytes_per(state, rows, shared + of_a)
    assert 30 < per_row <= 40.1
    assert per_candidate <= 10
    everything = [
        value for learner in state.learners for value in vars(learner.memory).values() if isinstance(value, Tensor)
    ]
    assert all(tensor.numel() <= 1000 * state.method.loss_history for tensor in everything)


def test_nothing_has_the_size_of_rows_times_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    num_classes = 3000
    monkeypatch.setitem(assessment.ASSESS_CELLS, "cpu", 100 * num_classes)
    student = StudentConfig(resolution=8, width=4, projection=2, precision="float32")
    class_names = [str(number) for number in range(num_classes)]
    settings = toy.method(batch_size=8, contrast_delay=0, warmup_epochs=0)
    largest = []
    for count in (200, 800):
        rows = many_classes(count, num_classes)
        state = build_state(settings, student, 0, class_names, rows, Mesh(), coreg.remember)
        with Largest() as seen:
            own = {learner.network: assess(state, learner, rows, Mesh(), 1) for learner in state.learners}
            others = swap_opinions(own, Mesh())
            opinion_metrics(state, own, others, rows, Mesh())
            plan = split_plan(rows, others[0].clean, 0.5, 0.25, 0, 0, 1, 8, Mesh())
            coreg.coreg_step(state, state.learners[0], Batch(rows, plan, 0, 1), Mesh(), others[0])
            evaluate(state, Scored(None, None), Mesh())
        largest.append(seen.nbytes)
    assert largest[0] == largest[1] == 4 * 100 * num_classes  # float32 of the rows that are judged at once
