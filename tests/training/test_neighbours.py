"""Neighbours as a third voice: which rows they are, what they say, where that counts, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import finished_run
import frozen_toy
import pytest
import torch
import toy
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.config import Config, MethodConfig
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.methods import coreg
from coreg_ray.pure import purify
from coreg_ray.pure.candidates import synthetic_candidates
from coreg_ray.pure.rng import generator
from coreg_ray.pure.soft_labels import dense_shares, largest_shares, mean_shares
from coreg_ray.run.folder import RunFolder
from coreg_ray.training import neighbours as module
from coreg_ray.training.assess import Opinion, assess, swap_opinions
from coreg_ray.training.embeddings import refuse_lacking, space_of, stored_embeddings
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.neighbours import nearest
from coreg_ray.training.plan import split_plan
from coreg_ray.training.soft import Soft
from coreg_ray.training.steps import Batch
from coreg_ray.training.worker import Task, load_data, train

CPU = torch.device("cpu")


def points(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 12, generator=generator(seed)).half()


def by_hand(space: Tensor, count: int) -> list[set[int]]:
    unit = F.normalize(space.float(), dim=1)
    order = (unit @ unit.T).fill_diagonal_(-9).argsort(dim=1, descending=True)
    return [set(row) for row in order[:, :count].tolist()]


class Replica(Mesh):
    """One of several replicas of a network, each in a thread of its own."""

    def __init__(self, replica: int, posts: list[Any], barrier: threading.Barrier) -> None:
        super().__init__()
        self.replica, self.replicas, self._posts, self._barrier = replica, len(posts), posts, barrier

    def team_stack(self, tensor: Tensor) -> Tensor:
        self._posts[self.replica] = tensor
        self._barrier.wait(30)
        together = torch.stack(list(self._posts))
        self._barrier.wait(30)
        return together


def in_replicas(work: Any, replicas: int) -> list[Any]:
    """What `work` gives to each of several replicas at once."""
    posts, barrier, answers = [None] * replicas, threading.Barrier(replicas), [None] * replicas

    def one(replica: int) -> None:
        answers[replica] = work(Replica(replica, posts, barrier))

    threads = [threading.Thread(target=one, args=(replica,)) for replica in range(replicas)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(answer is not None for answer in answers)
    return answers


@pytest.mark.parametrize(("keys", "queries"), [(4096, 512), (7, 5)])
def test_neighbours_are_the_nearest_others_whatever_the_blocks(
    keys: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEYS", keys)
    monkeypatch.setitem(module.QUERIES, "cpu", queries)
    space = points(31)
    near = nearest(space * 3, 4, Mesh())  # by cosine: lengths do not count
    assert near is not None
    assert near.dtype == torch.int32
    assert [set(row) for row in near.tolist()] == by_hand(space, 4)
    assert all(row not in line for row, line in enumerate(near.tolist()))


def test_a_team_has_the_neighbours_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYS", 6)
    space = points(20)
    parts = [space[:13], space[13:]]  # numbered in the order of replicas
    parts_of = in_replicas(lambda mesh: nearest(parts[mesh.replica], 3, mesh), 2)
    assert [set(row) for row in torch.cat(parts_of).tolist()] == by_hand(space, 3)


def test_few_rows_have_few_neighbours_and_one_alone_has_none() -> None:
    near = nearest(points(3), 10, Mesh())
    assert near is not None
    assert near.sort(dim=1).values.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert nearest(points(1), 10, Mesh()) is None


@pytest.mark.parametrize("num_classes", [4, 16, 40])
def test_what_neighbours_say_is_the_mean_of_their_predictions(num_classes: int) -> None:
    probs = torch.randn(6, 3, num_classes, generator=generator(1)).mul(2).softmax(2)
    shares = [largest_shares(one) for one in probs]
    classes, largest = (torch.stack(part) for part in zip(*shares, strict=True))
    expected = torch.stack([dense_shares(*one, num_classes).mean(0) for one in shares])
    torch.testing.assert_close(mean_shares(classes, largest, num_classes), expected, atol=1e-6, rtol=1e-3)


def test_opinions_bring_the_predictions_of_the_whole_team() -> None:
    probs = torch.randn(9, 4, generator=generator(2)).softmax(1)
    parts = [slice(0, 5), slice(5, 9)]

    def swapped(mesh: Mesh) -> Opinion:
        mine = probs[parts[mesh.replica]]
        opinion = Opinion(torch.ones(len(mine)), torch.ones(len(mine)).half(), Soft(*largest_shares(mine)))
        return swap_opinions({0: opinion, 1: opinion}, mesh)[0]

    for opinion in in_replicas(swapped, 2):
        assert opinion.predictions is not None
        dense = opinion.predictions.dense(torch.arange(9), 4, CPU)
        torch.testing.assert_close(dense, probs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("views", [1, 2])
def test_they_are_a_third_of_the_labels_of_doubtful_rows_and_nothing_of_the_others(views: int) -> None:
    data = toy.toy(count=40)
    data.rows.trusted[:4] = True
    state, rows = toy.start(data, Mesh(), batch_size=8, warmup_epochs=1, neighbours=3, weak_views=views, temperature=1)
    opinion = assess(state, state.learners[1], rows, Mesh(), 2)
    assert opinion.predictions is not None
    sound = (torch.arange(len(rows)) < 20).float() * 0.9
    plan = split_plan(rows, sound, 0.5, 0.25, 0, 0, 2, 8, Mesh())
    batch, b = Batch(rows, plan, 0, 2), len(plan.labelled[0])
    images = rows.take(torch.cat([batch.labelled, batch.unlabelled]), CPU)
    learner, without = state.learners[0], Opinion(sound, opinion.soft_labels)
    heard = Opinion(sound, opinion.soft_labels, opinion.predictions)
    before, _ = coreg.pseudo_labels(state, learner, batch, without, images)
    after, _ = coreg.pseudo_labels(state, learner, batch, heard, images)
    assert torch.equal(after[:b], before[:b])  # what is sound, and manual labels among it
    assert rows.trusted[batch.labelled].any()
    assert not rows.trusted[batch.unlabelled].any()
    assert state.neighbours is not None
    near = state.neighbours[batch.unlabelled].long()
    say = torch.stack([opinion.predictions.dense(line, 4, CPU).mean(0) for line in near])
    torch.testing.assert_close(after[b:], purify.guess(before[b:], before[b:], say), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after[b:], before[b:], atol=1e-3)


def test_they_have_no_say_where_nobody_asks() -> None:
    state, rows = toy.start(toy.toy(count=20), Mesh())
    assert state.neighbours is None
    assert assess(state, state.learners[0], rows, Mesh(), 2).predictions is None


def test_who_has_no_use_for_them_and_who_has_no_space_is_told() -> None:
    with pytest.raises(ValidationError, match=r"neighbours=5 with method.kind=elr: it makes no labels .* neighbours=0"):
        MethodConfig.model_validate({"kind": "elr", "neighbours": 5})
    votes = {
        "source": {"kind": "digits"},
        "annotator": {"kind": "votes", "votes": "v.csv"},
        "method": {"neighbours": 5},
    }
    with pytest.raises(ValidationError, match=r"neighbours=5 with annotator.kind=votes: it stores no embeddings"):
        Config.model_validate(votes)
    Config.model_validate({**votes, "student": {"name": "resnet18", "frozen": True}})
    Config.model_validate({**votes, "further_annotators": [{"model": "embedded"}]})


def annotated(folder: Path, **settings: Any) -> tuple[Config, RunFolder]:
    """A run folder as annotation leaves it, with embeddings."""
    run = RunFolder.at(folder)
    config = finished_run.run_config(run, finished_run.NAMES, **settings)
    ids, answers = finished_run.annotated_split(run, "pool", 60)
    sets = synthetic_candidates(answers, len(finished_run.NAMES), 0.2, 0.1, generator(3))
    finished_run.candidates(run, ids, sets, finished_run.NAMES)
    finished_run.annotated_split(run, "test", 20)
    return config, run


def near_in_run(config: Config, run: RunFolder) -> tuple[Tensor, Tensor]:
    rows, _ = load_data(config, run, Task.read(config, run), Mesh())
    space = space_of(config, run, rows)
    assert space is not None
    return rows.numbers, space


def test_networks_on_pixels_have_neighbours_in_the_annotators_space(tmp_path: Path) -> None:
    method = toy.method(epochs=3, warmup_epochs=1, neighbours=4)
    config, run = annotated(tmp_path, method=method.model_dump())
    numbers, space = near_in_run(config, run)
    (folder,) = run.read_used("pool")
    table = finished_run.parquet(folder)
    stored = dict(zip(row_numbers(table["image_id"].to_pylist()).tolist(), table["embedding"].to_pylist(), strict=True))
    assert 0 < len(numbers) < len(stored)  # some are held out
    assert space.tolist() == [stored[number] for number in numbers.tolist()]
    refuse_lacking(config, run)
    history = [epoch.metrics for epoch in train(config, Mesh(), coreg)]
    assert history[-1]["phase"] == "coreg"


def test_heads_have_neighbours_among_their_features(tmp_path: Path) -> None:
    config = frozen_toy.prepared(tmp_path, toy.toy(count=40), method=toy.method(neighbours=4))
    run = RunFolder.at(tmp_path)
    rows, _ = load_data(config, run, Task.read(config, run), Mesh())
    assert rows.features is not None
    space = space_of(config, run, rows)
    assert space is not None
    assert torch.equal(space, rows.features[:, 0])
    refuse_lacking(config, run)  # no annotator has embeddings, and none is asked for any


def test_annotations_without_embeddings_or_with_too_few_are_refused_before_training(tmp_path: Path) -> None:
    config = toy.prepare_run(tmp_path / "bare", toy.toy(count=20), method=toy.method(neighbours=4))
    with pytest.raises(UserError, match=r"annotations/pool holds no embeddings, which method.neighbours"):
        refuse_lacking(config, RunFolder.at(tmp_path / "bare"))
    with pytest.raises(UserError, match="holds no embeddings"):
        next(iter(train(config, Mesh(), coreg)))
    _, run = annotated(tmp_path / "few")
    with pytest.raises(UserError, match=r"lacks the embeddings of 1 of 2 images; annotate again"):
        stored_embeddings(run, torch.tensor([5, int(row_numbers(["pool/003.png"])[0])]))
