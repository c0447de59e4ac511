"""Variants of Co-Reg that no setting offers: that they do what their words say, and train as settings do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import prepare_run, toy

from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.run.folder import RunFolder
from coreg_ray.studies import variants
from coreg_ray.studies.problem import EPOCH, Problem, build_problem, synthetic_rows
from coreg_ray.studies.variants import RENEWING_BATCHES, Variant
from coreg_ray.training.steps import Batch


def tiny() -> Problem:
    return build_problem(synthetic_rows(96, side=16), 8, 4, queue_size=64)


def norms(network: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def statistics_of(network: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of all batch-norm statistics."""
    return [statistic.clone() for norm in norms(network) for statistic in (norm.running_mean, norm.running_var)
            if statistic is not None]  # fmt: skip


def moved(before: list[torch.Tensor], network: torch.nn.Module) -> bool:
    now = statistics_of(network)
    changes = [not torch.equal(one, other) for one, other in zip(before, now, strict=True)]
    assert all(changes) or not any(changes)
    return any(changes)


@pytest.mark.parametrize("passes", ["", "training"])
def test_passes_in_training_mode_move_the_statistics_while_pseudo_labels_are_made(
    passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = tiny()
    learner = problem.learner
    seen: list[tuple[bool, bool]] = []
    original = coreg.pseudo_labels

    def watched(*arguments: Any) -> Any:
        own, peers = statistics_of(learner.student), statistics_of(learner.peer)
        labels = original(*arguments)
        seen.append((moved(own, learner.student), moved(peers, learner.peer)))
        return labels

    monkeypatch.setattr(coreg, "pseudo_labels", watched)
    turns = Variant(passes=passes).turns(problem.state, problem.rows, problem.mesh, EPOCH)
    turn = turns.of[learner.network]
    turn.step(problem.state, learner, Batch(problem.rows, turn.plan, 0, EPOCH), problem.mesh)
    assert seen == [(passes == "training", False)]
    assert learner.student.training


@pytest.mark.parametrize("batch_norm", ["", "renewed"])
def test_renewed_statistics_are_those_of_a_few_weak_batches_before_every_assessment(
    batch_norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = tiny()
    students = [learner.student for learner in problem.state.learners]
    before = [statistics_of(student) for student in students]
    momentum = {norm.momentum for student in students for norm in norms(student)}
    means: dict[torch.nn.Module, list[torch.Tensor]] = {norms(student)[0]: [] for student in students}

    def note(norm: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if norm.training:
            means[norm].append(inputs[0].mean(dim=(0, 2, 3)))

    for norm in means:
        norm.register_forward_pre_hook(note)
    batches: dict[int, int] = {}
    original = variants.assess

    def watched(state: Any, learner: Any, *rest: Any, **named: Any) -> Any:
        batches[learner.network] = len(means[norms(learner.student)[0]])
        return original(state, learner, *rest, **named)

    monkeypatch.setattr(variants, "assess", watched)
    Variant(batch_norm=batch_norm).turns(problem.state, problem.rows, problem.mesh, EPOCH)
    count = RENEWING_BATCHES if batch_norm else 0
    assert batches == {0: count, 1: count}  # all of them before
    for student, old in zip(students, before, strict=True):
        assert moved(old, student) == bool(batch_norm)
        if batch_norm:
            first = norms(student)[0]
            torch.testing.assert_close(first.running_mean, torch.stack(means[first]).mean(0), rtol=1e-3, atol=1e-3)
    assert {norm.momentum for student in students for norm in norms(student)} == momentum


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that is ready to be trained in."""
    folder = tmp_path_factory.mktemp("run")
    RunFolder.at(folder).write_config(prepare_run(folder, toy(count=120)))
    return folder


SHORT = "method.epochs=2,method.warmup_epochs=1"


def test_variants_train_on_a_prepared_run_and_write_nothing_there(run: Path) -> None:
    files = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    plain = variants.train(str(run), SHORT, seed=1)
    again = variants.train(str(run), SHORT, seed=1)
    assert plain["history"] == again["history"]
    assert len(plain["history"]) == 2
    for word in ("passes=training", "batch_norm=renewed"):
        other = variants.train(str(run), f"{SHORT},{word}", seed=1)
        assert (other["variant"], other["seed"], len(other["history"])) == (f"{SHORT},{word}", 1, 2)
        assert other["history"][0] == plain["history"][0]  # the warm-up is the same
        assert other["history"][1] != plain["history"][1]
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == files
    assert [line.split()[0] for line in variants.table([plain, other])] == [SHORT, f"{SHORT},batch_norm=renewed"]


def test_a_word_with_another_value_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="passes=evaluation: the words are passes=training, batch_norm=renewed, aligned=false"
    ):
        variants.train(str(run), "passes=evaluation", seed=0)
    with pytest.raises(UserError, match="is no run folder"):
        variants.train(str(tmp_path / "nothing"), "default", seed=0)
