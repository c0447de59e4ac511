"""A Ray cluster of one node in processes of its own, as an operator starts one, and jobs submitted to it."""

from __future__ import annotations

import json
import os
import secrets
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

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class LocalCluster:
    """A running head node.

    Attributes:
        dashboard: its address, http://127.0.0.1:port.
        address: host:port that drivers join.
        folder: Ray's temporary folder, with logs and the set-up for Prometheus and Grafana.
        environment: what a shell needs to speak to it.
    """

    dashboard: str
    address: str
    folder: Path
    environment: dict[str, str]

    def ready(self) -> bool:
        """Whether the node has started and its dashboard answers."""
        started = "Ray runtime started" in (self.folder / "head.log").read_text()
        try:
            return started and bool(self.get("/api/version"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        """What the dashboard answers."""
        return _read(self.dashboard + path, self.environment["RAY_AUTH_TOKEN"])

    def metrics(self) -> str:
        """What Prometheus would read on all nodes, at the addresses that Ray writes for it."""
        found = self.folder / "prom_metrics_service_discovery.json"
        targets = [t for group in json.loads(found.read_text()) for t in group["targets"]] if found.exists() else []
        return "".join(_read(f"http://{target}/metrics") for target in targets)

    def ray(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Ray's own command line, in the repository; what it says on both streams is in `stdout`."""
        return subprocess.run(
            [RAY, *arguments], env=self.environment, cwd=ROOT, text=True, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def submit(self, *entrypoint: str, name: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- python ...`; what it says, and its exit code."""
        options = ["--address", self.dashboard, "--working-dir", ".", "--submission-id", name]
        return self.ray("job", "submit", *options, *([] if wait else ["--no-wait"]), "--", "python", *entrypoint)

    def job(self, verb: str, name: str) -> str:
        """What `ray job status|logs|stop NAME` says."""
        return self.ray("job", verb, "--address", self.dashboard, name).stdout


@contextmanager
def local_cluster(cpus: int = 4, **environment: str) -> Iterator[LocalCluster]:
    """Start a head, and end it and no other Ray of this machine.

    It finds `python` as this interpreter; the repository reaches it through a job's working directory alone.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets in it have short names, or none
    port, dashboard = free_port(), free_port()
    foreign = ("RAY_ADDRESS", "PYTHONPATH")
    variables = {name: value for name, value in os.environ.items() if name not in foreign} | {
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        str(RAY), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
        f"--num-cpus={cpus}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0",
        f"--temp-dir={folder}", "--object-store-memory=200000000", "--disable-usage-stats",
    ]  # fmt: skip
    with (folder / "head.log").open("w") as said:
        head = subprocess.Popen(
            command,
            env=variables | environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder,
            text=True,
            start_new_session=True,
        )
    cluster = LocalCluster(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", folder, variables)
    try:
        deadline = time.monotonic() + 60
        while not cluster.ready():
            assert head.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.2)
        yield cluster
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        for process in Path("/proc").iterdir():  # its helpers and workers have process groups of their own
            with suppress(OSError, ValueError):
                if str(folder) in (process / "cmdline").read_text():
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read(address: str, token: str = "") -> str:
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())
