"""The comparison runs on what a training worker held, or on what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from coreg_ray.cluster import baselines
from coreg_ray.config import Config
from coreg_ray.run.folder import RunFolder


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("cluster", "held"),
    [
        ({"resources_per_worker": {"CPU": 2}}, {"CPU": 2.0}),
        ({"resources_per_worker": {"CPU": 64}}, {"CPU": 1.0}),  # trained on a larger cluster than this one
        ({"label_selector": {"role": "gone"}}, {"CPU": 1.0}),
    ],
)
def test_it_takes_a_workers_share_or_one_cpu(
    cluster: dict[str, Any], held: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_made", lambda *given: ray.get_runtime_context().get_assigned_resources())
    digits = {"source": {"kind": "digits"}, "test": {"kind": "digits"}}
    config = Config.model_validate({"output": str(tmp_path / "run"), **digits, "cluster": cluster})
    begun = baselines.begin_comparison(config, RunFolder.at(config.output), trained_s=0.0)
    assert begun is not None
    assert ray.get(begun, timeout=120) == held
