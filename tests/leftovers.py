"""What is still held on a cluster after a test, and by whom."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.util.placement_group import placement_group_table
from ray.util.state import list_actors


def free_cpus() -> float:
    """CPUs that nobody holds."""
    return float(ray.available_resources().get("CPU", 0.0))


def placement_groups() -> dict[str, Any]:
    """Those that were not removed."""
    return {name: group for name, group in placement_group_table().items() if group["state"] != "REMOVED"}


def all_actors(*filters: tuple[str, str, str]) -> list[Any]:
    """Ray's actors, dead ones too unless filtered, of this very cluster, whatever others run on this machine."""
    address = ray.get_runtime_context().gcs_address
    return list_actors(address=address, filters=list(filters), detail=True, limit=10_000)


def left_behind(free_before: float) -> dict[str, Any]:
    """What is still held once those who were told to let go had the time, and by whom; empty: all is as before."""
    deadline = time.monotonic() + 900
    while free_cpus() < free_before or placement_groups():
        if time.monotonic() > deadline:
            actors = all_actors(("state", "!=", "DEAD"))
            return {
                "free CPUs": (free_before, free_cpus()),
                "placement groups": placement_groups(),
                "actors": [(a.class_name, a.job_id, a.required_resources, a.placement_group_id) for a in actors],
            }
        time.sleep(0.2)
    return {}
