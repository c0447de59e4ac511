"""What a command waits for, said on the terminal when nothing has moved for a minute, and rarely after that.

Ray waits in silence for resources that a cluster does not have, or that others hold: an autoscaler may bring them, a
neighbour's job may end. So while a command runs, a thread looks now and then at what tasks, actors and groups of
workers ask the cluster for and have not got. Work that goes on says so with `moved`: what is asked for in vain is told
only when nothing has moved for a minute.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray

log = logging.getLogger(__name__)

AFTER_S = 60.0
_AGAIN_S = 600.0
_LOOK_EVERY_S = 5.0
_REMEDY = (
    "add nodes, wait for others to end, or ask for less (annotator.num_cpus, annotator.num_gpus, --actors, "
    "--num_gpus, cluster.resources_per_worker)"
)
Bundle = dict[str, float]


@dataclass(frozen=True)
class Shortage:
    """What is asked for and has not been given.

    Attributes:
        asked: resources, and how many times. there: of all nodes. free: of these, what nobody holds.
    """

    asked: list[tuple[Bundle, int]]
    there: Bundle
    free: Bundle

    def words(self) -> str:
        """For a person, e.g. `2 x (1 CPU, 1 GPU) wanted; the cluster has 4 CPU (0 free), no GPU`."""
        asked = ", ".join(f"{count} x ({_listed(bundle)})" for bundle, count in self.asked)
        names = sorted({name for bundle, _ in self.asked for name in bundle})
        there = ", ".join(
            f"{self.there[name]:g} {name} ({self.free.get(name, 0.0):g} free)" if self.there.get(name) else f"no {name}"
            for name in names
        )
        return f"{asked} wanted; the cluster has {there}"


@dataclass
class Patience:
    """When there is something to say.

    Attributes:
        clock: seconds that pass evenly. like: what the command itself waits for; empty: whatever the cluster is asked
            for.
    """

    clock: Callable[[], float] = time.monotonic
    like: tuple[Bundle, ...] = ()
    _moved: float = field(init=False)
    _told: dict[str, float] = field(default_factory=dict)  # what was asked for -> when that was told

    def __post_init__(self) -> None:
        self._moved = self.clock()

    def moved(self) -> None:
        """Something has come of the work."""
        self._moved = self.clock()

    def look(self, unmet: Callable[[], Shortage | None]) -> str:
        """What to tell a person now; empty where there is nothing. `unmet` is asked only when it matters."""
        now = self.clock()
        shortage = unmet() if now - self._moved >= AFTER_S else None
        if shortage is None or not (ours := [(b, n) for b, n in shortage.asked if not self.like or b in self.like]):
            return ""
        kind = " ".join(sorted(_listed(bundle) for bundle, _ in ours))
        if now - self._told.get(kind, -math.inf) < _AGAIN_S:
            return ""
        self._told[kind] = now
        words = Shortage(ours, shortage.there, shortage.free).words()
        return f"nothing has moved for {now - self._moved:.0f} s: waiting for resources, {words}; {_REMEDY}"


_patience = Patience()


def moved() -> None:
    """Say that work goes on; costs nothing."""
    _patience.moved()


@contextmanager
def waiting_for(*bundles: Bundle) -> Iterator[None]:
    """For as long as the block lasts only what looks like one of `bundles` is what this command waits for."""
    _patience.like = tuple({name: amount for name, amount in bundle.items() if amount} for bundle in bundles)
    _patience.moved()
    try:
        yield
    finally:
        _patience.like = ()
        _patience.moved()


@contextmanager
def watched() -> Iterator[None]:
    """Look at the cluster for as long as the block lasts, and say what it waits for."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            if ray.is_initialized() and (told := _patience.look(unmet)):
                log.warning("%s", told)

    moved()
    threading.Thread(target=look, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def unmet() -> Shortage | None:
    """What tasks, actors and placement groups of the cluster ask for in vain at this moment; None: nothing, or nobody
    can say.
    """
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status  # what `ray status` shows

        demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
        counted: Counter[tuple[tuple[str, float], ...]] = Counter()
        for group in (*demands.ray_task_actor_demand, *demands.placement_group_demand):
            for entry in group.bundles_by_count:
                counted[_plain(entry.bundle)] += entry.count
        asked = [(dict(bundle), count) for bundle, count in counted.items() if bundle]
        return Shortage(asked, ray.cluster_resources(), ray.available_resources()) if asked else None
    except Exception as error:  # a courtesy must not end a command, and this interface of Ray's may change
        log.debug("nobody can say what the cluster is asked for: %s", error)
        return None


def _plain(bundle: Bundle) -> tuple[tuple[str, float], ...]:
    """Names and amounts, without those that Ray adds for its own use."""
    return tuple(sorted((name, float(n)) for name, n in bundle.items() if "_group_" not in name and ":" not in name))


def _listed(bundle: Bundle) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
