"""Ray Train runs the method: one worker holding both networks, or two equal teams of workers."""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from coreg_ray import metrics
from coreg_ray.cluster.connect import own_cluster
from coreg_ray.cluster.metrics import show_epoch
from coreg_ray.cluster.resources import refuse_unreachable, scaling_config, wait_for_resources
from coreg_ray.cluster.waiting import moved, waiting_for
from coreg_ray.config import Config
from coreg_ray.config.paths import with_absolute_paths
from coreg_ray.errors import UserError
from coreg_ray.methods import KINDS
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.records import TrainResult
from coreg_ray.training.embeddings import refuse_lacking
from coreg_ray.training.fit import NonFiniteLossError
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.worker import Task, checkpoint, refuse_other_run, train

log = logging.getLogger(__name__)

_MEBIBYTE = 2**20


def fit(config: Config, callbacks: Sequence[UserCallback] = (), compared: bool = False) -> TrainResult:
    """Train on what lies in the run folder; blocks until the last epoch is done.

    The same call after any interruption continues from the newest whole checkpoint, and starts no worker when there is
    nothing left to do.

    Args:
        callbacks: Ray Train's, which hear of every epoch. compared: as of `training.worker.train`.

    Raises:
        UserError: the cluster cannot hold the workers within `cluster.wait_s`, a node cannot reach the run folder, or
            the folder belongs to another run, or was trained on other candidate sets or images, or the annotators have
            not stored what the method looks at.
        NonFiniteLossError: a loss became infinite or NaN; the last good checkpoint stays.
        ray.train.TrainingFailedError: workers failed more often than `cluster.max_failures`.
    """
    run = RunFolder.at(config.output)
    if (done := _whole_run(config, run)) is not None:
        return done
    refuse_lacking(config, run)
    scaling = scaling_config(config.cluster)
    wait_for_resources(scaling, config.cluster.wait_s)
    refuse_unreachable(run)  # again: nodes have come since the job began
    trainer = _Trainer(
        worker,  # type: ignore[arg-type]
        train_loop_config={"settings": with_absolute_paths(config).settings(), "compared": compared},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if scaling.use_gpu else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(
            # A name of its own each time: what continues is the method's state in checkpoints/, never Ray's snapshot,
            # which is not written atomically and would also continue a run of another configuration.
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=run.ray.path,
            storage_filesystem=None if run.local else run.filesystem,
            callbacks=list(callbacks),  # type: ignore[arg-type]  # as below
            failure_config=FailureConfig(
                max_failures=config.cluster.max_failures,
                controller_failure_limit=2,  # type: ignore[call-arg]  # Ray's stubs are those of Train's first version
            ),
        ),
    )
    each: dict[str, float] = dict(scaling.resources_per_worker or {})  # type: ignore[arg-type]
    with waiting_for(each):
        outcome: dict[str, Any] = _followed(trainer, run, config.method.whole().epochs).return_value
    if "non_finite" in outcome:
        raise NonFiniteLossError(outcome["non_finite"])
    if "refused" in outcome:
        raise UserError(outcome["refused"])
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    last = checkpoint.describe(newest)["history"][-1]
    return TrainResult(last, outcome["world_size"], outcome["start_epoch"], outcome["memory_mb"])


