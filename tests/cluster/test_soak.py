"""Everything goes wrong, by a seeded schedule: at the end a run holds what an undisturbed one holds.

The pool lies on an S3 server that fails now and then, the run folder on a small disk that fills up, and Ray's workers,
a node and the driver are killed. By hand, for half an hour (COREG_SOAK_IMAGES, COREG_SOAK_MINUTES change its size):

    pytest -n 0 -m soak --log-cli-level INFO
"""

from __future__ import annotations

import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from faulty_store import FaultyStore, faulty_store
from local_cluster import ROOT, LocalCluster, local_cluster
from PIL import Image
from s3_server import put, s3_server

from coreg_ray.embedded.digits import CLASS_NAMES, PROMPTS, digits
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

DISK_MB = 200
BROKEN = 3  # files that are no image
FAILING = 40  # requests to the store, of each run
WORKS = re.compile(rb"ray::.*(Annotator|TrainWorker)")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_store(pool: Folder, images: int) -> None:
    """Digits with a little noise each, in folders of a thousand, and some files that are no image."""
    _, scans, _ = digits("train", 16)
    for number in range(images):
        noise = np.random.default_rng(number).integers(0, 40, scans[0].shape, dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(scans[number % len(scans)] // 2 + noise).save(content, "PNG")
        put(f"{pool.path}/{number // 1000:03d}/{number:05d}.png", content.getvalue())
    for number in range(BROKEN):
        pool.write(f"broken/{number}.png", b"no image")


@dataclass
class Driver:
    """`jobs/pipeline.py` on a cluster, started again until it has succeeded.

    Attributes:
        memory_mb: of the process that runs now, each half second. starts: how often it was started.
    """

    config: Path
    cluster: LocalCluster
    log: Path
    memory_mb: list[float] = field(default_factory=list)
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.memory_mb.clear()
        self.starts += 1
        environment = self.cluster.environment | {"RAY_ADDRESS": self.cluster.nodes.address}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs/pipeline.py"), "--config", str(self.config)],
                env=environment, stdout=log, stderr=log, cwd=ROOT,
            )  # fmt: skip

    def end(self) -> None:
        """Leave nothing running, whatever has failed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ended(self) -> bool:
        """Whether it has succeeded; if it has failed, it is started again, as a person would."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            with suppress(OSError, IndexError):  # a process that ends just now has no memory
                status = Path(f"/proc/{self.process.pid}/status").read_text()
                self.memory_mb.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
            return False
        if code:
            assert self.starts < 100, self.log.read_text()[-4000:]
            self.start()
        return code == 0


def progress(run: RunFolder, images: int, epochs: int) -> float:
    """From 0 to 1: half of it is annotation, half training."""
    with suppress(OSError, pa.ArrowInvalid):
        parts = (run / "annotations/pool").files(".parquet")
        annotated = sum(pq.read_metadata(path).num_rows for path in parts)
        return 0.5 * annotated / images + 0.5 * len(run.read_history()) / epochs
    return 0.0


@dataclass
class Trouble:
    """What can go wrong, and how each of it is brought about."""

    driver: Driver
    cluster: LocalCluster
    store: FaultyStore
    disk: Path
    node: Any

    def throw(self, fault: str) -> None:
        kinds: dict[str, Callable[[], None]] = {
            "worker": self._kill_a_worker, "node": self._lose_a_node, "driver": self._kill_the_driver,
            "disk": self._fill_the_disk, "store": self._fail_the_store,
        }  # fmt: skip
        kinds[fault]()

    def _kill_a_worker(self) -> None:
        for pid in _workers(self.cluster.folder)[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _lose_a_node(self) -> None:
        self.cluster.nodes.remove_node(self.node, allow_graceful=False)
        self.node = self.cluster.add_node(cpus=3)

    def _kill_the_driver(self) -> None:
        assert self.driver.process is not None
        self.driver.process.kill()
        self.driver.process.wait()

    def _fill_the_disk(self) -> None:
        """No byte is left for three seconds."""
        filler = self.disk / "filler"
        with suppress(OSError), filler.open("wb") as stream:
            while stream.write(b"\0" * 2**16):
                stream.flush()
        time.sleep(3)
        filler.unlink()

    def _fail_the_store(self) -> None:
        """Half of the next requests fail, until enough have."""
        self.store.to_fail += FAILING


FAULTS = ("worker", "node", "driver", "disk", "store")


def _workers(session: Path) -> list[int]:
    """Processes of a cluster that annotate or train."""
    raylets, found = set(), []
    for process in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            line = (process / "cmdline").read_bytes()
            if b"/raylet" in line and str(session).encode() in line:
                raylets.add(int(process.name))
    for process in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parent = int((process / "stat").read_text().rpartition(") ")[2].split()[1])
            if parent in raylets and WORKS.match((process / "cmdline").read_bytes()):
                found.append(int(process.name))
    return found


def settings(output: Path, pool: str, epochs: int) -> dict[str, Any]:
    return {
        "output": str(output),
        "source": {"kind": "folder", "path": pool, "classes": list(CLASS_NAMES), "prompts": list(PROMPTS)},
        "test": {"kind": "digits"},
        "annotator": {"model": "embedded", "batch_size": 8},
        "student": {"resolution": 8, "width": 4, "projection": 8},
        "method": {"epochs": epochs, "warmup_epochs": epochs // 2, "contrast_delay": 0, "batch_size": 32,
                   "warmup_batch_size": 32, "queue_size": 64, "key_momentum": 0.9},
        "cluster": {"max_failures": 100, "threads": 1, "wait_s": 120},
        "export": {"onnx": False},
        "report": {"pictures": 0, "baselines": False, "review": 0},
    }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a run holds at its end, but for times and how often it was begun."""

    annotations: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]

    @classmethod
    def of(cls, run: RunFolder) -> Outcome:
        counted = ("time/", "train/start_epoch", "annotation/encoded_images")
        return cls(
            _rows(run.annotations("pool")),
            _rows(run.rejects("pool")),
            [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.read_history()],
            {k: v for k, v in run.read_metrics().items() if not k.startswith(counted)},
        )


def _rows(folder: Folder) -> list[dict[str, Any]]:
    parts = [pq.read_table(path) for path in folder.files(".parquet")]
    return sorted(pa.concat_tables(parts).to_pylist(), key=lambda row: str(row["image_id"]))


def soak(tmp_path: Path, disk: Path, images: int, epochs: int, minutes: float, seed: int = 0) -> None:
    """An undisturbed run, then disturbed ones until the time is over; one at least."""
    draws = random.Random(seed)
    with s3_server("pool") as uri, local_cluster(1, RAY_health_check_period_ms="1000") as cluster:
        fill_store(Folder.at(uri("images")), images)
        host, port = re.search(r"endpoint_override=([\d.]+):(\d+)", uri("x")).groups()  # type: ignore[union-attr]
        node = cluster.add_node(cpus=3)
        with faulty_store(host, int(port), seed) as store, ExitStack() as left:
            pool = uri("images").replace(f"{host}:{port}", f"127.0.0.1:{store.port}")

            def driver(name: str) -> Driver:
                file = tmp_path / f"{name}.yaml"
                file.write_text(yaml.safe_dump(settings(disk / name, pool, epochs)))
                started = Driver(file, cluster, tmp_path / f"{name}.log")
                started.start()
                left.callback(started.end)
                return started

            calm = driver("calm")
            while not calm.ended():
                time.sleep(0.5)
            assert calm.starts == 1, calm.log.read_text()
            expected = Outcome.of(RunFolder.at(disk / "calm"))
            assert len(expected.annotations) == images
            assert len(expected.rejects) == BROKEN
            assert len(expected.history) == epochs

            ends, number = time.monotonic() + 60 * minutes, 0
            while not number or time.monotonic() < ends:
                run, number = RunFolder.at(disk / f"run-{number}"), number + 1
                disturbed = driver(run.name)
                trouble = Trouble(disturbed, cluster, store, disk, node)
                # The store fails from the beginning, while images are read; all else at any time.
                plan = sorted((0.0 if name == "store" else draws.uniform(0.02, 0.95), name) for name in FAULTS)
                while not disturbed.ended():
                    if plan and progress(run, images, epochs) >= plan[0][0]:
                        at, fault = plan.pop(0)
                        log.info("run %d, at %.2f: %s", number, at, fault)
                        trouble.throw(fault)
                    time.sleep(0.5)
                node = trouble.node
                assert not plan
                assert store.failed == number * FAILING
                outcome = Outcome.of(run)
                for name in ("annotations", "rejects", "history"):
                    assert getattr(outcome, name) == getattr(expected, name), name
                now, then = outcome.metrics, expected.metrics
                # Sums over parts, which a kill cuts otherwise, are the same up to the order of additions.
                assert now.keys() == then.keys()
                same = {key: now[key] == then[key] or now[key] == pytest.approx(then[key], rel=1e-12) for key in now}
                assert {key: (now[key], then[key]) for key in now if not same[key]} == {}
                assert not list(Path(run.path).rglob("*.partial"))
                assert not (Path(run.path) / ".lock").exists()
                _flat(disturbed.memory_mb)
                log.info("run %d: %d starts, %d requests failed so far", number, disturbed.starts, store.failed)
                rmtree(run.path)


def _flat(memory_mb: list[float]) -> None:
    """The last quarter of a driver's life takes at most a tenth more than its second one, if it lived long enough."""
    quarter = len(memory_mb) // 4
    if quarter >= 60:
        second, last = np.median(memory_mb[quarter : 2 * quarter]), np.median(memory_mb[-quarter:])
        log.info("the driver's memory: %.0f MB, then %.0f MB", second, last)
        assert last <= 1.1 * second


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_under_every_fault_ends_like_an_undisturbed_one(tmp_path: Path, disk: Path) -> None:
    soak(tmp_path, disk, images=300, epochs=6, minutes=0)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_half_an_hour_of_it(tmp_path: Path, disk: Path) -> None:
    images = int(os.environ.get("COREG_SOAK_IMAGES", 20_000))
    soak(tmp_path, disk, images, epochs=10, minutes=float(os.environ.get("COREG_SOAK_MINUTES", 30)))
