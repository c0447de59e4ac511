"""What a setting of the method gains or costs in accuracy: one prepared run, trained with each variant and seed.

    python -m coreg_ray.studies.variants --run runs/digits --output study.jsonl --seeds 0 1 2 \\
        --variant default --variant method.order=sequential --variant method.exchanges=1,student.precision=float32

A variant is a list of settings, `default` for none. Three words stand for what no setting offers, so that it can be
compared: `passes=training` (pseudo-labels in training mode, as the authors' code makes them), `batch_norm=renewed`
(statistics estimated anew from 20 weak batches before every assessment) and `aligned=false` (predictions are judged
as they are). Trainings are added to the file one by one, and the same command goes on where it was stopped; without
--variant it only reads.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from coreg_ray import metrics
from coreg_ray.config import Config, MethodConfig
from coreg_ray.errors import UserError
from coreg_ray.images.paper_sets import explicit_student
from coreg_ray.methods import coreg
from coreg_ray.pure.rng import generator, stream, uniform
from coreg_ray.pure.views.augment import WEAK_DRAWS, weak
from coreg_ray.run.folder import RunFolder
from coreg_ray.training.assess import ASSESS_BATCH, Opinion, assess
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Turns
from coreg_ray.training.networks import Student
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import Learner, State, build_state
from coreg_ray.training.worker import Task, load_data

log = logging.getLogger(__name__)

TRUTH = metrics.ACCURACY
RENEWING_BATCHES = 20
_KEPT = (
    *(TRUTH, metrics.ACCURACY_A, metrics.ACCURACY_B),
    *(metrics.of(metrics.CLEAN, network) for network in metrics.NETWORKS),
    metrics.COMBINED,
)


@dataclass
class Variant:
    """Co-Reg with what no setting offers; the method that the loop is handed.

    Attributes:
        passes: `training`: pseudo-labels by networks in training mode, whose batch-norm statistics move every time.
        batch_norm: `renewed`: statistics of a few weak batches instead of training's moving averages, for assessing.
        aligned: `false`: predictions are judged as they are, and not moved towards the class prior.
    """

    passes: str = ""
    batch_norm: str = ""
    aligned: str = ""

    TERMS: tuple[str, ...] = coreg.TERMS
    LISTENS: bool = coreg.LISTENS
    DEPLOYED: tuple[str, ...] = coreg.DEPLOYED

    def remember(self, method: MethodConfig, own: Student, rows: Rows, mesh: Mesh) -> coreg.Memory:
        """As `Method.remember`."""
        return coreg.remember(method, own, rows, mesh)

    def turns(self, state: State, rows: Rows, mesh: Mesh, epoch: int) -> Turns:
        """As `Method.turns`."""
        step = partial(coreg.coreg_step, evaluation_mode=self.passes != "training")
        judge = partial(_renew_and_assess if self.batch_norm else assess, aligned=not self.aligned)
        return coreg.turns(state, rows, mesh, epoch, assess=judge, step=step)

    def settle(self, state: State, trained: list[Learner], mesh: Mesh) -> None:
        """As `Method.settle`."""
        coreg.settle(state, trained, mesh)


WORDS = {"passes": "training", "batch_norm": "renewed", "aligned": "false"}


def train(run: str, variant: str, seed: int) -> dict[str, Any]:
    """One training on the rows and candidate sets of a run folder; writes nothing there."""
    given = dict(word.split("=", 1) for word in variant.split(",")) if variant != "default" else {}
    words = {name: given.pop(name) for name in WORDS if name in given}
    if any(value != WORDS[name] for name, value in words.items()):
        raise UserError(f"{variant}: the words are {', '.join(f'{name}={value}' for name, value in WORDS.items())}")
    folder, mesh = RunFolder.at(run), Mesh()
    config = _configured(folder, given, seed)
    task = Task.read(config, folder)
    rows, scored = load_data(config, folder, task, mesh)
    settings, student = config.method.whole(), explicit_student(config)
    state = build_state(settings, student, seed, task.class_names, rows, mesh, coreg.remember, task.prior)
    started = time.monotonic()
    method = Variant(words.get("passes", ""), words.get("batch_norm", ""), words.get("aligned", ""))
    history = [epoch.metrics for epoch in fit(state, rows, scored, mesh, method)]
    kept = [{name: epoch[name] for name in _KEPT if name in epoch} for epoch in history]
    return {"run": run, "variant": variant, "seed": seed, "seconds": time.monotonic() - started, "history": kept}


def _configured(folder: RunFolder, settings: dict[str, str], seed: int) -> Config:
    """The run's configuration with other settings, by dotted name, as YAML values."""
    config = folder.read_config()
    if config is None:
        raise UserError(f"{folder.path} is no run folder; give one with rows/ and candidates/")
    tree = config.settings() | {"seed": seed}
    for dotted, value in settings.items():
        *sections, name = dotted.split(".")
        branch = tree
        for section in sections:
            branch = branch[section]
        branch[name] = yaml.safe_load(value)
    return Config.model_validate(tree)


def _renew_and_assess(
    state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int, *, aligned: bool = True
) -> Opinion:
    _renew(state, learner, rows, mesh, epoch)
    return assess(state, learner, rows, mesh, epoch, aligned=aligned)


@torch.no_grad()
def _renew(state: State, learner: Learner, rows: Rows, mesh: Mesh, epoch: int) -> None:
    norms = [layer for layer in learner.student.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    purpose = stream(state.seed, "renew", learner.network, epoch)
    order = torch.randperm(len(rows), generator=generator(purpose))
    for index in order.split(min(ASSESS_BATCH, -(-len(rows) // RENEWING_BATCHES)))[:RENEWING_BATCHES]:
        draws = uniform(purpose, rows.numbers[index], WEAK_DRAWS)
        with state.autocast():
            learner.student(weak(rows.take(index, mesh.device), draws, flip=state.flip))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def table(trainings: list[dict[str, Any]]) -> list[str]:
    """A line for every variant: mean and spread of the final accuracy over its seeds, and each seed's."""
    lines = []
    for variant in dict.fromkeys(training["variant"] for training in trainings):
        accuracies = {t["seed"]: t["history"][-1][TRUTH] for t in trainings if t["variant"] == variant}
        values = [accuracies[seed] for seed in sorted(accuracies)]
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
