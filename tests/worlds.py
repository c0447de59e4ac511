"""What the processes of `run_world` do; a module of its own, so that they can import it.

Starting a process costs seconds, so each world does several things in one go: `several` runs functions of this file.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import toy
from torch import Tensor, nn

from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.pure import losses
from coreg_ray.pure.rng import generator
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.assess import Opinion, assess, swap_opinions
from coreg_ray.training.evaluate import evaluate
from coreg_ray.training.fit import NonFiniteLossError, fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turns
from coreg_ray.training.networks import pack
from coreg_ray.training.plan import split_plan, whole_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State
from coreg_ray.training.worker import Task, begin, train


def several(calls: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The answers of some functions of this file, called one after the other: {name: arguments} -> {name: answer}."""
    return {name: globals()[name](Mesh(), *arguments) for name, arguments in calls.items()}


def fours(settings: dict[str, Any], data: dict[str, Any], folder: str, trainings: tuple[Any, ...]) -> dict[str, Any]:
    """All that is asked of a world of four; `folder` holds the checkpoints of a world of two."""
    mesh = Mesh()
    answer = {kind: forced(mesh, kind) for kind in ("all", "none", "one replica", "small replica")}
    answer["resumed"] = resumed(mesh, settings, data, f"{folder}/checkpoints")
    written(mesh, settings, data, f"{folder}/of four", 2)
    answer["again"] = resumed(mesh, settings, data, f"{folder}/of four")
    others = {"gradients": (), "poisoned": (), "refused": (f"{folder}/refused",), "accuracies": trainings}
    return answer | several(others)


def accuracies(mesh: Mesh, settings: dict[str, Any], data: dict[str, Any], seeds: tuple[int, ...]) -> list[float]:
    """The test accuracy of a whole training run for each seed."""
    return [toy.history(toy.toy(**data), mesh, seed, **settings)[-1]["test/accuracy"] for seed in seeds]


def full_history(mesh: Mesh, settings: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of a whole training run."""
    return toy.history(toy.toy(**data), mesh, **settings)


def written(mesh: Mesh, settings: dict[str, Any], data: dict[str, Any], folder: str, epochs: int) -> None:
    """Train some epochs, writing a checkpoint after each."""
    problem = toy.toy(**data)
    state, rows = toy.start(problem, mesh, **settings)
    for epoch in fit(state, rows, problem.scored, mesh, coreg):
        checkpoint.save(state, Folder.at(folder), "toy", mesh)
        if epoch.number + 1 == epochs:
            return


def resumed(mesh: Mesh, settings: dict[str, Any], data: dict[str, Any], folder: str) -> dict[str, Any]:
    """What a world makes of a checkpoint before it trains on; per-row tensors are in the order of the row numbers."""
    problem = toy.toy(**data)
    state, rows = toy.start(problem, mesh, **settings)
    newest = checkpoint.newest(Folder.at(folder))
    assert newest is not None
    checkpoint.resume(state, newest, mesh)
    answer: dict[str, Any] = {"numbers": rows.numbers, "scores": evaluate(state, problem.scored, mesh)}
    for learner in state.learners:
        answer[f"losses {learner.name}"] = learner.memory.losses.T.clone()
        answer[f"queue {learner.name}"] = learner.memory.queue.keys[learner.memory.queue.valid].clone()
    own = {learner.network: assess(state, learner, rows, mesh, state.epoch) for learner in state.learners}
    others = swap_opinions(own, mesh)
    counts = rows.sizes
    for learner in state.learners:
        network, name = learner.network, learner.name
        clean = others[network].clean
        plan = split_plan(rows, clean, 0.5, 0.25, state.seed, network, state.epoch, 25, mesh)
        warm = whole_plan(rows, state.seed, network, state.epoch, 25, mesh)
        answer[f"steps {name}"] = (plan.steps, warm.steps)
        answer[f"team rows {name}"] = (plan.team_labelled, plan.team_unlabelled, warm.team_unlabelled)
        answer[f"clean {name}"] = own[network].clean
        answer[f"labels {name}"] = list(own[network].soft_labels.split(counts.tolist()))
        answer[f"mean {name}"] = learner.memory.mean
    return answer


def chosen(mesh: Mesh, settings: dict[str, Any], data: dict[str, Any], folder: str) -> tuple[int, str]:
    """Where each process goes on, and what each says of a later checkpoint, when all but the first see none."""
    problem = toy.toy(**data)
    run, task = RunFolder.at(folder), Task(toy.CLASSES, data["count"], None, "toy")
    state, _ = toy.start(problem, mesh, **settings)
    sees = checkpoint.newest
    if mesh.rank:
        checkpoint.newest = lambda *_, **__: None
    config = toy.run_config(Path(folder))
    begin(state, config, run, task, mesh)
    refusal = "nothing"
    try:
        begin(state, config, run, replace(task, fingerprint="other"), mesh)
    except UserError as error:
        refusal = str(error)
    checkpoint.newest = sees
    return state.epoch, refusal


def full(mesh: Mesh, settings: dict[str, Any], data: dict[str, Any], folder: str) -> str:
    """What every process says when the last one's disk is full."""
    state, _ = toy.start(toy.toy(**data), mesh, **settings)
    write = Folder.write

    def refuse(self: Folder, name: str, content: bytes | str) -> None:
        if mesh.rank == mesh.world - 1:
            raise UserError(f"{name} cannot be written")
        write(self, name, content)

    Folder.write = refuse  # type: ignore[method-assign]
    try:
        checkpoint.save(state, Folder.at(folder), "toy", mesh)
    except UserError as error:
        return str(error)
    finally:
        Folder.write = write  # type: ignore[method-assign]
    return "nothing"


def forced(mesh: Mesh, kind: str) -> dict[str, Any]:
    """Two epochs after warm-up with the other network's opinion as `kind` says, on very unequal parts of the rows."""
    data = toy.toy(count=60)
    numbers = torch.arange(60) * 2
    numbers[:5] += 1  # of two replicas one holds five rows, fewer than its part of a batch
    data.rows = replace(data.rows, numbers=numbers.sort().values)
    settings: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "batch_size": 16, "contrast_delay": 0}
    state, rows = toy.start(data, mesh, **settings)
    state.epoch = 1  # contrast is on
    state.method = state.method.model_copy(update={"epochs": 3})
    sound = {
        "all": 1.0,
        "none": 0.0,
        "one replica": float(mesh.replica == 0),
        "small replica": float(mesh.replica == 1),
    }
    opinion = Opinion(torch.full((len(rows),), sound[kind]), torch.ones(len(rows.indices), dtype=torch.float16))
    heard = _Heard()
    coreg.log.addHandler(heard)
    metrics = [epoch.metrics for epoch in fit(state, rows, data.scored, mesh, _Convinced(opinion))]
    coreg.log.removeHandler(heard)
    weights = {learner.name: pack(learner.student) for learner in state.learners}
    return {"rows": len(rows), "metrics": metrics, "weights": weights, "warnings": heard.messages}


