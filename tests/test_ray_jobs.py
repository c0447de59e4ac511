"""Jobs as operators submit them: to a running cluster, from a working directory, stopped and submitted again."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copy

import pytest
import yaml
from local_cluster import ROOT, LocalCluster, local_cluster

from coreg_ray import ray_metrics

pytestmark = pytest.mark.timeout(300)


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
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    }
    with local_cluster(**settings) as running:
        yield running


# Of a pool without broken images, annotated by CLIP, in warm-up.
SHOWN = {ray_metrics.ANNOTATED, ray_metrics.SECONDS, *ray_metrics.GAUGES} - {
    *("coreg_clean_fraction", "coreg_label_churn", "coreg_agreement"),
}


def epochs(output: Path) -> list[str]:
    history = output / "history.csv"
    return [row["epoch"] for row in csv.DictReader(history.open())] if history.exists() else []


def test_a_stopped_pipeline_goes_on_at_the_next_submission(cluster: LocalCluster, tmp_path: Path) -> None:
    output = tmp_path / "run"
    job = ["jobs/pipeline.py", "--preset", "smoke", "--output", str(output), "--method.epochs", "12"]
    job += ["--export.onnx", "false", "--report.pictures", "0", "--report.baselines", "false"]
    job += ["--method.warmup_epochs", "11"]
    assert cluster.submit(*job, name="first", wait=False).returncode == 0
    deadline = time.monotonic() + 150
    shown: set[str] = set()
    while not epochs(output) or not shown >= SHOWN:
        assert time.monotonic() < deadline, cluster.job("logs", "first") + str(SHOWN - shown)
        time.sleep(0.2)
        shown |= set(re.findall(r"^ray_(coreg_\w+?)(?:_total)?{", cluster.metrics(), re.MULTILINE))
    cluster.job("stop", "first")
    assert "'first' was stopped" in cluster.job("status", "first")
    done = len(epochs(output))
    assert 1 <= done < 12

    second = cluster.submit(*job, name="second")
    assert second.returncode == 0, second.stdout
    assert epochs(output) == [str(number) for number in range(12)]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["train/start_epoch"] >= 1
    assert metrics["annotation/encoded_images"] == 0  # nothing is annotated twice
    assert (output / "report.html").exists()
    logs = cluster.job("logs", "second")
    assert "epoch 12/12 coreg" in logs
    assert "Test accuracy" in logs
    assert "\x1b[A" not in logs  # no progress bar that moves the cursor
    assert "Traceback" not in logs
    assert "Reporting training result" not in logs


def test_a_mistake_ends_the_job_with_one_line(cluster: LocalCluster, tmp_path: Path) -> None:
    wrong = cluster.submit("jobs/pipeline.py", "--method.epoch", "3", "--output", str(tmp_path / "x"), name="wrong")
    assert wrong.returncode != 0
    assert "'wrong' failed" in cluster.job("status", "wrong")
    logs = cluster.job("logs", "wrong")
    assert "error: unknown setting" in logs
    assert "method.epochs" in logs
    assert "Traceback" not in logs


def test_grafana_finds_the_dashboard_among_rays_own(cluster: LocalCluster, dashboards: Path) -> None:
    provisioning = cluster.folder / "session_latest/metrics/grafana/provisioning/dashboards/default.yml"
    (provider,) = yaml.safe_load(provisioning.read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", str(dashboards))
    there = {file.name for file in dashboards.iterdir()}
    assert {"coreg_ray.json", "default_grafana_dashboard.json", "train_grafana_dashboard.json"} <= there
    identifiers = [json.loads(file.read_text())["uid"] for file in dashboards.iterdir()]
    assert len(set(identifiers)) == len(identifiers)
