"""Jobs as operators submit them: to a cluster that grows and shrinks, stopped half-way and submitted again."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shutil import copy
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from local_cluster import ROOT, LocalCluster, local_cluster
from toy_clip import DESIGN, write_toy_clip

from coreg_ray.cluster import metrics as ray_metrics

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def dashboards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Grafana dashboards that an operator names to Ray: ours is in it."""
    folder = tmp_path_factory.mktemp("dashboards")
    copy(ROOT / "grafana/coreg_ray.json", folder)
    return folder


@pytest.fixture(scope="module")
def cluster(dashboards: Path) -> Iterator[LocalCluster]:
    settings = {
        "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(dashboards),
        "RAY_metrics_report_interval_ms": "2000",
    }
    with local_cluster(cpus=2, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def beside() -> Iterator[ThreadPoolExecutor]:
    """Where submissions wait for their jobs while something else happens."""
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture(scope="module")
def mistake(cluster: LocalCluster, beside: ThreadPoolExecutor) -> Future[CompletedProcess[str]]:
    """A job that names a setting that there is not, submitted beside the others."""
    arguments = ["jobs/pipeline.py", "--method.epoch", "3", "--output", "runs/none"]
    return beside.submit(cluster.submit, *arguments, name="wrong")


# Of a pool without broken images, annotated by CLIP, in warm-up, with no labelled test images.
SHOWN = {ray_metrics.ANNOTATED, ray_metrics.SECONDS, *ray_metrics.GAUGES} - {
    *("coreg_clean_fraction", "coreg_label_churn", "coreg_agreement", "coreg_test_accuracy"),
}
EPOCHS = 24  # some are left when the first of them has been seen
# With this CLIP enough for one annotator to be busy until another has started, in blocks small enough to be shared.
BLOCKS, IMAGES = 12, 1_920


def epochs(output: Path) -> list[str]:
    history = output / "history.csv"
    return [row["epoch"] for row in csv.DictReader(history.open())] if history.exists() else []


def smoke_job(folder: Path, output: Path) -> list[str]:
    """The pipeline's smoke twin, on images that annotators are given one by one, and trained by two workers."""
    design: dict[str, Any] = DESIGN
    toy = write_toy_clip(folder, vision_cfg={**design["vision_cfg"], "image_size": 96})
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 8 * 8 * 3), dtype=np.uint8)
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels.reshape(IMAGES, 8, 8, 3))
    pq.write_table(pa.table({"image": images}), folder / "pool.parquet", row_group_size=IMAGES // BLOCKS)
    (folder / "classes.txt").write_text("cat\ndog\n")
    settings = {
        "source.kind": "parquet", "source.path": folder / "pool.parquet", "source.classes": folder / "classes.txt",
        "test.kind": "null", "annotator.model": toy["model"], "annotator.pretrained": toy["pretrained"],
        "annotator.min_actors": 1, "annotator.max_actors": 2, "annotator.batch_size": 1,
        "annotator.num_cpus": 1.1,  # Ray Data leaves annotators a part of the CPUs: twice this, of six
        "student.resolution": 8, "student.width": 4, "method.epochs": EPOCHS, "method.warmup_epochs": EPOCHS - 1,
        "method.batch_size": 256, "method.warmup_batch_size": 256,
        "cluster.num_workers": 2, "cluster.resources_per_worker": '{"CPU": 1, "trainer": 1}', "cluster.wait_s": 120,
        "export.onnx": "false", "report.pictures": 0,
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["jobs/pipeline.py", "--preset", "smoke", "--output", str(output), *options]


@pytest.mark.usefixtures("mistake")
def test_a_job_grows_with_its_cluster_is_stopped_and_goes_on(
    cluster: LocalCluster, beside: ThreadPoolExecutor, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    job = smoke_job(tmp_path, output)
    cluster.start(*job, name="first")
    shown: set[str] = set()

    def all_shown() -> bool:
        shown.update(re.findall(r"^ray_(coreg_\w+?)(?:_total)?{", cluster.metrics(), re.MULTILINE))
        return shown >= SHOWN

    def until(happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 600
        while not happened():
            all_shown()  # figures of annotators go with them
            assert time.monotonic() < deadline, cluster.printed("first")
            assert not cluster.over("first"), cluster.printed("first")
            time.sleep(1)  # each look is work for the cluster, too

    # Annotators spread onto a node that joins, and leave it when there is nothing left to do. It joins while the job
    # starts, since Ray Data looks for new nodes every 20 seconds alone.
    joined = cluster.add_node(cpus=4)
    until(lambda: len(cluster.actors("_Annotator")) == 1)
    until(lambda: len(cluster.actors("_Annotator")) == 2)
    assert joined.node_id in cluster.actors("_Annotator")  # there is no room for two elsewhere
    assert "annotated" not in cluster.printed("first")
    until(lambda: len(cluster.actors("_Annotator")) <= 1)

    # Training waits for nodes of its own, and begins when they are there.
    until(lambda: "waiting for the cluster: 2 trainer (there are 0)" in cluster.printed("first"))
    assert f"{IMAGES} images annotated, {IMAGES} of them now" in cluster.printed("first")
    assert not epochs(output)
    cluster.nodes.remove_node(joined)  # idle by now
    cluster.add_node(cpus=2, trainer=2)
    # A new node shows its figures once its agent has started, which may take longer than some epochs.
    until(lambda: len(epochs(output)) >= (1 if all_shown() else EPOCHS // 2))
    assert cluster.stop("first") == "STOPPED"
    done = len(epochs(output))
    assert 1 <= done < EPOCHS

    # The next submission goes on with fewer workers.
    ended = beside.submit(cluster.submit, *job, "--cluster.num_workers", "1", name="second")
    while not ended.done():
        all_shown()
        time.sleep(1)
    second = ended.result()
    assert second.returncode == 0, second.stdout
    assert shown >= SHOWN
    assert epochs(output) == [str(number) for number in range(EPOCHS)]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["train/start_epoch"] >= 1
    assert metrics["train/world_size"] == 1
    assert metrics["annotation/encoded_images"] == 0  # nothing is annotated twice
    assert (output / "report.html").exists()
    assert "died" not in cluster.printed("first")  # no worker on the way
    logs = cluster.logs("second")
    assert f"epoch {EPOCHS}/{EPOCHS} coreg" in logs
    assert "Trained two networks" in logs
    assert "\x1b[A" not in logs  # no progress bar that moves the cursor
    assert "Traceback" not in logs
    assert "Reporting training result" not in logs


def test_a_mistake_ends_the_job_with_one_line(mistake: Future[CompletedProcess[str]]) -> None:
    wrong = mistake.result()
    assert wrong.returncode != 0
    assert "'wrong' failed" in wrong.stdout
    assert "error: unknown setting" in wrong.stdout
    assert "method.epochs" in wrong.stdout
    assert "Traceback" not in wrong.stdout


def test_grafana_finds_the_dashboard_among_rays_own(cluster: LocalCluster, dashboards: Path) -> None:
    provisioning = cluster.folder / "session_latest/metrics/grafana/provisioning/dashboards/default.yml"
    (provider,) = yaml.safe_load(provisioning.read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", str(dashboards))
    there = {file.name for file in dashboards.iterdir()}
    assert {"coreg_ray.json", "default_grafana_dashboard.json", "train_grafana_dashboard.json"} <= there
    identifiers = [json.loads(file.read_text())["uid"] for file in dashboards.iterdir()]
    assert len(set(identifiers)) == len(identifiers)
