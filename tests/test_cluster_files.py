"""The cluster files against Ray's own schema, and what they offer against what the jobs ask for."""

from __future__ import annotations

import fnmatch
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from coreg_ray.commands.base import Command, load

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "kuberay.yaml").read_text())
    return content


def arguments(entrypoint: str) -> list[str]:
    """What an entry point in one of the files gives the job, without the file that only a user has."""
    words = shlex.split(entrypoint.replace("\\", " "))
    words = words[next(at for at, word in enumerate(words) if word.endswith("jobs/pipeline.py")) + 1 :]
    at = words.index("--config")
    return words[:at] + words[at + 2 :]


def entrypoint_of_cluster_yaml() -> str:
    lines = (ROOT / "cluster.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if "ray job submit" in line)
    return " ".join(line.lstrip("#").strip() for line in lines[start : start + 5] if "ray down" not in line)


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert set(cluster) <= set(schema["properties"]), "the schema lets unknown keys pass, Ray ignores them"
    validate_config(prepare_config(cluster))


def test_nothing_is_open_to_the_world_and_no_secret_is_inside(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    commands = " ".join(cluster["head_start_ray_commands"])
    assert "grafana/*.json /home/ubuntu/grafana" in commands
    assert "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR=/home/ubuntu/grafana" in commands
    assert "--dashboard-host=127.0.0.1" in commands
    assert "security_group" not in cluster["provider"]  # Ray's own lets ssh in and nothing else
    text = (ROOT / "cluster.yaml").read_text() + (ROOT / "kuberay.yaml").read_text()
    for secret in ("aws_access_key", "AKIA", "aws_secret", "token:", "password"):
        assert secret not in text
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "LoadBalancer" not in text


def test_every_node_runs_the_versions_of_the_head(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    versions = "/home/ubuntu/coreg_ray/head-versions.txt"
    assert cluster["head_setup_commands"][-1].endswith(f"pip freeze --exclude-editable > {versions}")
    installs = [command for command in cluster["worker_setup_commands"] if "pip install" in command]
    assert installs
    assert all(command.endswith(f" -c {versions}") for command in installs)
    assert not any("pip install" in command for command in cluster["setup_commands"])
    assert "/home/ubuntu/coreg_ray" in cluster["file_mounts"]  # which the head hands on to workers
    assert not any(fnmatch.fnmatch("head-versions.txt", pattern) for pattern in cluster["rsync_exclude"])
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert not any(fnmatch.fnmatch("head-versions.txt", pattern) for pattern in ignored if pattern)
    spec = job["spec"]["rayClusterSpec"]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    assert len(images) == 1
    assert images.pop().partition(":")[2] not in ("", "latest")
    base = (ROOT / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{spec['rayVersion']}-" in base


def test_ray_tells_its_makers_nothing(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    assert "--disable-usage-stats" in cluster["head_start_ray_commands"][-1]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in head["env"]
    assert (
        'os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")' in (ROOT / "coreg_ray/cluster/connect.py").read_text()
    )


def test_the_entry_point_is_one_command(job: dict[str, Any]) -> None:
    """KubeRay pastes it into a line of its own shell, whose operators would take it apart."""
    assert not set("&|;<>`$") & set(job["spec"]["entrypoint"])
    files = [word for word in shlex.split(job["spec"]["entrypoint"]) if word.endswith((".py", ".yaml"))]
    assert len(files) == 2
    assert all(file.startswith("/home/ray/coreg_ray/") for file in files)


def test_workers_may_open_the_bucket_that_the_run_lies_in(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    for name in ("annotators", "trainers"):
        assert cluster["available_node_types"][name]["node_config"]["IamInstanceProfile"] == {
            "Name": "coreg-ray-worker"
        }
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["serviceAccountName"] == "coreg-ray"


def test_workers_come_when_asked_for_and_go_when_idle(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    workers = {name: kind for name, kind in types.items() if name != cluster["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert workers["annotators"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]  # drivers are not started again
    assert "InstanceMarketOptions" not in workers["trainers"]["node_config"]
    assert cluster["idle_timeout_minutes"] > 0
    spec = job["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in spec["workerGroupSpecs"])


def offers(cluster: dict[str, Any], job: dict[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """Per file: the resources, labels and number of each kind of worker."""
    on_aws = {
        name: {"CPU": kind["resources"]["CPU"], "GPU": kind["resources"].get("GPU", 0), "labels": kind.get("labels"),
               "count": kind["max_workers"]}
        for name, kind in cluster["available_node_types"].items()
    }  # fmt: skip
    on_kubernetes = {}
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        start = group["rayStartParams"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert (start["num-cpus"], start["num-gpus"]) == (limits["cpu"], limits["nvidia.com/gpu"])
        labels = dict(pair.split("=") for pair in start["labels"].split(","))
        on_kubernetes[group["groupName"]] = {
            "CPU": int(start["num-cpus"]), "GPU": int(start["num-gpus"]), "labels": labels,
            "count": group["maxReplicas"],
        }  # fmt: skip
    return [on_aws, on_kubernetes]


@pytest.mark.usefixtures("ray_cluster")
def test_both_files_offer_what_their_jobs_ask_for(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    from coreg_ray.cluster.resources import scaling_config

    entrypoints = (entrypoint_of_cluster_yaml(), job["spec"]["entrypoint"])
    for workers, entrypoint in zip(offers(cluster, job), entrypoints, strict=True):
        given = [*arguments(entrypoint), "--source.kind", "folder", "--source.path", "x", "--source.classes", "a,b"]
        config = load([*given, "--annotator.pretrained", "openai"], Command)
        annotators, trainers = workers["annotators"], workers["trainers"]
        assert config.annotator.num_gpus <= annotators["GPU"]
        assert config.annotator.num_cpus < annotators["CPU"]  # the rest decodes
        assert config.annotator.max_actors <= annotators["count"] * annotators["GPU"] / config.annotator.num_gpus
        scaling: Any = scaling_config(config.cluster)
        assert scaling.use_gpu
        assert scaling.label_selector == trainers["labels"]
        together = {name: amount * config.cluster.num_workers for name, amount in scaling.resources_per_worker.items()}
        assert all(amount <= trainers[name] for name, amount in together.items())  # a pair on one node
        assert config.cluster.wait_s > 0  # a node takes minutes to come


def test_the_working_directory_that_travels_is_small() -> None:
    patterns = [
        line.rstrip("/") for line in (ROOT / ".rayignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]

    def stays(path: Path) -> bool:
        return any(fnmatch.fnmatch(part, pattern) for part in path.relative_to(ROOT).parts for pattern in patterns)

    sizes = {path: path.stat().st_size for path in ROOT.rglob("*") if path.is_file() and not stays(path)}
    assert sum(sizes.values()) < 10e6
    assert ROOT / "jobs/pipeline.py" in sizes
    assert ROOT / "coreg_ray/embedded/coreg-tiny-clip.safetensors" in sizes
