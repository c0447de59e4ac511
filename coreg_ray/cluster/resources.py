"""What a cluster has: how a training run is laid over it, whether that fits, and whether all nodes see its folder."""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.train import ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from coreg_ray.cluster.room import copies
from coreg_ray.config import ClusterConfig
from coreg_ray.errors import UserError
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_SAY_EVERY_S = 30.0
_ANSWER_S = 60.0  # of a node that is asked whether it sees a folder


def scaling_config(cluster: ClusterConfig) -> ScalingConfig:
    """Ray's own scaling settings for `cluster`: GPUs when there are enough, all CPUs for a worker that is alone.

    Raises:
        UserError: `use_gpu` and `resources_per_worker` contradict each other.
    """
    nodes = nodes_with(cluster.label_selector or {})
    asked = cluster.resources_per_worker
    use_gpu = cluster.use_gpu
    if use_gpu is None:
        there = sum(node.get("GPU", 0) for node in nodes)
        use_gpu = asked["GPU"] > 0 if asked and "GPU" in asked else there >= cluster.num_workers
    if asked and "GPU" in asked and use_gpu != (asked["GPU"] > 0):
        raise UserError(
            f"cluster.use_gpu={str(use_gpu).lower()} contradicts cluster.resources_per_worker={asked}; change one"
        )
    resources = dict(asked) if asked else {}
    if not asked:
        alone = cluster.num_workers == 1 and not use_gpu
        resources["CPU"] = float(max(1, _largest_node_cpus(nodes) if alone else 1))
    if use_gpu:
        resources.setdefault("GPU", 1.0)
    return ScalingConfig(
        num_workers=cluster.num_workers,
        use_gpu=use_gpu,
        resources_per_worker=resources,
        placement_strategy="PACK",
        label_selector=cluster.label_selector,  # type: ignore[call-arg]  # the stubs are those of Train's first version
    )


def wait_for_resources(scaling: ScalingConfig, wait_s: float) -> None:
    """Return once nodes with the right labels have room for all workers; says every 30 s what is missing, and asks an
    autoscaler for it.

    Raises:
        UserError: it is not after `wait_s` seconds.
    """
    each: dict[str, float] = dict(scaling.resources_per_worker)  # type: ignore[arg-type]
    workers = int(scaling.num_workers)  # type: ignore[arg-type]
    labels: dict[str, str] = scaling.label_selector or {}  # type: ignore[attr-defined]
    started, last_logged = time.monotonic(), -math.inf
    try:
        while missing := missing_for(workers, each, labels, [node for node in ray.nodes() if node["Alive"]]):
            waited = time.monotonic() - started
            if waited >= wait_s:
                after = f" after {wait_s:.0f} s" if wait_s else ""
                raise UserError(
                    f"cluster.num_workers={workers} with {each} each needs {missing}"
                    f"{after}; lower it, use cluster.resources_per_worker, or set cluster.wait_s for an autoscaler"
                )
            if waited - last_logged >= _SAY_EVERY_S:
                last_logged = waited
                log.info("waiting for the cluster: %s", missing)
                request_resources(bundles=[each] * workers, bundle_label_selectors=[labels] * workers)
            time.sleep(min(1.0, wait_s - waited))
    finally:
        if last_logged >= 0:
            request_resources(bundles=[])  # the workers themselves hold the nodes from now on


def refuse_unreachable(output: Folder) -> None:
    """Ask every node whether it sees the run folder; nothing is asked of a single machine.

    A node that gives no answer in a minute is passed over: it may be on its way out.

    Raises:
        UserError: a node does not, so what is written there would be lost, and what lies here not found.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    mark = f"reachable-{uuid.uuid4().hex}"
    output.write(mark, "")
    try:
        look: Any = ray.remote(num_cpus=0)(Folder.exists)  # a node whose CPUs are all taken answers too
        asked = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                output, mark
            ): node["NodeManagerAddress"]
            for node in nodes
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
        blind = [asked[answer] for answer in answered if not _sees(answer)]
    finally:
        output.delete(mark)
    if blind:
        raise UserError(
            f"--output {output.path} cannot be seen from {len(blind)} of {len(nodes)} nodes ({', '.join(blind[:3])}); "
            "use a shared folder (NFS) or a URI (s3://, gs://)"
        )


def _sees(answer: Any) -> bool:
    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayTaskError:  # it may not open the store, say
        return False
    except ray.exceptions.RayError:  # the node has gone
        return True


def missing_for(workers: int, each: dict[str, float], labels: dict[str, str], nodes: list[dict[str, Any]]) -> str:
    """What the nodes lack to hold `workers` of `each` resources, whoever uses them now; empty where they have it.

    Args:
        labels: only nodes that match count, see `has_labels`.
        nodes: as `ray.nodes()` lists them.
    """
    where = f" on nodes with {labels}" if labels else ""
    fitting = [node["Resources"] for node in nodes if has_labels(node.get("Labels", {}), labels)]
    short = []
    for name, amount in each.items():
        there = sum(node.get(name, 0.0) for node in fitting)
        if there < amount * workers:
            short.append(f"{amount * workers:g} {name} (there are {there:g}{where})")
    if short:
        return ", ".join(short)
    room = sum(copies(node, each) for node in fitting)
    if any(each.values()) and room < workers:
        return f"room for {workers} workers, each on one node (there is room for {room}{where})"
    return ""


def at_once_here(most: int) -> int:
    """How many like the task or actor that asks may run on its machine at once, by the resources that it holds.

    Args:
        most: on the whole cluster; 0: as many as there is room for.
    """
    here = ray.get_runtime_context()
    (node,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here.get_node_id())
    room = max(1, copies(node, here.get_assigned_resources()))
    return min(room, most or room)


def teams_on_one_node(workers: int, each: dict[str, float], most: int, nodes: list[dict[str, float]]) -> int:
    """How many teams of workers may have some on one node at once: the most there can be on any.

    Args:
        workers: in a team, as many of them together on one node as fit. each: resources of a worker.
        most: teams on the whole cluster. nodes: resources of each.
    """
    room = max(1, max((copies(node, each) for node in nodes), default=1))
    return min(most, math.ceil(room / min(room, workers)))


def has_labels(labels: dict[str, str], selector: dict[str, str]) -> bool:
    """Whether a node's labels match a selector of Ray's: `value`, `!value`, `in(a, b)`, `!in(a, b)` for each key."""

    def matches(key: str, condition: str) -> bool:
        body = condition.removeprefix("!").strip()
        options = body[3:-1].split(",") if body.startswith("in(") else [body]
        return (labels.get(key) in [option.strip() for option in options]) != condition.startswith("!")

    return all(matches(key, condition) for key, condition in selector.items())


def nodes_with(labels: dict[str, str]) -> list[dict[str, float]]:
    """Resources of every living node whose labels match."""
    alive = (node for node in ray.nodes() if node["Alive"])
    return [node["Resources"] for node in alive if has_labels(node.get("Labels", {}), labels)]


def _largest_node_cpus(nodes: list[dict[str, float]]) -> int:
    """CPUs of the node that has most, which one worker cannot leave. Ray may count more CPUs than there are cores."""
    largest = max((node.get("CPU", 0) for node in nodes), default=1)
    return int(min(largest, os.cpu_count() or 1)) if len(ray.nodes()) == 1 else int(largest)