def gradients(mesh: Mesh) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of one batch of seven rows divided unequally over the team, and those of the whole batch at once.

    Two steps: in the second only replica 0 has rows. The last layer takes no part.
    """
    random = generator(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = nn.ModuleList([nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 2)])
    reduced: list[Tensor | None] = []
    whole: list[Tensor | None] = []

    def loss(inputs: Tensor, targets: Tensor, rows: int) -> Tensor:
        return losses.soft_cross_entropy(network[1](network[0](inputs).relu()), targets, denominator=rows)

    for counts in ([5, 2], [7, 0]):
        inputs = torch.randn(7, 5, generator=random)
        targets = torch.rand(7, 3, generator=random).softmax(1)
        for answer, parts in ((reduced, counts[: mesh.replicas]), (whole, None)):
            network.zero_grad(set_to_none=True)
            if parts is None:
                loss(inputs, targets, 7).backward()
            else:
                parts = parts if mesh.replicas > 1 else [7]
                mine = slice(sum(parts[: mesh.replica]), sum(parts[: mesh.replica + 1]))
                if parts[mesh.replica]:
                    loss(inputs[mine], targets[mine], 7).backward()
                mesh.reduce_gradients(network.parameters())
            answer.extend(None if p.grad is None else p.grad.clone() for p in network.parameters())
    return reduced, whole


def poisoned(mesh: Mesh) -> str:
    """What every process says when one weight of network b is not a number."""
    data = toy.toy(count=80)
    state, rows = toy.start(data, mesh, epochs=2, warmup_epochs=2)
    for learner in state.learners:
        if learner.network == 1:
            learner.student.classifier.weight.data[0, 0] = torch.nan
    try:
        list(fit(state, rows, data.scored, mesh, coreg))
    except NonFiniteLossError as error:
        return str(error)
    return "nothing"


def refused(mesh: Mesh, folder: str) -> str:
    """What every process says when only one of them cannot take part: all row numbers in the run folder are even."""
    data = toy.toy(count=20)
    data.rows = replace(data.rows, numbers=(torch.arange(20) + 2**61) * 2)
    if mesh.rank == 0:
        toy.prepare_run(Path(folder), data)
    mesh.barrier()
    config = toy.run_config(Path(folder))
    try:
        list(train(config, mesh, coreg))
    except UserError as error:
        return str(error)
    return "nothing"


class _Convinced:
    """Co-Reg whose networks are of the same given opinion in every epoch."""

    TERMS, LISTENS, DEPLOYED = coreg.TERMS, coreg.LISTENS, coreg.DEPLOYED
    remember = staticmethod(coreg.remember)

    def __init__(self, opinion: Opinion) -> None:
        self.opinion = opinion

    def turns(self, state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
        return coreg.turns(state, rows, mesh, epoch, assess=lambda *_: self.opinion)

    def settle(self, state: State, trained: list[Learner], mesh: Mesh) -> None:
        coreg.settle(state, trained, mesh)


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
