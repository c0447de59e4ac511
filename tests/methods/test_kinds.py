"""What holds for every kind of method alike; laws of a kind of its own are in the file of its name."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import frozen_toy
import pytest
import torch
import toy
from many_classes import Largest, many_classes
from pydantic import ValidationError
from world import run_world

from coreg_ray import metrics
from coreg_ray.config import Config, MethodConfig, StudentConfig
from coreg_ray.methods import KINDS
from coreg_ray.run.storage import Folder
from coreg_ray.training import assess as assessment
from coreg_ray.training import checkpoint
from coreg_ray.training.fit import fit
from coreg_ray.training.memory import parts
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.neighbours import nearest
from coreg_ray.training.networks import pack
from coreg_ray.training.rows import make_rows
from coreg_ray.training.state import build_state
from coreg_ray.training.steps import Batch

# Settings of a kind beside its defaults, by the name of a case: every branch of every kind is among them.
CASES: dict[str, dict[str, Any]] = {
    "coreg": {},
    "coreg-confident": {"clean": "confident"},
    "dividemix-confident": {"clean": "confident"},
    "coreg-neighbours": {"neighbours": 3},
    "dividemix-neighbours": {"neighbours": 3, "weak_views": 2},
    "dividemix": {"weak_views": 2, "loss_history": 1, "lambda_u": 25},
    "partial-cc": {"partial": {"loss": "cc"}},
    "partial-proden": {"partial": {"loss": "proden"}},
    "partial-crdpll": {},
    "partial-robust": {"partial": {"robust": True}},
    "distil": {},
    "distil-candidates": {"distil": {"loss": "candidates"}},
    "distil-confidence": {"distil": {"confidence": 0.5}},
    "pico": {"pico": {"start": 0.3}},
    "pico-alim-onehot": {"pico": {"importance": "onehot", "importance_start": 0.3}},
    "pico-alim-scale": {"pico": {"importance": "scale", "importance_start": 0.3}},
    "pico-plus": {"pico": {"plus": True, "start": 0.3, "neighbours_start": 0.5, "neighbours": 3}},
    "elr": {},
    "elr-plus": {"mixup_alpha": 1, "elr": {"plus": True, "ramp": 0.5}},
    "ill": {},
}
SETTINGS: dict[str, Any] = {"epochs": 5, "warmup_epochs": 1, "ramp_epochs": 2, "queue_size": 50}
DATA: dict[str, Any] = {"count": 125}
CASE = pytest.mark.parametrize("case", CASES)


def settings(case: str, **more: Any) -> dict[str, Any]:
    return SETTINGS | {"kind": case.split("-")[0]} | CASES[case] | more


def histories_of_two(data: dict[str, Any], cases: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What a process of a world of two sees of a run of each case, on features."""
    return {name: frozen_toy.history(Mesh(), given, data) for name, given in cases.items()}


@pytest.fixture(scope="module")
def two() -> list[dict[str, list[dict[str, Any]]]]:
    return run_world(2, "methods.test_kinds.histories_of_two", DATA, {case: settings(case) for case in CASES})


@pytest.fixture(scope="module")
def alone() -> dict[str, list[dict[str, Any]]]:
    """The same runs in this process."""
    torch.set_num_threads(1)
    return histories_of_two(DATA, {case: settings(case) for case in CASES})


def test_the_configuration_knows_all_kinds_and_their_settings() -> None:
    assert set(KINDS) == set(get_args(MethodConfig.model_fields["kind"].annotation))
    assert {case.split("-")[0] for case in CASES} == set(KINDS)
    assert set(MethodConfig().of_others()) == set(KINDS) - {"coreg"}


def test_a_kind_that_is_none_and_settings_of_another_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"'coreg'.*'dividemix'"):
        MethodConfig.model_validate({"kind": "magic"})
    with pytest.raises(ValidationError, match=r"dividemix.penalty=2.0 is a setting of method.kind=dividemix, and this"):
        MethodConfig.model_validate({"dividemix": {"penalty": 2}})


def test_no_term_bears_the_name_of_another_figure() -> None:
    taken = {metrics.LOSS, metrics.CLEAN, metrics.CHURN, metrics.AGREEMENT}
    for kind, method in KINDS.items():
        assert len(set(method.TERMS)) == len(method.TERMS), kind
        assert not taken & set(method.TERMS), kind
        assert set(method.DEPLOYED) <= set(metrics.NETWORKS), kind


@CASE
def test_one_process_and_two_give_the_same_history(case: str, alone: Any, two: Any) -> None:
    kind = case.split("-")[0]
    assert {row["phase"] for row in alone[case]} <= {metrics.WARMUP, kind}
    assert alone[case][-1]["phase"] == kind
    for answer in two:
        toy.same(alone[case], answer[case], tolerance=1e-4)


@CASE
def test_a_resumed_run_equals_one_that_never_stopped(case: str, tmp_path: Path, alone: Any) -> None:
    data = frozen_toy.frozen(toy.toy(**DATA))
    state, rows = toy.start(data, Mesh(), student=frozen_toy.STUDENT, **settings(case))
    method = KINDS[state.method.kind]
    for epoch in fit(state, rows, data.scored, Mesh(), method):
        if epoch.number == 2:
            checkpoint.save(state, Folder.at(str(tmp_path)), "toy", Mesh())
            break
    resumed, rows = toy.start(data, Mesh(), student=frozen_toy.STUDENT, **settings(case))
    newest = checkpoint.newest(Folder.at(str(tmp_path)))
    assert newest is not None
    checkpoint.resume(resumed, newest, Mesh())
    list(fit(resumed, rows, data.scored, Mesh(), method))
    toy.same(resumed.history, alone[case])


