"""A Ray cluster in processes of its own, as an operator starts one, nodes that join it, and jobs submitted to it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
STORE = 100 * 2**20  # bytes of object store on each node


@dataclass(frozen=True)
class LocalCluster:
    """A running head node, and those that were added to it.

    Attributes:
        dashboard: its address, http://127.0.0.1:port.
        folder: Ray's temporary folder, with logs and the set-up for Prometheus and Grafana.
        nodes: its nodes.
        environment: what a shell needs to speak to it.
    """

    dashboard: str
    folder: Path
    nodes: Cluster
    environment: dict[str, str]

    def ready(self) -> bool:
        """Whether the dashboard answers."""
        try:
            return bool(self.get("/api/version"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        """What the dashboard answers."""
        return _read(self.dashboard + path, self.environment["RAY_AUTH_TOKEN"])

    def metrics(self) -> str:
        """What Prometheus would read on all nodes, at the addresses that Ray writes for it."""
        file = self.folder / "prom_metrics_service_discovery.json"
        targets = [t for group in json.loads(file.read_text()) for t in group["targets"]] if file.exists() else []
        pages = []
        for target in targets:
            with suppress(OSError):  # a node that has just left is listed a little longer
                pages.append(_read(f"http://{target}/metrics"))
        return "".join(pages)

    def add_node(self, cpus: int, **resources: float) -> Node:
        """A node that is ready to work."""
        place = f"runtime_resources_{uuid4().hex}"  # a job's files; nodes that share a folder remove each other's
        return self.nodes.add_node(
            num_cpus=cpus, resources=resources, object_store_memory=STORE, runtime_env_dir_name=place
        )

    def actors(self, name: str) -> list[str]:
        """The nodes of the living actors whose class has `name` in its name."""
        known = json.loads(self.get("/api/v0/actors"))["data"]["result"]["result"]
        return [actor["node_id"] for actor in known if name in actor["class_name"] and actor["state"] == "ALIVE"]

    def printed(self, name: str) -> str:
        """What a submitted job's driver has printed so far."""
        log = self.folder / f"session_latest/logs/job-driver-{name}.log"
        return log.read_text() if log.exists() else ""

    def ray(self, *arguments: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
        """Ray's own command line, in the repository; what it says on both streams is in `stdout`."""
        return subprocess.run(
            [RAY, *arguments], env=self.environment, cwd=ROOT, text=True, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def submit(self, *entrypoint: str, name: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- python ...`; what it says until the job has ended, and its exit code."""
        options = ["--address", self.dashboard, "--working-dir", ".", "--submission-id", name]
        return self.ray("job", "submit", *options, "--", "python", *entrypoint)

    def start(self, *entrypoint: str, name: str) -> None:
        """The same through Ray's client, which starts at once, without waiting for its end."""
        client = JobSubmissionClient(self.dashboard)
        client.submit_job(
            entrypoint=shlex.join(["python", *entrypoint]), runtime_env={"working_dir": str(ROOT)}, submission_id=name
        )

    def logs(self, name: str) -> str:
        """What `ray job logs NAME` shows."""
        return str(JobSubmissionClient(self.dashboard).get_job_logs(name))

    def over(self, name: str) -> bool:
        """Whether a submitted job has ended, however."""
        return bool(JobSubmissionClient(self.dashboard).get_job_status(name).is_terminal())

    def stop(self, name: str) -> str:
        """`ray job stop NAME`; how the job has ended."""
        client = JobSubmissionClient(self.dashboard)
        client.stop_job(name)
        deadline = time.monotonic() + 900
        while not (status := client.get_job_status(name)).is_terminal():
            assert time.monotonic() < deadline, self.printed(name)
            time.sleep(0.2)
        return str(status.value)


@contextmanager
def local_cluster(cpus: int, **environment: str) -> Iterator[LocalCluster]:
    """Start a head, and end it and no other Ray of this machine.

    It finds `python` as this interpreter; the repository reaches it through a job's working directory alone.
    """
    home = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets in it have short names, or none
    folder = home / "ray"
    folder.mkdir()
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for foreign in ("RAY_ADDRESS", "PYTHONPATH"):
            patch.delenv(foreign, raising=False)
        patch.setenv("PATH", f"{RAY.parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("RAY_TMPDIR", str(home))  # its address is written there, for its jobs and no other Ray's
        for name, value in environment.items():
            patch.setenv(name, value)
        nodes = Cluster()
        try:
            nodes.add_node(
                num_cpus=cpus, object_store_memory=STORE, temp_dir=str(folder), include_log_monitor=False,
                include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=port, dashboard_agent_listen_port=0,
            )  # fmt: skip
            cluster = LocalCluster(f"http://127.0.0.1:{port}", folder, nodes, dict(os.environ))
            deadline = time.monotonic() + 900
            while not cluster.ready():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield cluster
        finally:
            nodes.shutdown()
            for process in Path("/proc").iterdir():  # what its nodes left behind
                with suppress(OSError, ValueError):
                    if str(folder) in (process / "cmdline").read_text():
                        os.kill(int(process.name), signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read(address: str, token: str = "") -> str:
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())
