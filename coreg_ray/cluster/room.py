"""How many actors work at once, and with how many CPUs each, so that whatever reads for them finds room beside them.

Actors hold their CPUs from beginning to end, and Ray Data starts the smallest number of a pool before anything else.
What reads, decodes and writes for them are tasks of one CPU that come and go. Where actors hold all CPUs nothing is
ever read, and both wait for ever; so a pool is laid out here to leave a whole CPU on some node, wherever Ray may put
the actors.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import ray

log = logging.getLogger(__name__)

READING_CPUS = 1.0  # of every task that reads, decodes or writes


@dataclass(frozen=True)
class Room:
    """How a pool of actors is laid out.

    Attributes:
        least, most: of them at once. cpus: that each holds; 0 where the machine's only CPU is needed for reading, so
            that both share it.
    """

    least: int
    most: int
    cpus: float

    def differs(self, least: int, cpus: float) -> str:
        """What a person is told where that is not what was asked for; empty where it is."""
        if (self.least, self.cpus) == (least, cpus):
            return ""
        holds = f"{self.cpus:g} CPUs each" if self.cpus else "no CPU of their own"
        return (
            f"{self.least} at work from the beginning, with {holds}, instead of {least} with {cpus:g}, which would "
            "leave no CPU to read images with"
        )


def leave_room(what: str, least: int, most: int, each: dict[str, float]) -> Room:
    """`beside_reading` on the nodes of this cluster. Where that is less than was asked for, `what` is told so."""
    room = beside_reading(least, most, each, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if told := room.differs(least, each["CPU"]):
        log.info("%s: %s", what, told)
    return room


def beside_reading(least: int, most: int, each: dict[str, float], nodes: list[dict[str, float]]) -> Room:
    """The pool that was asked for, or as much of it as leaves room for reading on the nodes that are there.

    Nodes that come later hold more of it, up to `most`, since Ray Data lets a pool grow. Nothing is taken away where no
    node can read yet (an autoscaler brings some), or where no node has what an actor needs.

    Args:
        least, most: actors that were asked for. each: resources of one, `CPU` among them.
        nodes: resources of each node, whoever uses them now.
    """
    beside = most_beside_reading(each, nodes)
    if beside >= least:
        return Room(least, most, each["CPU"])
    if beside >= 1:
        return Room(int(beside), most, each["CPU"])
    # One actor alone is too large. What is left beside reading where most is left; Ray counts in ten thousandths.
    rest = {**each, "CPU": 0.0}
    left = max(node.get("CPU", 0.0) for node in nodes if _holds(node, rest)) - READING_CPUS
    cpus = min(each["CPU"], math.floor(left * 10_000) / 10_000)
    return Room(1, most if cpus else 1, cpus)  # without a limit by CPUs a pool would grow to its full size


def most_beside_reading(each: dict[str, float], nodes: list[dict[str, float]]) -> float:
    """How many actors leave a CPU for reading on some node however they are placed; infinite where any number does."""
    blocking = [_to_block(node, each) for node in nodes if node.get("CPU", 0.0) >= READING_CPUS]
    return sum(blocking) - 1 if blocking else math.inf


def copies(node: dict[str, float], each: dict[str, float]) -> int:
    """How many times the resources `each` fit into those of a node; 0 where nothing is asked for."""
    # Ray counts in ten thousandths; 1 / 0.1 in floating point is a little less than 10 for `//`.
    asked = {name: round(amount * 10_000) for name, amount in each.items() if amount}
    return min((round(node.get(name, 0) * 10_000) // amount for name, amount in asked.items()), default=0)


def _to_block(node: dict[str, float], each: dict[str, float]) -> float:
    """How many actors on a node take its last whole CPU; infinite where that many find no room there."""
    if not each["CPU"]:
        return math.inf
    left = round((node["CPU"] - READING_CPUS) * 10_000)
    enough = left // round(each["CPU"] * 10_000) + 1
    return enough if copies(node, each) >= enough else math.inf


def _holds(node: dict[str, float], resources: dict[str, float]) -> bool:
    can_read = node.get("CPU", 0.0) >= READING_CPUS
    return can_read and all(node.get(name, 0.0) >= amount for name, amount in resources.items())
