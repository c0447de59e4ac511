"""Ray Train runs the method: one worker holding both networks, or two equal teams of workers."""

from __future__ import annotations

import csv
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from coreg_ray.cluster.metrics import show_epoch
from coreg_ray.cluster.resources import refuse_unreachable, scaling_config, wait_for_resources
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.methods.coreg import NonFiniteLossError
from coreg_ray.run.storage import Folder
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.worker import Task, checkpoint, train

log = logging.getLogger(__name__)


def fit(config: Config, callbacks: Sequence[UserCallback] = ()) -> dict[str, Any]:
    """Train on what lies in the run folder; blocks until the last epoch is done.

    The same call after any interruption continues from the newest whole checkpoint, and starts no worker when there is
    nothing left to do.

    Args:
        callbacks: Ray Train's, which hear of every epoch.

    Returns:
        The last epoch's metrics, `world_size`, and `start_epoch`, the first epoch that the last worker group trained
        (the number of epochs when none was left).

    Raises:
        UserError: the cluster cannot hold the workers within `cluster.wait_s`, a node cannot reach the run folder, or
            the folder belongs to another run.
        NonFiniteLossError: a loss became infinite or NaN; the last good checkpoint stays.
        ray.train.TrainingFailedError: workers failed more often than `cluster.max_failures`.
    """
    output = Folder.at(config.output)
    if (done := _whole_run(config, output)) is not None:
        return done
    scaling = scaling_config(config.cluster)
    wait_for_resources(scaling, config.cluster.wait_s)
    refuse_unreachable(output)  # again: nodes have come since the job began
    trainer = TorchTrainer(
        worker,  # type: ignore[arg-type]
        train_loop_config=seen_from_anywhere(config).settings(),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if scaling.use_gpu else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(
            # A name of its own each time: what continues is the method's state in checkpoints/, never Ray's snapshot,
            # which is not written atomically and would also continue a run of another configuration.
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=f"{output.path}/ray",
            storage_filesystem=None if output.local else output.filesystem,
            callbacks=list(callbacks),  # type: ignore[arg-type]  # as below
            failure_config=FailureConfig(
                max_failures=config.cluster.max_failures,
                controller_failure_limit=2,  # type: ignore[call-arg]  # Ray's stubs are those of Train's first version
            ),
        ),
    )
    outcome: dict[str, Any] = _followed(trainer, output, config.method.epochs).return_value
    if "non_finite" in outcome:
        raise NonFiniteLossError(outcome["non_finite"])
    if "refused" in outcome:
        raise UserError(outcome["refused"])
    newest = checkpoint.newest(output / "checkpoints")
    assert newest is not None
    return checkpoint.describe(newest)["history"][-1] | outcome


def _whole_run(config: Config, output: Folder) -> dict[str, Any] | None:
    """What `fit` returns of a run whose last epoch is in its checkpoint and in its history already."""
    task, newest = Task.read(config, output), checkpoint.newest(output / "checkpoints")
    last = config.method.epochs - 1
    if newest is None or not any(int(row["epoch"]) == last for row in _epochs_in(output)):
        return None
    said = checkpoint.describe(newest)
    if (said["epoch"], said["fingerprint"]) != (last, task.fingerprint):
        return None
    return said["history"][-1] | {"world_size": config.cluster.num_workers, "start_epoch": last + 1}


def worker(settings: dict[Any, Any]) -> dict[str, Any]:
    """What every Ray Train worker runs. Errors that a retry cannot mend are returned, so that none is attempted."""
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats every report in full; the driver has a line
    config = Config.model_validate(settings)
    context = ray.train.get_context()
    torch.set_num_threads(_threads(config, context.get_world_size()))
    start = config.method.epochs
    try:
        for epoch in train(config, Mesh(get_device())):
            start = min(start, epoch.number)
            if context.get_world_rank() == 0:
                show_epoch(Folder.at(config.output).name, epoch.metrics)
            ray.train.report(epoch.metrics | _place())
    except NonFiniteLossError as error:
        return {"non_finite": str(error)}
    except UserError as error:
        return {"refused": str(error)}
    return {"world_size": context.get_world_size(), "start_epoch": start}


def _place() -> dict[str, str]:
    """The group of resources that the workers live in, for whoever must free it when their driver has been killed."""
    group = ray.util.get_current_placement_group()
    return {"placement_group": group.id.hex()} if group else {}


def absolute(path: str | None) -> str | None:
    """A relative path of something that exists here, made absolute; all else as it is."""
    is_local = path and path not in ("uniform", "annotator", "hub") and "://" not in path and Path(path).exists()
    return str(Path(path or "").resolve()) if is_local else path


def seen_from_anywhere(config: Config) -> Config:
    """Relative local paths made absolute: Ray Train's workers run in another working directory."""

    method = config.method.model_copy(update={"prior": absolute(config.method.prior)})
    student = config.student.model_copy(update={"pretrained": absolute(config.student.pretrained)})
    paths = {"output": absolute(config.output), "start_from": absolute(config.start_from)}
    return config.model_copy(update={**paths, "method": method, "student": student})


def _threads(config: Config, world: int) -> int:
    """CPU threads per network; one worker trains both side by side unless they take turns in the sequential order."""
    if config.cluster.threads:
        return config.cluster.threads
    if world > 1:
        return 1
    assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    at_once = 1 if config.method.order == "sequential" else 2
    return max(1, int(assigned) // at_once)


def _followed(trainer: TorchTrainer, output: Folder, epochs: int) -> Any:
    """The trainer's result; says a line for every epoch that appears in `history.csv`, all that a driver sees of it.

    It runs in a thread of its own, since in the main one Ray Train takes Ctrl-C over and keeps it.
    """
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(trainer.fit())
        except BaseException as error:  # whatever it is, the main thread raises it
            answer.set_exception(error)

    said = _epochs_in(output)[-1:]
    threading.Thread(target=work, daemon=True).start()  # a daemon, so that Ctrl-C need not wait for it
    while True:
        ended = answer.done()
        for row in _epochs_in(output):
            if not said or int(row["epoch"]) > int(said[0]["epoch"]):
                said = [row]
                log.info("%s", _line(row, epochs))
        if ended:
            return answer.result()
        wait([answer], timeout=1.0)


def _epochs_in(output: Folder) -> list[dict[str, str]]:
    if not output.exists("history.csv"):
        return []
    return list(csv.DictReader(output.read("history.csv").decode().splitlines()))


def _line(row: dict[str, str], epochs: int) -> str:
    """One epoch in one line, e.g. `epoch 12/20 coreg   loss 1.02 1.01  clean 0.81 0.79  test 0.953  7.1 s`."""
    parts = [f"epoch {int(row['epoch']) + 1}/{epochs} {row['phase']:6}"]
    for title, names in (
        ("loss", ("loss/a", "loss/b")), ("clean", ("clean/a", "clean/b")), ("agreement", ("criterion/label_free",)),
        ("test", ("test/accuracy",)),
    ):  # fmt: skip
        values = [f"{float(row[name]):.3f}" for name in names if row.get(name)]
        if values:
            parts.append(f"{title} {' '.join(values)}")
    return "  ".join([*parts, f"{float(row['time/epoch_s']):.1f} s"])
