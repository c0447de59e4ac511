"""Heads over a frozen backbone's features: every part of the method works on them as on images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import frozen_toy
import pytest
import torch
import toy
from world import run_world

from coreg_ray.config import StudentConfig
from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.pure.rng import uniform
from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, strong, weak
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import HeadStudent, build_student, frozen_copy, pack, unpack
from coreg_ray.training.rows import feature_statistics, feature_sums, part_of
from coreg_ray.training.state import State
from coreg_ray.training.views import plain, strong_view, weak_view
from coreg_ray.training.worker import Task, train

DATA: dict[str, Any] = {"count": 125}
SETTINGS: dict[str, Any] = {"epochs": 4, "warmup_epochs": 1, "queue_size": 50, "learning_rate": 0.05}


# The seam.


def state_of(**student: Any) -> State:
    data = toy.toy(8)
    return toy.start(data, Mesh(), student=toy.STUDENT.model_copy(update=student))[0]


def test_views_of_pixels_are_what_they_always_were() -> None:
    state, numbers = state_of(flip=False), torch.arange(5)
    pixels = toy.images(5, 1)[0].permute(0, 3, 1, 2)
    assert plain(pixels) is pixels
    expected = weak(pixels, uniform(77, numbers, WEAK_DRAWS), flip=False)
    assert torch.equal(weak_view(state, pixels, 77, numbers), expected)
    expected = strong(pixels, uniform(77, numbers, STRONG_DRAWS), flip=False)
    assert torch.equal(strong_view(state, pixels, 77, numbers), expected)


def test_views_of_features_are_stored_ones_and_strong_ones_lack_some() -> None:
    state, numbers = state_of(dropout=0.5), torch.arange(200)
    taken = torch.arange(1, 10).half()[None, :, None].expand(200, -1, 40)
    assert torch.equal(plain(taken), torch.ones(200, 40))
    seen = weak_view(state, taken, 3, numbers)
    assert set(seen.unique().tolist()) == {2.0, 3.0, 4.0, 5.0}
    assert (seen == seen[:, :1]).all()  # whole views
    seen = strong_view(state, taken, 3, numbers)
    assert set(seen.unique().tolist()) == {0.0, 12.0, 14.0, 16.0, 18.0}
    assert abs(float((seen == 0).float().mean()) - 0.5) < 0.03
    assert torch.equal(strong_view(state, taken[:7], 3, numbers[:7]), seen[:7])  # whatever stands beside a row
    assert not torch.equal(strong_view(state, taken, 4, numbers), seen)


def test_views_of_embeddings_are_embeddings_that_lack_some_features() -> None:
    state, numbers = state_of(dropout=0.5), torch.arange(300)
    taken = torch.ones(300, 1, 40).half()
    shares = [float((view(state, taken, 3, numbers) == 0).float().mean()) for view in (weak_view, strong_view)]
    assert shares == pytest.approx([0.25, 0.5], abs=0.03)


# The network.


def test_a_head_is_one_hidden_layer_on_normalised_features() -> None:
    student = build_student(frozen_toy.STUDENT, 3, 10)
    assert isinstance(student, HeadStudent)
    mean, deviation = torch.rand(10), torch.rand(10) + 0.5
    student.normalise_by(mean, deviation)
    features = torch.rand(4, 10)
    logits, unit = student(features)
    hidden = student.encoder((features - mean) / deviation)
    assert hidden.shape == (4, 8 * frozen_toy.STUDENT.width)
    torch.testing.assert_close(logits, student.classifier(hidden))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4))
    copy = frozen_copy(build_student(frozen_toy.STUDENT, 3, 10))
    unpack(pack(student), copy)
    torch.testing.assert_close(copy.classify(features), logits)


def test_statistics_are_those_of_all_features_and_bound_what_hardly_varies() -> None:
    features = torch.randn(50, 6) * torch.tensor([1.0, 2, 3, 4, 100, 0])
    parts = [feature_sums(part.half()) for part in features.split(20)]
    mean, deviation = feature_statistics(torch.stack(parts).sum(0))
    torch.testing.assert_close(mean.float(), features.half().float().mean(0), atol=1e-3, rtol=1e-3)
    expected = features.half().double().std(0, correction=0)
    torch.testing.assert_close(deviation[3:5], expected[3:5], atol=1e-2, rtol=1e-3)
    assert deviation[5] == deviation.max() / 100


def test_rows_by_features_are_divided_like_rows_of_pixels() -> None:
    rows = frozen_toy.frozen(toy.toy(40)).rows
    assert rows.features is not None
    part = part_of(rows, 1, 2)
    index = torch.nonzero(rows.numbers % 2 == 1)[:, 0]
    assert torch.equal(part.take(torch.arange(len(part)), torch.device("cpu")), rows.features[index])


# Training.


def test_it_learns() -> None:
    settings = {"epochs": 12, "warmup_epochs": 4, "learning_rate": 0.05}
    history = frozen_toy.history(Mesh(), settings, {"count": 240})
    assert history[-1]["test/accuracy"] > 0.45  # 0.25 by chance, on random features
    assert {"criterion/label_free", "criterion/stability"} <= set(history[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def pair(folder: Path) -> list[list[dict[str, Any]]]:
    return run_world(2, "frozen_toy.world_of_two", SETTINGS, DATA, str(folder))


@pytest.fixture(scope="module")
def alone() -> list[dict[str, Any]]:
    return frozen_toy.history(Mesh(), SETTINGS, DATA)


def test_one_process_and_two_give_the_same_history(
    alone: list[dict[str, Any]], pair: list[list[dict[str, Any]]]
) -> None:
    assert alone[-1]["contrast/a"] > 0
    for answer in pair:
        toy.same(alone, answer, tolerance=1e-4)


def test_a_resumed_run_equals_one_that_was_left_alone(alone: list[dict[str, Any]], tmp_path: Path) -> None:
    problem = frozen_toy.frozen(toy.toy(**DATA))
    state, rows = toy.start(problem, Mesh(), student=frozen_toy.STUDENT, **SETTINGS)
    for epoch in toy.fit(state, rows, problem.scored, Mesh(), coreg):
        if epoch.number == 1:
            checkpoint.save(state, Folder.at(tmp_path), "toy", Mesh())
            break
    saved = checkpoint.newest(Folder.at(tmp_path))
    assert saved is not None
    toy.same(frozen_toy.resumed(SETTINGS, DATA, saved), alone)


def test_a_checkpoint_of_two_is_resumed_alone(pair: list[list[dict[str, Any]]], folder: Path) -> None:
    again = frozen_toy.resumed(SETTINGS, DATA, Folder.at(folder) / "epoch-000002")
    toy.same(pair[0], again, tolerance=1e-4)


def test_heads_do_not_go_on_from_whole_networks(folder: Path, pair: list[list[dict[str, Any]]]) -> None:
    state, _ = toy.start(toy.toy(**DATA), Mesh(), **SETTINGS)
    with pytest.raises(UserError, match="set the student section alike"):
        checkpoint.resume(state, Folder.at(folder) / "epoch-000002", Mesh())


# A run folder.


def test_a_run_trains_on_the_features_in_its_folder(tmp_path: Path) -> None:
    data = toy.toy(120)
    config = frozen_toy.prepared(tmp_path / "run", data, method=toy.method(epochs=3))
    history = [epoch.metrics for epoch in train(config, Mesh(), coreg)]
    assert len(history) == 3
    mapped = frozen_toy.prepared(
        tmp_path / "mapped", data, method=toy.method(epochs=3), cluster={"memory_share": 1e-12}
    )
    toy.same([epoch.metrics for epoch in train(mapped, Mesh(), coreg)], history)


def test_features_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    config = frozen_toy.prepared(tmp_path / "run", toy.toy(60))
    run = RunFolder.at(config.output)
    task = Task.read(config, run)
    manifest = run.read_features_manifest()
    assert manifest is not None
    run.write_features_manifest(replace(manifest, seed=manifest.seed + 1))  # views by another run's seed
    assert Task.read(config, run).fingerprint != task.fingerprint
    run.write_features_manifest(manifest)
    assert Task.read(config, run) == task


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("frozen_views", 8, "views 4, not 8"),
        ("name", "test_resnet", "name test_efficientnet, not test_resnet"),
        ("resolution", 16, "resolution 12, not 16"),
        ("flip", True, "flip False, not True"),
        ("views", "hole", "policy randaugment, not hole"),
    ],
)
def test_features_of_another_backbone_or_of_other_views_are_refused(
    tmp_path: Path, setting: str, value: Any, message: str
) -> None:
    config = frozen_toy.prepared(tmp_path / "run", toy.toy(20))
    student = StudentConfig.model_validate({**config.student.model_dump(), setting: value})
    other = config.model_copy(update={"student": student})
    with pytest.raises(UserError, match=f"holds features of another backbone or of other views .*{message}.*remove"):
        Task.read(other, RunFolder.at(config.output))


def test_a_run_without_its_features_says_so(tmp_path: Path) -> None:
    config = toy.prepare_run(tmp_path / "run", toy.toy(20), student=frozen_toy.STUDENT)
    with pytest.raises(UserError, match="has no features/; give the command coreg-ray pipeline"):
        list(train(config, Mesh(), coreg))
