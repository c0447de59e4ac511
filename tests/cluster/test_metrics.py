"""What the dashboard for Grafana draws against what Ray really exports."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray

from coreg_ray.cluster import metrics

DASHBOARD = Path(__file__).parents[2] / "grafana/coreg_ray.json"


def queries(dashboard: dict[str, Any]) -> list[str]:
    """All of PromQL in it: of panels and of variables."""
    drawn = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return drawn + [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]


def names(text: str) -> set[str]:
    return set(re.findall(r"\bray_coreg_\w+", text))


@pytest.mark.usefixtures("ray_cluster")
def test_every_metric_is_exported_and_drawn_with_its_labels() -> None:
    for name in metrics.COUNTERS:
        metrics.count(name, "mine", 2)
        metrics.count(name, "mine", 0)
    epoch = {"epoch": 4, "agreement": 0.5, "criterion/combined": 0.4, "test/accuracy": 0.9, "phase": "coreg"}
    epoch |= {f"{metric}/{network}": 0.25 for metric in ("loss", "clean", "churn") for network in "ab"}
    epoch |= {f"time/{what}_s": 0.125 for what in ("step", "exchange", "epoch")}
    metrics.show_epoch("birds", epoch)
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
    expected = {f"ray_{name}" for name in metrics.GAUGES} | {f"ray_{name}_total" for name in metrics.COUNTERS}
    exported, deadline = "", time.monotonic() + 900
    while not expected <= names(exported):
        assert time.monotonic() < deadline, expected - names(exported)
        time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            exported = answer.read().decode()

    dashboard = json.loads(DASHBOARD.read_text())
    drawn = queries(dashboard)
    assert set().union(*map(names, drawn)) == expected
    lines = {name: [line for line in exported.splitlines() if line.startswith(name + "{")] for name in expected}
    for query in drawn:
        (name,) = names(query)
        labels = set(re.findall(r"(\w+)=~", query)) | set(
            re.findall(r"\w+", "".join(re.findall(r"by \((.*?)\)", query)))
        )
        for line in lines[name]:
            assert labels <= set(re.findall(r"(\w+)=\"", line)), query
    (clean,) = (line for line in lines["ray_coreg_clean_fraction"] if 'run="birds"' in line and 'network="b"' in line)
    assert float(clean.rsplit(" ", 1)[1]) == 0.25
    (annotated,) = (line for line in lines["ray_coreg_annotated_images_total"] if 'annotator="mine"' in line)
    assert float(annotated.rsplit(" ", 1)[1]) == 2


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        assert panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
