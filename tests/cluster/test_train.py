"""Ray Train runs the method, and nothing that happens to a worker, a node or the driver loses more than an epoch.

The run folders are written directly, so that nothing is annotated here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from world import run_world

from coreg_ray.cluster import train as training
from coreg_ray.config import ClusterConfig, Config
from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.history import Epochs
from coreg_ray.training import worker
from coreg_ray.training.fit import NonFiniteLossError
from coreg_ray.training.mesh import Mesh

SETTINGS: dict[str, Any] = {"epochs": 6, "warmup_epochs": 2}


def prepared(folder: Path, **cluster: Any) -> Config:
    settings: dict[str, Any] = {"num_workers": 1, "threads": 1, "resources_per_worker": {"CPU": 1}}
    return toy.prepare_run(
        folder, toy.toy(count=120), method=toy.method(**SETTINGS), cluster=ClusterConfig(**(settings | cluster))
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Epochs:
    """The history that every run here must end with, whatever befalls it."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    list(worker.train(prepared(folder), Mesh(), coreg))
    return RunFolder.at(folder).read_history()


def when_epochs_are_done(folder: Path, count: int, action: Callable[[], None]) -> threading.Thread:
    """Do something once `count` epochs stand in the history; before the run can end, the caller joins the thread."""

    def watch() -> None:
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            if (folder / "history.csv").exists() and len(RunFolder.at(folder).read_history()) >= count:
                action()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    listed = subprocess.run(["ps", "-Ao", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [(int(child), int(parent)) for child, parent in (line.split() for line in listed.splitlines())]
    family = [pid]
    for parent in family:
        family.extend(child for child, of in pairs if of == parent)
    return family[1:]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.cluster
def test_a_killed_worker_costs_no_more_than_an_epoch(tmp_path: Path, undisturbed: Epochs) -> None:
    import ray
    from ray.util.state import list_actors

    from coreg_ray.cluster.train import fit

    config = prepared(tmp_path / "run", num_workers=2)
    killed: list[int] = []

    def kill() -> None:
        alive = list_actors(ray.get_runtime_context().gcs_address, filters=[("state", "=", "ALIVE")])
        killed.append(next(actor.pid for actor in alive if actor.pid and "TrainWorker" in actor.class_name))
        os.kill(killed[0], signal.SIGKILL)

    watcher = when_epochs_are_done(tmp_path / "run", 2, kill)
    trained = fit(config)
    watcher.join()
    assert len(killed) == 1
    assert trained.start_epoch >= 2
    assert trained.world_size == 2
    assert trained.memory_mb is not None
    assert trained.memory_mb > 100
    assert trained.figures["epoch"] == SETTINGS["epochs"] - 1
    toy.same(RunFolder.at(tmp_path / "run").read_history(), undisturbed, tolerance=1e-4)
    everybody = list_actors(ray.get_runtime_context().gcs_address, limit=10_000)
    assert [actor for actor in everybody if "SynchronizationActor" in actor.class_name]  # Ray Train's own, and dead
    assert not [actor for actor in everybody if "DatasetManager" in actor.class_name]  # a process for nothing


def memory_of_two() -> float:
    """What a process says that all have held, where the second has held more."""
    mesh = Mesh()
    training.most_memory = lambda: 100.0 + mesh.rank
    return training.most_of_all(mesh)


def test_memory_is_that_of_the_largest_of_all_workers() -> None:
    assert run_world(2, "cluster.test_train.memory_of_two") == [101.0, 101.0]


DRIVER = """
import os, sys
import ray
from coreg_ray.config import Config
from coreg_ray.cluster.train import fit

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
print("started at", fit(Config.model_validate_json(sys.stdin.read())).start_epoch)
"""


def start_driver(config: Config, code: str = DRIVER) -> subprocess.Popen[str]:
    """A driver with a Ray of its own, in a process group of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    assert driver.stdin is not None
    driver.stdin.write(config.model_dump_json())
    driver.stdin.close()
    driver.stdin = None
    return driver


def finish(driver: subprocess.Popen[str], *words: str) -> list[str]:
    """The rest of the lines that begin with `words`, one each; Ray's own processes may speak in between."""
    printed, complaints = driver.communicate(timeout=1500)
    assert driver.returncode == 0, complaints[-3000:]
    rests = [[line.removeprefix(word) for line in printed.splitlines() if line.startswith(word)] for word in words]
    assert all(len(lines) == 1 for lines in rests), printed + complaints[-3000:]
    return [line for lines in rests for line in lines]


@pytest.mark.parametrize("own", [False, True])
def test_what_frees_resources_after_a_driver_is_started_only_where_ray_survives_it(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "own_cluster", lambda: own)
    trainer = training._Trainer(lambda: None)
    started = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert "BackendSetupCallback" in started
    assert "DatasetsCallback" not in started
    assert ("PlacementGroupCleanerCallback" in started) != own


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.cluster
def test_a_killed_driver_continues_with_the_same_command(tmp_path: Path, undisturbed: Epochs) -> None:
    from coreg_ray.cluster.train import fit

    config = prepared(tmp_path / "run")
    driver = start_driver(config)
    family: list[int] = []

    def kill() -> None:
        family.extend(descendants(driver.pid))
        os.kill(driver.pid, signal.SIGKILL)

    watcher = when_epochs_are_done(tmp_path / "run", 2, kill)
    while watcher.is_alive() and driver.poll() is None:  # one that could not start is not waited for
        watcher.join(0.2)
    for pid in family:  # what Ray leaves behind of this one driver, and what keeps its output open
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, complaints = driver.communicate(timeout=1500)
    assert driver.returncode == -signal.SIGKILL, complaints[-3000:]
    assert 2 <= len(RunFolder.at(tmp_path / "run").read_history()) < SETTINGS["epochs"]
    assert fit(config).start_epoch >= 2
    toy.same(RunFolder.at(tmp_path / "run").read_history(), undisturbed)


LOSING = """
import os, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.history import Epochs
from coreg_ray.cluster.resources import refuse_unreachable
from coreg_ray.cluster.train import fit
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

config = Config.model_validate_json(sys.stdin.read())
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
lost = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
seen = RunFolder.at(config.output)
hidden = Folder(seen.filesystem, f"/proc/self/fd/{os.open(config.output, os.O_RDONLY)}")  # this process's alone
try:
    refuse_unreachable(hidden)
except UserError as error:
    print("refused", error)
assert seen.entries() == hidden.entries()
answer = {}
thread = threading.Thread(target=lambda: answer.update(trained=fit(config)))
thread.start()
history = Path(config.output, "history.csv")
while thread.is_alive() and not (history.exists() and len(history.read_text().splitlines()) > 2):
    time.sleep(0.02)
cluster.remove_node(lost, allow_graceful=False)
cluster.add_node(num_cpus=1)
thread.join()
print("started at", answer["trained"].start_epoch)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.cluster
def test_a_lost_node_costs_no_more_than_an_epoch(
    tmp_path: Path, undisturbed: Epochs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    driver = start_driver(prepared(tmp_path / "run", num_workers=2), LOSING)
    start, refusal = finish(driver, "started at ", "refused ")
    assert int(start) >= 2
    assert re.search(r"cannot be seen from 2 of 2 nodes \([\d., ]+\); use a shared folder \(NFS\) or a URI", refusal)
    toy.same(RunFolder.at(tmp_path / "run").read_history(), undisturbed, tolerance=1e-4)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.cluster
def test_a_loss_that_is_no_number_is_not_tried_again(tmp_path: Path) -> None:
    from coreg_ray.cluster.train import fit

    config = prepared(tmp_path / "run")
    config = config.model_copy(update={"method": toy.method(epochs=3, warmup_epochs=3, learning_rate=1e30)})
    with pytest.raises(NonFiniteLossError, match=r"epoch \d, step \d, network [ab]: the \w+ loss is not finite"):
        fit(config)
    (attempt,) = (tmp_path / "run/ray").iterdir()
    assert attempt.is_dir()


@pytest.mark.usefixtures("ray_cluster")
def test_what_the_cluster_cannot_hold_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from coreg_ray.cluster.train import fit

    config = prepared(tmp_path / "run", num_workers=2, use_gpu=True, resources_per_worker=None)
    with pytest.raises(UserError, match=r"num_workers=2 .* needs 2 GPU \(there are 0\); lower it, .*cluster.wait_s"):
        fit(config)
    config = prepared(tmp_path / "asked", resources_per_worker={"CPU": 1, "GPU": 1})
    with pytest.raises(UserError, match=r"needs 1 GPU \(there are 0\)"):
        fit(config)
    config = prepared(tmp_path / "contradiction", resources_per_worker={"CPU": 1, "GPU": 1}, use_gpu=False)
    with pytest.raises(UserError, match=r"use_gpu=false contradicts cluster.resources_per_worker=.*; change one"):
        fit(config)
    config = prepared(tmp_path / "waiting", resources_per_worker={"CPU": 64}, wait_s=1.0)
    with caplog.at_level("INFO"), pytest.raises(UserError, match=r"needs 64 CPU \(there are 4\) after 1 s; lower it"):
        fit(config)
    assert "waiting for the cluster: 64 CPU (there are 4)" in caplog.text


def node(labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    """One as `ray.nodes()` lists it."""
    return {"Resources": resources, "Labels": labels or {}}


def test_nodes_with_other_labels_and_parts_of_nodes_hold_no_worker() -> None:
    from coreg_ray.cluster.resources import missing_for

    each = {"CPU": 1.0, "GPU": 1.0}
    idle = [node({"role": "annotate"}, CPU=8, GPU=1)] * 2  # annotators whose idle time is not over
    trainer = node({"role": "train"}, CPU=8, GPU=2)
    assert missing_for(2, each, {}, idle) == ""
    assert missing_for(2, each, {"role": "train"}, idle) == (
        "2 CPU (there are 0 on nodes with {'role': 'train'}), 2 GPU (there are 0 on nodes with {'role': 'train'})"
    )
    assert missing_for(2, each, {"role": "train"}, [*idle, trainer]) == ""
    assert missing_for(1, {"CPU": 8.0}, {}, [node(CPU=4)] * 2) == (
        "room for 1 workers, each on one node (there is room for 0)"
    )
    assert missing_for(10, {"CPU": 0.1}, {}, [node(CPU=1)]) == ""


@pytest.mark.usefixtures("ray_cluster")
def test_what_runs_beside_others_knows_how_many_there_may_be() -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from coreg_ray.cluster.resources import at_once_here

    def asked(cpus: float, most: int) -> Any:
        return ray.remote(num_cpus=cpus)(at_once_here).remote(most)

    assert ray.get([asked(1, 0), asked(2, 0), asked(3, 0), asked(1, 3), asked(2, 8)]) == [4, 2, 1, 3, 2]
    group = placement_group([{"CPU": 2}])  # as trials have one
    held = PlacementGroupSchedulingStrategy(group)
    inside = ray.remote(num_cpus=2, scheduling_strategy=held)(at_once_here).remote(0)
    assert ray.get(inside) == 2
    remove_placement_group(group)


@pytest.mark.parametrize(
    ("workers", "gpus", "most", "teams"),
    [
        (2, [8], 9, 4),
        (2, [8], 3, 3),
        (2, [2, 2], 2, 1),
        (4, [2, 2], 1, 1),
        (2, [1, 1], 1, 1),  # on a node each
        (2, [3, 3], 3, 2),  # one of them may have one worker on each node
        (2, [0], 1, 1),
    ],
)
def test_teams_of_workers_know_how_many_may_be_on_a_node(workers: int, gpus: list[int], most: int, teams: int) -> None:
    from coreg_ray.cluster.resources import teams_on_one_node

    nodes: list[dict[str, float]] = [{"GPU": float(count), "CPU": 16.0} for count in gpus]
    assert teams_on_one_node(workers, {"GPU": 1.0}, most, nodes) == teams


@pytest.mark.parametrize(
    ("selector", "fits"),
    [("train", True), ("!train", False), ("spare", False), ("in(spare, train)", True), ("!in(spare,train)", False)],
)
def test_label_selectors_mean_what_ray_means_by_them(selector: str, fits: bool) -> None:
    from coreg_ray.cluster.resources import has_labels

    assert has_labels({"role": "train"}, {"role": selector}) is fits
    assert has_labels({}, {"role": selector}) is selector.startswith("!")


def test_an_odd_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="num_workers=3 cannot hold two equal teams; use 1 or an even number"):
        ClusterConfig(num_workers=3)
