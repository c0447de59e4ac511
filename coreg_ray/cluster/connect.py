"""A Ray to work on: the cluster that the environment names, else one on this machine."""

from __future__ import annotations

import logging
import os

import ray
import ray.data

from coreg_ray.cluster.address import refuse_silent
from coreg_ray.run.memory import physical_memory
from coreg_ray.run.termination import heed_again

_own = ""  # address of the Ray that this process has started
_joined = False  # whether this file has joined a cluster, and nobody before it
_ROOMY = 12 << 30  # bytes of memory from which on processes that wait for work may stay
_STAY = 10  # of them and those at work; one that has imported torch holds 0.4 GB, and another would take 2 s to start


def own_cluster() -> bool:
    """Whether this process has started the Ray that it works on, which then ends with it whatever happens."""
    return ray.is_initialized() and ray.get_runtime_context().gcs_address == _own


def starts_own() -> bool:
    """Whether `connect` would start Ray on this machine."""
    return not ray.is_initialized() and "RAY_ADDRESS" not in os.environ


def connect() -> None:
    """Join the cluster that the environment names, else start Ray on this machine.

    Raises:
        UserError: nobody answers at the address.
    """
    global _own, _joined
    if ray.is_initialized():
        return
    refuse_silent()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers nothing, unless somebody wants it to
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # an epoch's report waits for this poll
    for chatty in ("ray.data", "ray.data._internal.progress", "ray.train", "ray._private.authentication"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    local = starts_own()
    if local:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        # On small machines processes that annotation has left idle end before training begins.
        os.environ.setdefault("RAY_num_workers_soft_limit", str(_STAY if physical_memory() >= _ROOMY else 0))
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "10000")
    # Two logical CPUs more than cores on small machines: reading starves when actors hold every one.
    cpus = max(4, (os.cpu_count() or 1) + 2) if local else None
    # What workers say stays in Ray's logs and its dashboard; the driver reports progress in its own words.
    ray.init(logging_level=logging.WARNING, log_to_driver=False, num_cpus=cpus, address="local" if local else None)
    _own, _joined = ray.get_runtime_context().gcs_address if local else "", True
    heed_again()  # Ray's own answer to SIGTERM is a traceback of its C++ and an abort
    ray.data.DataContext.get_current().enable_progress_bars = False


def leave() -> None:
    """Undo `connect`; a Ray of one's own ends. Where Python's end does that, Ray first sleeps for half a second."""
    if _joined:
        ray.shutdown()