@CASE
@pytest.mark.parametrize("sizes", ["one", "all", "mixed with nothing clean"])
def test_everything_stays_finite_whatever_the_sets_are(case: str, sizes: str) -> None:
    data = frozen_toy.frozen(toy.toy(count=60))
    count, num_classes = len(data.rows), data.rows.num_classes
    candidates = torch.nn.functional.one_hot(torch.arange(count) % num_classes).bool()
    if sizes == "all":
        candidates[:] = True
    if sizes.startswith("mixed"):
        candidates[::2] = True
    rows = make_rows(data.rows.numbers, data.rows.pixels, candidates, features=data.rows.features)
    more = {"clean_threshold": 0.999} if sizes.startswith("mixed") else {}
    problem = replace(data, rows=rows)
    state, rows = toy.start(problem, Mesh(), student=frozen_toy.STUDENT, **settings(case, epochs=3, **more))
    for epoch in fit(state, rows, problem.scored, Mesh(), KINDS[state.method.kind]):
        assert all(math.isfinite(value) for value in epoch.metrics.values() if isinstance(value, float))
    for learner in state.learners:
        assert pack(learner.student).isfinite().all()
        assert all(part.content.isfinite().all() for part in parts(learner.memory, "team", "candidates"))


@CASE
def test_images_are_learnt_as_features_are(case: str) -> None:
    history = toy.history(toy.toy(count=48), Mesh(), **settings(case, epochs=3, warmup_epochs=1))
    assert history[-1]["phase"] == case.split("-")[0]
    assert all(math.isfinite(value) for value in history[-1].values() if isinstance(value, float))


@CASE
def test_classes_in_another_order_give_the_same_answers_in_that_order(case: str) -> None:
    """Up to rounding: sums over classes run in another order."""
    data, order = frozen_toy.frozen(toy.toy(**DATA)), torch.tensor([2, 0, 3, 1])
    state, rows = toy.start(data, Mesh(), student=frozen_toy.STUDENT, **settings(case, epochs=3))
    candidates = rows.candidates(torch.arange(len(rows)), torch.device("cpu"))[:, order]
    renamed = make_rows(rows.numbers, rows.pixels, candidates, features=rows.features)
    other, _ = toy.start(replace(data, rows=renamed), Mesh(), student=frozen_toy.STUDENT, **settings(case, epochs=3))
    for learner in other.learners:
        for network in (learner.student, learner.peer):
            network.classifier.weight.data = network.classifier.weight.data[order]
            network.classifier.bias.data = network.classifier.bias.data[order]
    test = data.scored.test
    assert test is not None
    assert test.labels is not None
    scored = replace(data.scored, test=replace(test, labels=order.argsort()[test.labels]))
    method = KINDS[state.method.kind]
    one = [epoch.metrics for epoch in fit(state, rows, data.scored, Mesh(), method)]
    two = [epoch.metrics for epoch in fit(other, renamed, scored, Mesh(), method)]
    toy.same(one, two, tolerance=2e-2)


@CASE
def test_a_replica_without_rows_in_a_step_stays_finite_and_as_it_is(case: str) -> None:
    data = frozen_toy.frozen(toy.toy(count=60))
    state, rows = toy.start(data, Mesh(), student=frozen_toy.STUDENT, **settings(case))
    learner, mesh = state.learners[0], Mesh()
    turn = KINDS[state.method.kind].turns(state, rows, mesh, epoch=3).of[0]
    none = torch.zeros(0, dtype=torch.int64)
    plan = replace(turn.plan, labelled=[none], unlabelled=[none], team_labelled=[7], team_unlabelled=[7])
    before = pack(learner.student)
    terms = turn.step(state, learner, Batch(rows, plan, 0, 3), mesh)
    assert terms.isfinite().all()
    assert torch.equal(pack(learner.student), before)
    assert all(part.content.isfinite().all() for part in parts(learner.memory, "team", "candidates"))


@CASE
def test_no_tensor_has_the_size_of_rows_times_classes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_classes = 1500
    monkeypatch.setitem(assessment.ASSESS_CELLS, "cpu", 20 * num_classes)
    student = StudentConfig(resolution=8, width=4, projection=2, precision="float32")
    chosen = toy.method(**settings(case, warmup_epochs=1, batch_size=8))
    method, largest = KINDS[chosen.kind], []
    for count in (100, 400):
        rows, mesh = many_classes(count, num_classes), Mesh()
        names = [str(number) for number in range(num_classes)]
        near = nearest(toy.space(rows), chosen.neighbours, mesh) if chosen.neighbours else None
        state = build_state(chosen, student, 0, names, rows, mesh, method.remember, neighbours=near)
        with Largest() as seen:
            turn = method.turns(state, rows, mesh, epoch=4).of[0]
            turn.step(state, state.learners[0], Batch(rows, turn.plan, 0, 4), mesh)
        largest.append(seen.nbytes)
    assert largest[0] == largest[1]
    most = num_classes if case.startswith("ill") else 50  # of float32 a class: a matrix, or half of the fewest rows
    assert largest[0] <= 4 * most * num_classes


def test_weights_of_candidates_are_refused_by_kinds_that_would_not_look_at_them() -> None:
    classes = {"source": {"kind": "digits"}, "candidates": {"weighted": True}}
    for method in ({"kind": "ill"}, {"kind": "elr", "elr": {"plus": True}}):
        with pytest.raises(ValidationError, match=r"weighted=true with method.kind=.* counts all candidates"):
            Config.model_validate({**classes, "method": method})
    assert Config.model_validate({**classes, "method": {"kind": "elr"}}).candidates.weighted
