"""What is waited for reaches the terminal once nothing has moved for a minute, and rarely after that."""

from __future__ import annotations

import time

import pytest

from coreg_ray.cluster import waiting
from coreg_ray.cluster.chunks import one_by_one
from coreg_ray.cluster.waiting import Patience, Shortage

SHORT = Shortage([({"CPU": 1.0, "GPU": 1.0}, 2)], {"CPU": 4.0, "memory": 1e9}, {"CPU": 1.0})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_says_what_is_wanted_and_what_there_is() -> None:
    words = "2 x (1 CPU, 1 GPU) wanted; the cluster has 4 CPU (1 free), no GPU"
    assert SHORT.words() == words
    clock = Clock()
    patience = Patience(clock)
    clock.now = 61
    told = patience.look(lambda: SHORT)
    assert told.startswith(f"nothing has moved for 61 s: waiting for resources, {words}; add nodes")


def test_after_a_minute_once_and_then_rarely() -> None:
    clock = Clock()
    patience = Patience(clock)
    told = []
    for clock.now in range(0, 1500, 5):
        if patience.look(lambda: SHORT):
            told.append(clock.now)
    assert told == [60, 660, 1260]
    other = Shortage([({"CPU": 9.0}, 1)], {}, {})
    patience.moved()
    for clock.now in range(1500, 1600, 5):
        assert not patience.look(lambda: SHORT)  # it moved, and waits for the same again
        if patience.look(lambda: other):
            told.append(clock.now)
    assert told[3:] == [1555]  # a minute after 1495


def test_work_that_moves_or_asks_for_nothing_is_left_in_peace() -> None:
    clock = Clock()
    patience = Patience(clock)
    for clock.now in range(0, 500, 5):
        patience.moved()
        assert not patience.look(lambda: pytest.fail("the cluster was asked"))
    clock.now = 1000
    assert not patience.look(lambda: None)
    patience.like = ({"CPU": 2.0},)  # a neighbour's wants are not ours
    assert not patience.look(lambda: SHORT)
    patience.like = ({"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0})
    assert patience.look(lambda: SHORT)


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_says_what_it_is_asked_for_in_vain() -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    held = ray.remote(num_gpus=3, num_cpus=1)(one_by_one).remote(len, [])
    group = placement_group([{"CPU": 63}] * 2)
    try:
        deadline = time.monotonic() + 600
        ours = [({"CPU": 1.0, "GPU": 3.0}, 1), ({"CPU": 63.0}, 2)]  # beside what tests before may still ask for
        while not all(wanted in (short := waiting.unmet() or Shortage([], {}, {})).asked for wanted in ours):
            assert time.monotonic() < deadline, short
            time.sleep(0.2)
        assert short.there["CPU"] == 4.0
    finally:
        ray.cancel(held)
        remove_placement_group(group)
