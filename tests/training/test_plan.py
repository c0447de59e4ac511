"""Which rows are seen when: each labelled row once, unlabelled ones in turn, manual labels in every batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from coreg_ray.pure.rng import generator
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.plan import Plan, parted, split_plan, whole_plan
from coreg_ray.training.rows import Rows, make_rows

CLASSES = 3


def rows_of(count: int, full: int = 0, trusted: int = 0) -> Rows:
    """The first `full` rows have all classes as candidates, the last `trusted` ones a manual label."""
    candidates = torch.zeros(count, CLASSES, dtype=torch.bool)
    candidates[:, 0] = True
    candidates[:full] = True
    manual = torch.arange(count) >= count - trusted
    return make_rows(torch.arange(count), torch.zeros(count, 2, 2, 3, dtype=torch.uint8), candidates, manual)


def planned(
    rows: Rows, clean: Tensor, batch: int = 8, trusted_share: float = 0.25, mesh: Mesh | None = None, epoch: int = 3
) -> Plan:
    return split_plan(rows, clean, 0.5, trusted_share, 0, 1, epoch, batch, mesh or Mesh())


def seen(batches: list[Tensor]) -> Counter[int]:
    return Counter(row for batch in batches for row in batch.tolist())


class Team(Mesh):
    """One replica of several, each of which is a thread."""

    def __init__(self, replica: int, replicas: int, meeting: Meeting) -> None:
        super().__init__()
        self.replica, self.replicas, self.meeting = replica, replicas, meeting

    def team_max(self, tensor: Tensor) -> Tensor:
        return self.meeting.collect(self.replica, tensor).amax(0)

    def team_sum(self, tensor: Tensor) -> Tensor:
        return self.meeting.collect(self.replica, tensor).sum(0)


class Meeting:
    """Where the replicas wait for each other; who waits in vain fails."""

    def __init__(self, replicas: int) -> None:
        self.messages: dict[int, Tensor] = {}
        self.barrier = Barrier(replicas, timeout=600)

    def collect(self, replica: int, tensor: Tensor) -> Tensor:
        self.messages[replica] = tensor
        self.barrier.wait()
        everything = torch.stack([self.messages[member] for member in sorted(self.messages)])
        self.barrier.wait()
        return everything


def team_plans(plan: Callable[[Mesh, int], Plan], replicas: int) -> list[Plan]:
    """The plan of every replica of one team."""
    meeting = Meeting(replicas)
    with ThreadPoolExecutor(replicas) as pool:
        return list(pool.map(lambda replica: plan(Team(replica, replicas, meeting), replica), range(replicas)))


def some_clean(count: int, clean: int) -> Tensor:
    """Clean probabilities of which `clean` exceed the threshold; a half does not."""
    scores = torch.full((count,), 0.5)
    scores[torch.randperm(count, generator=generator(5))[:clean]] = 0.51
    return scores


@pytest.mark.parametrize(("count", "batch"), [(40, 8), (41, 8), (7, 8), (8, 8), (1, 8)])
def test_warm_up_sees_every_row_once(count: int, batch: int) -> None:
    plan = whole_plan(rows_of(count, full=3), 0, 0, 0, batch, Mesh())
    assert seen(plan.labelled) == dict.fromkeys(range(count), 1)
    assert plan.steps == len(plan.unlabelled) == math.ceil(count / batch)
    assert not any(len(rows) for rows in plan.unlabelled)
    assert plan.team_unlabelled == [len(rows) for rows in plan.labelled]
    assert plan.team_labelled == [int((rows >= min(3, count)).sum()) for rows in plan.labelled]


@pytest.mark.parametrize(("count", "clean", "batch"), [(50, 30, 8), (50, 32, 8), (50, 1, 8), (50, 50, 8), (50, 45, 2)])
def test_an_epoch_sees_every_labelled_row_once(count: int, clean: int, batch: int) -> None:
    scores = some_clean(count, clean)
    plan = planned(rows_of(count), scores, batch)
    assert seen(plan.labelled) == dict.fromkeys(torch.nonzero(scores > 0.5)[:, 0].tolist(), 1)
    assert plan.steps == math.ceil(clean / batch)
    assert [len(rows) for rows in plan.labelled[:-1]] == [batch] * (plan.steps - 1)
    assert plan.team_labelled == [len(rows) for rows in plan.labelled]
    assert plan.team_unlabelled == [len(rows) for rows in plan.unlabelled]


def test_unlabelled_rows_are_cycled_evenly() -> None:
    scores = some_clean(60, 45)  # 15 unlabelled rows, six steps of eight
    plan = planned(rows_of(60), scores)
    assert all(len(rows) == 8 == len(set(rows.tolist())) for rows in plan.unlabelled)
    counts = seen(plan.unlabelled)
    assert set(counts) == set(torch.nonzero(scores <= 0.5)[:, 0].tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_fewer_unlabelled_rows_than_a_batch_are_seen_once_a_step() -> None:
    plan = planned(rows_of(40), some_clean(40, 37))
    assert [len(rows) for rows in plan.unlabelled] == [3] * plan.steps


def test_without_unlabelled_rows_the_labelled_ones_train_alone() -> None:
    plan = planned(rows_of(20), torch.ones(20))
    assert [len(rows) for rows in plan.labelled] == [8, 8, 4]
    assert plan.team_unlabelled == [0, 0, 0]


def test_without_a_clean_row_there_is_no_step() -> None:
    plan = planned(rows_of(20), torch.zeros(20))
    assert (plan.steps, plan.labelled, plan.unlabelled) == (0, [], [])
    assert plan.rounds(4) == [range(0)] * 4


def test_manual_labels_take_their_share_of_every_batch() -> None:
    rows, scores = rows_of(60, trusted=5), some_clean(60, 30)
    plan = planned(rows, scores, trusted_share=0.25)
    manual = [batch[batch >= 55] for batch in plan.labelled]
    assert [len(set(batch.tolist())) for batch in manual] == [2] * plan.steps
    counts = seen(manual)
    assert set(counts) == set(range(55, 60))
    assert max(counts.values()) - min(counts.values()) <= 1
    others = seen([batch[batch < 55] for batch in plan.labelled])
    assert others == dict.fromkeys(torch.nonzero((scores > 0.5) & ~rows.trusted)[:, 0].tolist(), 1)
    assert not any((batch >= 55).any() for batch in plan.unlabelled)
    assert max(len(batch) for batch in plan.labelled) == 8


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_manual_labels_always_take_part(share: float) -> None:
    plan = planned(rows_of(60, trusted=5), some_clean(60, 30), trusted_share=share)
    assert all((batch >= 55).sum() == 1 for batch in plan.labelled)


def test_manual_labels_alone_are_a_labelled_side() -> None:
    plan = planned(rows_of(30, trusted=11), torch.zeros(30))
    assert seen(plan.labelled) == dict.fromkeys(range(19, 30), 1)
    assert [len(batch) for batch in plan.labelled] == [8, 3]


def test_more_manual_labels_than_their_share() -> None:
    plan = planned(rows_of(60, trusted=40), torch.ones(60), trusted_share=1.0)
    assert all((batch < 20).sum() == 1 for batch in plan.labelled)
    assert seen([batch[batch < 20] for batch in plan.labelled]) == dict.fromkeys(range(20), 1)


@pytest.mark.parametrize(("clean", "batch", "share"), [(1, 16, 0.25), (10, 16, 0.25), (30, 16, 0.25), (30, 2, 0.9)])
def test_an_epoch_is_long_enough_for_all_manual_labels(clean: int, batch: int, share: float) -> None:
    rows, scores = rows_of(200, trusted=101), some_clean(99, clean)
    plan = planned(rows, torch.cat([scores, torch.ones(101)]), batch, share)
    of_trusted = 4 if batch == 16 else 1
    assert plan.steps == math.ceil(101 / of_trusted)
    manual = seen([labelled[labelled >= 99] for labelled in plan.labelled])
    assert set(manual) == set(range(99, 200))
    assert max(manual.values()) <= 2
    others = [labelled[labelled < 99] for labelled in plan.labelled]
    assert [len(set(labelled.tolist())) for labelled in others] == [min(clean, batch - of_trusted)] * plan.steps
    counts = seen(others)
    assert set(counts) == set(torch.nonzero(scores > 0.5)[:, 0].tolist())
    assert max(counts.values()) - min(counts.values()) <= 1
    assert max(len(labelled) for labelled in plan.labelled) <= batch


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 30])
def test_rounds_cover_all_steps_evenly(count: int) -> None:
    plan = planned(rows_of(80), some_clean(80, 50))
    assert plan.steps == 7
    rounds = plan.rounds(count)
    assert len(rounds) == count
    assert [step for part in rounds for step in part] == list(range(7))
    assert max(map(len, rounds)) - min(map(len, rounds)) <= 1


def test_the_order_is_a_function_of_seed_network_epoch_and_replica() -> None:
    rows, clean = rows_of(40), torch.ones(40)

    def order(seed: int, network: int, epoch: int, replica: int) -> tuple[int, ...]:
        mesh = Mesh()
        mesh.replica = replica
        return tuple(torch.cat(split_plan(rows, clean, 0.5, 0, seed, network, epoch, 8, mesh).labelled).tolist())

    assert order(0, 0, 3, 0) == order(0, 0, 3, 0)
    variants = {order(0, 0, 3, 0), order(1, 0, 3, 0), order(0, 1, 3, 0), order(0, 0, 4, 0), order(0, 0, 3, 1)}
    assert len(variants) == 5
    assert tuple(torch.cat(whole_plan(rows, 0, 0, 3, 8, Mesh()).labelled).tolist()) not in variants


CLEAN_OF_REPLICAS = [(20, 20), (21, 3), (30, 0), (1, 30), (7, 11, 13), (0, 0), (0, 5, 0)]


@pytest.mark.parametrize("clean", CLEAN_OF_REPLICAS)
@pytest.mark.parametrize("batch", [7, 8])
def test_a_team_takes_the_steps_of_one_worker(clean: tuple[int, ...], batch: int) -> None:
    rows = rows_of(32, full=2)
    scores = [some_clean(32, count) for count in clean]
    plans = team_plans(lambda mesh, replica: planned(rows, scores[replica], batch, mesh=mesh), len(clean))
    steps = math.ceil(sum(clean) / batch)
    for plan, score in zip(plans, scores, strict=True):
        assert plan.steps == steps
        assert seen(plan.labelled) == dict.fromkeys(torch.nonzero(score > 0.5)[:, 0].tolist(), 1)
    check_counts(plans, batch)


@pytest.mark.parametrize("sizes", [(20, 20), (21, 3), (1, 30), (7, 11, 13)])
def test_a_team_warms_up_in_the_steps_of_one_worker(sizes: tuple[int, ...]) -> None:
    plans = team_plans(lambda mesh, replica: whole_plan(rows_of(sizes[replica]), 0, 0, 0, 8, mesh), len(sizes))
    for plan, size in zip(plans, sizes, strict=True):
        assert plan.steps == math.ceil(sum(sizes) / 8)
        assert seen(plan.labelled) == dict.fromkeys(range(size), 1)
        assert plan.team_unlabelled == [sum(len(other.labelled[s]) for other in plans) for s in range(plan.steps)]
        assert plan.room == max(len(rows) for other in plans for rows in other.labelled)


def test_a_team_shares_out_its_manual_labels() -> None:
    """16 labelled rows a batch, a quarter of them from the 3 + 9 manual labels."""
    given = (3, 9)
    plans = team_plans(
        lambda mesh, replica: planned(rows_of(60, trusted=given[replica]), torch.ones(60), 16, mesh=mesh), 2
    )
    for step in range(plans[0].steps):
        manual = [int((plan.labelled[step] >= 60 - count).sum()) for plan, count in zip(plans, given, strict=True)]
        assert manual == [1, 3]
    check_counts(plans, 16)


@pytest.mark.parametrize("given", [(40, 13), (53, 0), (1, 2, 50)])
@pytest.mark.parametrize("clean", [1, 20])
def test_a_team_sees_all_its_manual_labels_in_the_steps_of_one_worker(given: tuple[int, ...], clean: int) -> None:
    def plan(mesh: Mesh, replica: int) -> Plan:
        scores = torch.zeros(80)
        scores[: clean if replica == 0 else 0] = 1.0  # the others have no clean row
        return planned(rows_of(80, trusted=given[replica]), scores, 16, mesh=mesh)

    plans = team_plans(plan, len(given))
    for own, count in zip(plans, given, strict=True):
        assert own.steps == math.ceil(53 / 4)
        assert set(seen([batch[batch >= 80 - count] for batch in own.labelled])) == set(range(80 - count, 80))
    assert set(seen([batch[batch < 80 - given[0]] for batch in plans[0].labelled])) == set(range(clean))
    for step in range(plans[0].steps):
        assert plans[0].team_labelled[step] == sum(len(own.labelled[step]) for own in plans)
        assert plans[0].team_labelled[step] <= 16 + 2 * (len(plans) - 1)


def check_counts(plans: list[Plan], batch: int) -> None:
    """What each replica was told about its team is true, and the team's batches have the size asked for."""
    spare = len(plans) - 1  # parts are rounded up
    for plan in plans:
        for side, told in (("labelled", plan.team_labelled), ("unlabelled", plan.team_unlabelled)):
            total = [sum(len(getattr(other, side)[step]) for other in plans) for step in range(plan.steps)]
            assert told == total
            assert max(total, default=0) <= batch + 2 * spare
            if side == "labelled":
                assert all(count >= batch - spare for count in total[:-1])
        assert plan.room == max((len(rows) for other in plans for rows in other.labelled), default=0)


