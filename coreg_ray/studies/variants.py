"""What a setting of the method gains or costs in accuracy: one prepared run, trained with each variant and seed.

    python -m coreg_ray.studies.variants --run runs/digits --output study.jsonl --seeds 0 1 2 \\
        --variant default --variant method.order=sequential --variant method.exchanges=1,student.precision=float32

A variant is a list of settings, `default` for none. Two words stand for what no setting offers, so that it can be
compared: `passes=training` (pseudo-labels in training mode, as the authors' code makes them) and `batch_norm=renewed`
(statistics estimated anew from 20 weak batches before every assessment). Trainings are added to the file one by one,
and the same command goes on where it was stopped; without --variant it only reads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from coreg_ray.commands.base import Command, load
from coreg_ray.config import Config
from coreg_ray.images.paper_sets import explicit_student
from coreg_ray.methods import coreg
from coreg_ray.pure.rng import generator, key, uniform
from coreg_ray.pure.views.augment import WEAK_DRAWS, weak
from coreg_ray.run.storage import Folder
from coreg_ray.training import steps
from coreg_ray.training.assess import ASSESS_BATCH, assess
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State, build_state
from coreg_ray.training.worker import Task, load_data

log = logging.getLogger(__name__)

TRUTH = "test/accuracy"
RENEWING_BATCHES = 20
_KEPT = (TRUTH, "test/accuracy_a", "test/accuracy_b", "clean/a", "clean/b", "criterion/combined")


def train(run: str, variant: str, seed: int) -> dict[str, Any]:
    """One training on the rows and candidate sets of a run folder; writes nothing there."""
    words = [] if variant == "default" else variant.split(",")
    settings = [word for word in words if word.split("=")[0] not in _PATCHES]
    config = _configured(run, settings, seed)
    output, mesh = Folder.at(run), Mesh()
    task = Task.read(config, output)
    rows, scored = load_data(config, output, task, mesh)
    state = build_state(config.method, explicit_student(config), seed, task.classes, rows, mesh, task.prior)
    started = time.monotonic()
    with contextlib.ExitStack() as patches:
        for word in set(words) - set(settings):
            name, _, value = word.partition("=")
            patches.enter_context(_PATCHES[name](value))
        history = [epoch.metrics for epoch in coreg.fit(state, rows, scored, mesh)]
    kept = [{name: epoch[name] for name in _KEPT if name in epoch} for epoch in history]
    return {"run": run, "variant": variant, "seed": seed, "seconds": time.monotonic() - started, "history": kept}


def _configured(run: str, settings: list[str], seed: int) -> Config:
    path = Path(run, "config.yaml")
    overrides = [part for setting in settings for part in ("--" + setting.split("=")[0], setting.split("=")[1])]
    return load(["--config", str(path), "--seed", str(seed), *overrides], Command)


@contextlib.contextmanager
def _passes(value: str) -> Iterator[None]:
    """Pseudo-labels by networks in training mode, whose batch-norm statistics move with every such pass."""
    assert value == "training", value
    ours = steps.pseudo_labels

    def theirs(state: State, learner: Learner, *rest: Any) -> Any:
        with patch.object(learner.student, "eval"):
            return ours(state, learner, *rest)

    with patch.object(steps, "pseudo_labels", theirs):
        yield


@contextlib.contextmanager
def _batch_norm(value: str) -> Iterator[None]:
    """Batch-norm statistics of a few weak batches instead of training's moving averages, for every assessment."""
    assert value == "renewed", value

    def renewed(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> Any:
        _renew(state, learner, rows, mesh, epoch)
        return assess(state, learner, rows, mesh, epoch)

    with patch.object(coreg, "assess", renewed):
        yield


@torch.no_grad()
def _renew(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> None:
    norms = [layer for layer in learner.student.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    purpose = key(state.seed, "renew", learner.network, epoch)
    order = torch.randperm(len(rows), generator=generator(purpose))
    for index in order.split(min(ASSESS_BATCH, -(-len(rows) // RENEWING_BATCHES)))[:RENEWING_BATCHES]:
        draws = uniform(purpose, rows.numbers[index], WEAK_DRAWS)
        with state.autocast():
            learner.student(weak(rows.take(index, mesh.device), draws, flip=state.flip))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


_PATCHES: dict[str, Callable[[str], contextlib.AbstractContextManager[None]]] = {
    "passes": _passes,
    "batch_norm": _batch_norm,
}


def table(trainings: list[dict[str, Any]]) -> list[str]:
    """A line for every variant: mean and spread of the final accuracy over its seeds, and each seed's."""
    lines = []
    for variant in dict.fromkeys(training["variant"] for training in trainings):
        found = {t["seed"]: t["history"][-1][TRUTH] for t in trainings if t["variant"] == variant}
        values = [found[seed] for seed in sorted(found)]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = " ".join(f"{value:.4f}" for value in values)
        lines.append(f"{variant:45} {statistics.mean(values):.4f} +- {spread:.4f}   {each}")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run folder with rows/ and candidates/")
    parser.add_argument("--variant", action="append", default=[], help="KEY=VALUE,... or `default`; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # each network trains in a thread of its own
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    trainings = [t for t in map(json.loads, lines) if t["run"] == arguments.run]
    done = {(training["variant"], training["seed"]) for training in trainings}
    for seed in arguments.seeds:
        for variant in arguments.variant:
            if (variant, seed) in done:
                continue
            trainings.append(train(arguments.run, variant, seed))
            log.info("%s, seed %d: %.4f", variant, seed, trainings[-1]["history"][-1][TRUTH])
            with arguments.output.open("a") as file:
                file.write(json.dumps(trainings[-1]) + "\n")
    for line in table(trainings):
        log.info("%s", line)


if __name__ == "__main__":
    main()
