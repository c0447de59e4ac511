"""What the annotation gives without the method, for comparison: a linear probe and a distilled student.

Both learn from the same images, candidate sets and probabilities as the networks did, no true label among them:

- probe: a linear classifier on the annotator's stored embeddings, partial cross-entropy on the candidate sets;
- distilled: the same architecture as the networks, cross-entropy with the mean of the prompts' probabilities on weak
  views (METHOD: section 8, "KD from the mean").
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from coreg_ray import assembly
from coreg_ray.annotations import contains, matrix, parts, read_table
from coreg_ray.annotators.clip import TextTable, probabilities
from coreg_ray.config import Config
from coreg_ray.draws import generator, key, uniform
from coreg_ray.losses import partial_cross_entropy, soft_cross_entropy
from coreg_ray.networks import Student, build_student
from coreg_ray.sample import Sample, read_sample
from coreg_ray.sources import row_numbers
from coreg_ray.storage import Folder
from coreg_ray.views import WEAK_DRAWS, weak

log = logging.getLogger(__name__)

KEPT = "baselines.json"
MOST_IMAGES = 20_000  # of the pool; more make no difference to a linear probe
DISTIL_EPOCHS = 20  # or as many as the run has, if these are fewer
MOST_SECONDS = 60.0  # a student that would take longer is left out, and the report says so
_PROBE_STEPS, _PROBE_DECAY = 100, 1e-4
_BATCH = 64
_TIMED_STEPS = 10


@dataclass(frozen=True)
class Baseline:
    """A comparison; `accuracy` is None where it was left out, `note` says why or how."""

    name: str
    accuracy: float | None
    seconds: float | None
    note: str


@dataclass(frozen=True)
class Answers:
    """What the annotator stored about the images of a sample.

    Attributes:
        embedding: (M, D) float32 unit vectors. mean: (M, K) mean of the prompts' probabilities.
    """

    embedding: Tensor
    mean: Tensor


def baselines(output: Folder, config: Config, classes: list[str]) -> list[Baseline]:
    """Both baselines, scored on the run's labelled test images; none where these lack.

    They do not depend on the training, so they are kept in `baselines.json` and only made anew with other settings.
    """
    wanted = [config.fingerprint(), output.read_json("candidates/manifest.json").get("fingerprint")]
    if output.exists(KEPT) and (kept := output.read_json(KEPT))["fingerprint"] == wanted:
        return [Baseline(**entry) for entry in kept["baselines"]]
    made = _run(output, config, classes)
    output.write_json(KEPT, {"fingerprint": wanted, "baselines": [asdict(entry) for entry in made]})
    return made


def _run(output: Folder, config: Config, classes: list[str]) -> list[Baseline]:
    side, count = config.student.resolution, len(classes)
    pool = read_sample(output, "pool", side, count, MOST_IMAGES)
    test = read_sample(output, "test", side, count, MOST_IMAGES)
    if pool is None or test is None:
        return []
    pool = pool.where(pool.candidates.any(dim=1).numpy() & ~pool.held_out(config.source.holdout))
    test = test.where((test.labels >= 0).numpy())
    known, asked = read_answers(output, "pool", pool), read_answers(output, "test", test)
    if known is None or asked is None or not len(pool) or not len(test):
        return []
    return [_probe(known, asked, pool, test), _distilled(known, pool, test, config)]


def read_answers(output: Folder, split: str, sample: Sample) -> Answers | None:
    """Embeddings and mean probabilities of the first annotator that embeds; None where there is none."""
    table = output / "annotations" / split
    names = table.read_json(assembly.USED) if table.exists(assembly.USED) else []
    for folder in (table / name for name in names):
        card = assembly.read_card(folder)
        if card.dim:
            return _answers(folder, assembly.read_text(folder, card), sample)
    return None


def _answers(folder: Folder, text: TextTable, sample: Sample) -> Answers | None:
    order = np.argsort(sample.numbers)
    embedding = torch.zeros(len(sample), text.embeddings.shape[2], dtype=torch.float16)
    found = 0
    for part in parts(folder):
        table = read_table(folder, part.name, ["image_id", "embedding"])
        rows = row_numbers(table["image_id"].to_pylist())
        wanted = contains(sample.numbers[order], rows)
        places = order[np.searchsorted(sample.numbers[order], rows[wanted])]
        embedding[torch.from_numpy(places)] = torch.from_numpy(matrix(table["embedding"], np.float16)[wanted])
        found += len(places)
    if found < len(sample):
        return None
    mean = torch.cat([block.mean(dim=1) for block in probabilities(embedding, text)])
    return Answers(F.normalize(embedding.float(), dim=1), mean[:, : sample.candidates.shape[1]])


def _probe(known: Answers, asked: Answers, pool: Sample, test: Sample) -> Baseline:
    started = time.perf_counter()
    weights = fit_probe(known.embedding, pool.candidates)
    hits = (_with_one(asked.embedding) @ weights).argmax(dim=1) == test.labels
    seconds = time.perf_counter() - started
    note = f"on {len(pool):,} stored embeddings; needs the annotator's image encoder to predict"
    return Baseline("Linear probe on the embeddings", float(hits.double().mean()), seconds, note)


def fit_probe(embedding: Tensor, candidates: Tensor) -> Tensor:
    """Weights (D + 1, K), the last row a bias, of a linear classifier under partial cross-entropy.

    Args:
        embedding: (M, D) unit vectors. candidates: (M, K) bool.
    """
    inputs = _with_one(embedding)
    weights = torch.zeros(inputs.shape[1], candidates.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = partial_cross_entropy(inputs @ weights, candidates) + _PROBE_DECAY * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _with_one(embedding: Tensor) -> Tensor:
    return torch.cat([embedding, torch.ones(len(embedding), 1)], dim=1)


def _distilled(known: Answers, pool: Sample, test: Sample, config: Config) -> Baseline:
    name = "Student distilled from the mean"
    started = time.perf_counter()
    student = distil(pool, known.mean, config)
    if student is None:
        limit = f"left out: it would take more than {MOST_SECONDS:.0f} s on this machine"
        return Baseline(name, None, None, limit)
    with torch.inference_mode():
        device = student.pixel_mean.device
        said = torch.cat([student.classify(block.to(device)).argmax(dim=1).cpu() for block in test.pixels.split(512)])
    accuracy = float((said == test.labels).double().mean())
    seconds = time.perf_counter() - started
    return Baseline(
        name, accuracy, seconds, f"{len(pool):,} images, {distil_epochs(config)} epochs, the same architecture"
    )


def distil_epochs(config: Config) -> int:
    """Passes over the images that the distilled student takes."""
    return min(DISTIL_EPOCHS, config.method.epochs)


def distil(pool: Sample, targets: Tensor, config: Config) -> Student | None:
    """A student trained on targets (M, K) by SGD with a cosine schedule; None if that would take too long here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(config.seed, "distil"))
        student = build_student(config.student, targets.shape[1]).to(device).train()
    values = pool.pixels.double()
    student.pixel_mean.copy_(values.mean(dim=(0, 2, 3)))
    student.pixel_std.copy_(values.std(dim=(0, 2, 3)).clamp(min=1))
    method = config.method
    optimizer = torch.optim.SGD(
        student.parameters(), method.learning_rate, momentum=method.momentum, weight_decay=method.weight_decay
    )
    order = generator(key(config.seed, "distil", "order"))
    steps = max(1, len(pool) // _BATCH)
    epochs = distil_epochs(config)
    clock = _Clock(steps * epochs)
    for epoch in range(epochs):
        for rate, group in ((math.cos(math.pi * epoch / epochs), g) for g in optimizer.param_groups):
            group["lr"] = method.learning_rate * (1 + rate) / 2
        draws = uniform(key(config.seed, "distil", epoch), torch.from_numpy(pool.numbers), WEAK_DRAWS)
        for index in torch.randperm(len(pool), generator=order).split(_BATCH)[:steps]:
            views = weak(pool.pixels[index].to(device), draws[index], flip=config.student.flip is not False)
            loss = soft_cross_entropy(student.classify(views), targets[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if clock.step() > MOST_SECONDS:
                return None
    return student.eval()


class _Clock:
    """Expects, after a few steps, how long all of them will take; zero before that."""

    def __init__(self, steps: int) -> None:
        self._steps, self._taken, self._started = steps, 0, 0.0

    def step(self) -> float:
        self._taken += 1
        if self._taken == 1:  # it warmed up
            self._started = time.perf_counter()
        if self._taken != 1 + _TIMED_STEPS:
            return 0.0
        return (time.perf_counter() - self._started) / _TIMED_STEPS * self._steps
