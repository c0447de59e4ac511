"""Pools of actors leave room for reading, wherever Ray puts them; arithmetic, without a cluster."""

from __future__ import annotations

import math
from itertools import product

import pytest

from coreg_ray.cluster.room import Room, beside_reading, copies, most_beside_reading

Node = dict[str, float]


def cpus(*amounts: float) -> list[Node]:
    return [{"CPU": amount} for amount in amounts]


@pytest.mark.parametrize(
    ("asked", "each", "nodes", "room"),
    [
        # as asked, where a CPU is left
        ((1, 1), {"CPU": 1.0}, cpus(2), Room(1, 1, 1.0)),
        ((3, 8), {"CPU": 1.0}, cpus(4), Room(3, 8, 1.0)),
        ((1, 2), {"CPU": 1.1}, cpus(2, 4), Room(1, 2, 1.1)),
        # fewer from the beginning, where there are too many
        ((4, 4), {"CPU": 1.0}, cpus(4), Room(3, 4, 1.0)),
        ((9, 9), {"CPU": 1.0}, cpus(1, 1, 1), Room(2, 9, 1.0)),
        ((9, 9), {"CPU": 0.25}, cpus(2), Room(4, 9, 0.25)),
        ((4, 4), {"CPU": 1.0, "GPU": 1.0}, [{"CPU": 4, "GPU": 4}], Room(3, 4, 1.0)),
        # smaller, where one is too large
        ((1, 1), {"CPU": 1.0}, cpus(1), Room(1, 1, 0.0)),
        ((2, 4), {"CPU": 0.5}, cpus(1), Room(1, 1, 0.0)),
        ((2, 2), {"CPU": 1.0, "GPU": 1.0}, [{"CPU": 1, "GPU": 1}], Room(1, 1, 0.0)),
        ((1, 2), {"CPU": 4.0}, cpus(4), Room(1, 2, 3.0)),
        ((1, 1), {"CPU": 1.0}, cpus(0, 1.5), Room(1, 1, 0.5)),  # a head that holds no work
        # as asked, where nothing stands in the way of reading
        ((8, 8), {"CPU": 1.0, "GPU": 1.0}, [{"CPU": 8, "GPU": 1}, {"CPU": 0}], Room(8, 8, 1.0)),
        ((8, 8), {"CPU": 0.0}, cpus(1), Room(8, 8, 0.0)),
        # and where nobody knows yet what an autoscaler will bring
        ((8, 8), {"CPU": 1.0}, cpus(0), Room(8, 8, 1.0)),
        ((1, 1), {"CPU": 1.0, "GPU": 1.0}, cpus(1), Room(1, 1, 1.0)),
    ],
)
def test_a_pool_is_what_was_asked_for_or_what_leaves_room(
    asked: tuple[int, int], each: Node, nodes: list[Node], room: Room
) -> None:
    assert beside_reading(*asked, each, nodes) == room


def can_stop_reading(actors: int, each: Node, nodes: list[Node]) -> bool:
    """Whether so many actors, on the worst nodes for it, leave no node with a whole CPU; all ways tried."""
    ways = [range(min(actors, copies(node, each)) + 1) for node in nodes]
    return any(
        sum(way) <= actors
        and all(round(node["CPU"] - n * each["CPU"], 6) < 1 for node, n in zip(nodes, way, strict=True))
        for way in product(*ways)
    )


@pytest.mark.parametrize("each", [0.25, 0.5, 1.0, 1.1, 2.0, 3.0])
def test_no_placement_takes_the_last_cpu_and_one_more_actor_could(each: float) -> None:
    amounts = (1.0, 1.5, 2.0, 3.0, 4.0)
    for few in [(a,) for a in amounts] + list(product(amounts, amounts)):
        nodes, needs = cpus(*few), {"CPU": each}
        beside = most_beside_reading(needs, nodes)
        if math.isfinite(beside):
            assert not can_stop_reading(int(beside), needs, nodes), few
            assert can_stop_reading(int(beside) + 1, needs, nodes), few
        else:
            assert not can_stop_reading(20, needs, nodes), few
        room = beside_reading(9, 9, needs, nodes)
        assert not room.cpus or not can_stop_reading(room.least, {"CPU": room.cpus}, nodes), few


def test_it_is_said_where_a_pool_is_not_what_was_asked_for() -> None:
    assert Room(2, 4, 1.0).differs(2, 1.0) == ""
    assert Room(3, 4, 1.0).differs(4, 1.0).startswith("3 at work from the beginning, with 1 CPUs each, instead of 4")
    assert "no CPU of their own, instead of 1 with 1, which would leave no CPU" in Room(1, 1, 0.0).differs(1, 1.0)