def test_a_replica_that_has_rows_has_one_in_the_first_step() -> None:
    """There a network learns which of its parameters get a gradient."""
    scores = [some_clean(64, 1), torch.ones(64)]
    plans = team_plans(lambda mesh, replica: planned(rows_of(64), scores[replica], mesh=mesh), 2)
    assert [len(plan.labelled[0]) for plan in plans] == [1, 8]


def test_a_whole_plan_is_parted_within_its_steps_and_counted_over_the_team() -> None:
    rows, masks = [rows_of(50, full=20), rows_of(9)], [torch.arange(50) % 3 > 0, torch.arange(9) > 7]

    def plan(mesh: Mesh, replica: int) -> Plan:
        return parted(whole_plan(rows[replica], 0, 0, 1, 16, mesh), masks[replica], mesh)

    plans = team_plans(plan, 2)
    for one, mask in zip(plans, masks, strict=True):
        assert one.steps == 4
        assert sorted(torch.cat(one.labelled).tolist()) == torch.nonzero(mask)[:, 0].tolist()
        assert sorted(torch.cat(one.unlabelled).tolist()) == torch.nonzero(~mask)[:, 0].tolist()
        assert one.team_labelled == [sum(len(other.labelled[step]) for other in plans) for step in range(4)]
        assert one.team_unlabelled == [sum(len(other.unlabelled[step]) for other in plans) for step in range(4)]
        assert one.room == max(len(batch) for other in plans for batch in other.labelled)