class _Trainer(TorchTrainer):
    """Without what Ray Train would start for nothing, each a process that takes seconds.

    That is the manager of data sets, of which there are none: rows lie in files. And, on a Ray that ends with this
    process, the one that frees the workers' resources after the process has been killed. Where a version of Ray makes
    its callbacks otherwise, they stay.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        needless = {"DatasetsCallback", *(["PlacementGroupCleanerCallback"] if own_cluster() else [])}
        return [callback for callback in made if type(callback).__name__ not in needless]


def _whole_run(config: Config, run: RunFolder) -> TrainResult | None:
    """What `fit` returns of a run whose last epoch is in its checkpoint and in its history already.

    Raises:
        UserError: it was trained on something else than lies there now.
    """
    task, newest = Task.read(config, run), checkpoint.newest(run.checkpoints)
    last = config.method.whole().epochs - 1
    if newest is not None:
        refuse_other_run(run, task, checkpoint.describe(newest)["fingerprint"])  # now, and not in every worker
    if newest is None or not any(row[metrics.EPOCH] == last for row in run.read_history()):
        return None
    description = checkpoint.describe(newest)
    if description["epoch"] != last:
        return None
    return TrainResult(description["history"][-1], config.cluster.num_workers, last + 1)


def worker(given: dict[Any, Any]) -> dict[str, Any]:
    """What every Ray Train worker runs. Errors that a retry cannot mend are returned, so that none is attempted."""
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats every report in full; the driver has a line
    config = Config.model_validate(given["settings"])
    context = ray.train.get_context()
    torch.set_num_threads(threads(config, context.get_world_size()))
    start = config.method.whole().epochs
    try:
        method, compared, mesh = KINDS[config.method.kind], bool(given["compared"]), Mesh(get_device())
        for epoch in train(config, mesh, method, compared=compared):
            start = min(start, epoch.number)
            if context.get_world_rank() == 0:
                show_epoch(RunFolder.at(config.output).name, epoch.metrics)
            ray.train.report(epoch.metrics | _place())
        memory = most_of_all(mesh)
    except NonFiniteLossError as error:
        return {"non_finite": str(error)}
    except UserError as error:
        return {"refused": str(error)}
    return {"world_size": context.get_world_size(), "start_epoch": start, "memory_mb": memory}


def most_of_all(mesh: Mesh) -> float:
    """MiB that one of all processes has held at most; every one calls this."""
    return float(mesh.world_max(torch.tensor(most_memory(), dtype=torch.float64)))


def most_memory() -> float:
    """MiB that this process has held at most: of the GPU's memory where it has one, else of the machine's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / _MEBIBYTE, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _place() -> dict[str, str]:
    """The group of resources that the workers live in, for whoever must free it when their driver has been killed."""
    group = ray.util.get_current_placement_group()
    return {"placement_group": group.id.hex()} if group else {}


def threads(config: Config, world: int) -> int:
    """CPU threads per network; one worker trains both side by side unless they take turns in the sequential order."""
    if config.cluster.threads:
        return config.cluster.threads
    if world > 1:
        return 1
    assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    at_once = 1 if config.method.order == "sequential" else 2
    return max(1, int(assigned) // at_once)


def _followed(trainer: TorchTrainer, run: RunFolder, epochs: int) -> Any:
    """The trainer's result; says a line for every epoch that appears in `history.csv`, all that a driver sees of it.

    It runs in a thread of its own, since in the main one Ray Train takes Ctrl-C over and keeps it.
    """
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(trainer.fit())
        except BaseException as error:  # whatever it is, the main thread raises it
            answer.set_exception(error)

    shown = len(run.read_history())
    threading.Thread(target=work, daemon=True).start()  # a daemon, so that Ctrl-C need not wait for it
    while True:
        ended = answer.done()
        history = run.read_history()
        for row in history[shown:]:
            moved()
            log.info("%s", _line(row, epochs))
        shown = max(shown, len(history))
        if ended:
            return answer.result()
        wait([answer], timeout=1.0)


def _line(row: dict[str, Any], epochs: int) -> str:
    """One epoch in one line, e.g. `epoch 12/20 coreg   loss 1.02 1.01  clean 0.81 0.79  test 0.953  7.1 s`."""
    parts = [f"epoch {row[metrics.EPOCH] + 1}/{epochs} {row[metrics.PHASE]:6}"]
    for title, names in (
        ("loss", [metrics.of(metrics.LOSS, network) for network in metrics.NETWORKS]),
        ("clean", [metrics.of(metrics.CLEAN, network) for network in metrics.NETWORKS]),
        ("agreement", [metrics.LABEL_FREE]),
        ("test", [metrics.ACCURACY]),
    ):
        values = [f"{row[name]:.3f}" for name in names if name in row]
        if values:
            parts.append(f"{title} {' '.join(values)}")
    return "  ".join([*parts, f"{row[metrics.EPOCH_S]:.1f} s"])
