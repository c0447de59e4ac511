"""A cluster whose nodes come and go while a job runs: annotators spread out, training waits for nodes of its own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster
from toy_clip import write_toy_clip

ROOT = Path(__file__).parents[1]
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
IMAGES = 8_192


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node of two CPUs; no driver of this process joins it."""
    running = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield running
    running.shutdown()


@contextmanager
def driver_of(cluster: Cluster, said: Path, *job: str) -> Iterator[Callable[[Callable[[], object]], None]]:
    """A job in a process of its own. Gives what waits until something comes true, as long as the job runs."""
    with said.open("wb") as file:
        driver = subprocess.Popen(
            [sys.executable, *job], cwd=ROOT, stdout=file, stderr=file,
            env=os.environ | {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"},
        )  # fmt: skip

    def until(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 100
        while not what():
            assert driver.poll() is None or what(), said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)

    try:
        yield until
    finally:
        driver.kill()
        driver.wait()


def annotators(cluster: Cluster) -> int:
    """Members of the annotator pool, wherever they are: processes that the cluster's nodes have started."""
    nodes = {info.process.pid for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    found = 0
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_text() if process.name.isdigit() else ""
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1]) if "_Annotator" in title else 0
        except (OSError, UnicodeDecodeError):
            continue  # it has just ended
        found += parent in nodes
    return found


@pytest.mark.timeout(240)
def test_the_annotator_pool_grows_onto_a_new_node_and_shrinks_again(cluster: Cluster, tmp_path: Path) -> None:
    toy = write_toy_clip(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 8 * 8 * 3), dtype=np.uint8)
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels.reshape(IMAGES, 8, 8, 3))
    pq.write_table(pa.table({"image": images}), tmp_path / "pool.parquet", row_group_size=2048)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    job = ["jobs/annotate.py", "--output", str(tmp_path / "run"), "--source.kind", "parquet"]
    job += ["--source.path", str(tmp_path / "pool.parquet"), "--source.classes", str(tmp_path / "classes.txt")]
    job += ["--annotator.model", toy["model"], "--annotator.pretrained", toy["pretrained"]]
    job += ["--annotator.min_actors", "1", "--annotator.max_actors", "3", "--annotator.batch_size", "1"]  # slowly
    job += ["--annotator.num_cpus", "0.25"]  # of Ray Data's share for them, on two CPUs and on six
    said = tmp_path / "said"
    with driver_of(cluster, said, *job) as until:
        until(lambda: annotators(cluster) == 1)
        cluster.add_node(num_cpus=4, object_store_memory=NODE["object_store_memory"])
        until(lambda: annotators(cluster) == 3)
        assert "annotated now" not in said.read_text()
        until(lambda: annotators(cluster) <= 1)
        until(lambda: f"{IMAGES} images: {IMAGES} annotated now" in said.read_text())


@pytest.mark.timeout(240)
def test_training_waits_for_nodes_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    output, said = tmp_path / "run", tmp_path / "said"
    job = ["jobs/pipeline.py", "--preset", "smoke", "--test.kind", "null", "--output", str(output)]
    job += ["--cluster.num_workers", "2", "--cluster.resources_per_worker", '{"CPU": 1, "trainer": 1}']
    with driver_of(cluster, said, *job, "--cluster.wait_s", "120") as until:
        until(lambda: "waiting for the cluster: 2 trainer (there are 0)" in said.read_text())
        assert not (output / "history.csv").exists()
        cluster.add_node(**NODE, resources={"trainer": 2})
        until((output / "history.csv").exists)
        assert next(csv.DictReader((output / "history.csv").open()))["epoch"] == "0"
