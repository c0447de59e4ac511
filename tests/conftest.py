"""What many test files share."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ray and torch read these when they are imported, so they come before everything else.
os.environ.update(
    OMP_NUM_THREADS="1",  # results are the same to the last bit on any machine, and threads do not wait for each other
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.3",  # an epoch's report waits for it; oftener keeps a core busy
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",  # as on every machine of one's own
    # Ray gives up, or begins again, where a part of it has not started within half a minute or a whole one: too
    # short for a machine with other work.
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="40",
    RAY_DASHBOARD_STARTUP_TIMEOUT_S="600",
    RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT="300",
    RAY_worker_register_timeout_seconds="600",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_prestart_worker_first_driver="0",  # most workers are started with an environment of their own
    RAY_num_workers_soft_limit="6",  # idle ones stay for the next test: each has imported torch for some seconds
    RAY_idle_worker_killing_time_threshold_ms="60000",
    REPORTER_UPDATE_INTERVAL_MS="60000",  # each node's agent would look at every process much oftener
    LOG_NAME_UPDATE_INTERVAL_S="60",  # and its log monitor at every log file, ten times a second
    RAY_LOG_MONITOR_MANY_FILES_THRESHOLD="0",  # else that interval is for a thousand files and more
)


# Some hundred processes import the project; where an environment forbids keeping bytecode, each would compile it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without a test of the second lane are not even imported for it: most of them need torch, some Ray."""
    if config.option.markexpr != "slow or cluster" or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    return None if "pytest.mark.slow" in text or "pytest.mark.cluster" in text else True


_LONG = ("training", "methods", "report")  # folders whose files take longest, but for those that need Ray


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that at the end no test process waits for another that has just begun with one.

    What needs Ray comes last: a Ray that waits takes time from all other tests. Its longest file is the first of these.
    """

    def rank(item: pytest.Item) -> tuple[int, bool]:
        folder = item.path.parent.name
        return (2 if folder == "cluster" else int(folder not in _LONG), item.path.stem != "test_pipeline")

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What all tests have imported stays; else Python would look through a million objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _ray_session() -> Iterator[None]:
    import ray

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=4,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture
def ray_cluster(_ray_session: None) -> Iterator[None]:
    """One Ray of four logical CPUs for the whole session; placement groups left over by a test are removed."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    yield
    for group, entry in placement_group_table().items():
        if entry["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))


@pytest.fixture
def free_before(ray_cluster: None) -> float:
    """CPUs that nobody holds before the test, for `leftovers.left_behind`."""
    from leftovers import free_cpus

    return free_cpus()
