"""What the annotation gives without the method, for comparison: a linear probe and a distilled student.

Both learn from the same images, candidate sets and probabilities as the networks did, no true label among them:

- probe: a linear classifier on the annotator's stored embeddings, partial cross-entropy on the candidate sets;
- distilled: the same architecture as the networks, cross-entropy with the mean of the prompts' probabilities on weak
  views (METHOD: section 8, "KD from the mean"); on the features of the images themselves where networks are heads.

Where votes from files are all there is, one such student of the most votes takes their place and, in mode label_model,
one of the label model's posterior (`vote_targets`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.annotation import writer
from coreg_ray.annotation.arrow import matrix, read_table
from coreg_ray.annotation.clip import TextTable, probabilities
from coreg_ray.annotation.parts import parts
from coreg_ray.config import Config
from coreg_ray.ids import contains, row_numbers
from coreg_ray.images.paper_sets import explicit_student
from coreg_ray.pure.losses import partial_cross_entropy, soft_cross_entropy
from coreg_ray.pure.rng import generator, stream, uniform
from coreg_ray.pure.views.augment import WEAK_DRAWS, weak
from coreg_ray.report.vote_targets import only_votes, vote_targets
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import Baseline
from coreg_ray.run.storage import Folder
from coreg_ray.training.networks import Student, build_student
from coreg_ray.training.rows import feature_statistics, feature_sums, pixel_statistics, pixel_sums
from coreg_ray.training.sample import Sample, Samples
from coreg_ray.training.state import optimizer_of, working_precision

MOST_IMAGES = 20_000  # of the pool; more make no difference to a linear probe
MOST_BYTES = 1_000_000_000  # of pixels: the driver's machine is often a small one
MOST_TOLD = 100_000_000  # images x classes, for each of which the annotator's mean probability is held: 400 MB
MOST_PROBED = 20_000_000  # images x classes; logits and gradients of a probe of so many are 80 MB each
DISTIL_EPOCHS = 20  # or as many as the run has, if these are fewer
LEAST_EPOCHS = 5  # a student that has no time for them is left out, and the report says so
MOST_SECONDS, MOST_SHARE = 30.0, 0.1  # of time to distil in, or of the training's time, if that is more
_PROBE_STEPS, _PROBE_DECAY = 100, 1e-4
_PROBE_MEMORY = 100_000_000  # numbers in the steps that the optimizer remembers, 400 MB
PROBE, DISTILLED = "Linear probe on the embeddings", "Student distilled from the mean"
_TIMED_STEPS = 10


@dataclass(frozen=True)
class Answers:
    """What the annotator stored about the images of a sample.

    Attributes:
        embedding: (M, D) float32 unit vectors. mean: (M, K) mean of the prompts' probabilities.
    """

    embedding: Tensor
    mean: Tensor


def compare(run: RunFolder, config: Config, trained_s: float = 0.0) -> list[Baseline]:
    """Both baselines, scored on the run's labelled test images; none where these lack.

    They do not depend on the training, so they are kept in the run folder and only made anew with other settings.

    Args:
        trained_s: seconds that the training took; a part of them may go into distilling.
    """
    kept = read_baselines(run, config)
    if kept is not None:
        return kept
    made = _make(run, config, max(MOST_SECONDS, MOST_SHARE * trained_s))
    run.write_baselines(_fingerprint(run, config), made)
    return made


def read_baselines(run: RunFolder, config: Config) -> list[Baseline] | None:
    """What `compare` has kept for these very settings and annotations."""
    return run.read_baselines(_fingerprint(run, config))


def _most_images(config: Config, num_classes: int) -> int:
    """Images of a split that `compare` looks at, at most; of the pool one more, to see that there are too many."""
    return min(MOST_IMAGES, MOST_BYTES // (3 * config.student.resolution**2), MOST_TOLD // num_classes + 1)


def _fingerprint(run: RunFolder, config: Config) -> list[str | None]:
    manifest = run.read_candidate_manifest()
    return [config.fingerprint(), manifest.fingerprint if manifest else None]


def _make(run: RunFolder, config: Config, limit_s: float) -> list[Baseline]:
    manifest = run.read_candidate_manifest()
    if manifest is None:
        return []
    count = len(manifest.class_names)
    most, told = _most_images(config, count), MOST_TOLD // count
    samples = Samples(run, config.student.resolution, count)
    pool, test = samples.of("pool", most), samples.of("test", min(most, told))
    if pool is None or test is None:
        return []
    if len(pool) > told:
        return [_left_out(name, MOST_TOLD, count) for name in (PROBE, DISTILLED)]
    whole = len(test) == test.total
    pool = pool.where(pool.candidates.any(dim=1).numpy() & ~pool.held_out(config.source.holdout))
    test = test.where((test.labels >= 0).numpy())
    known, asked = read_answers(run, "pool", pool), read_answers(run, "test", test)
    if not len(pool) or not len(test):
        return []
    if only_votes(run):
        taught = vote_targets(run, pool, config.candidates.mode)
        share_s = limit_s / len(taught)
        made = [_distilled(targets, pool, test, config, share_s, name) for name, targets in taught.items()]
    elif known is None or asked is None:
        return []
    else:
        made = [_probe(known, asked, pool, test), _distilled(known.mean, pool, test, config, limit_s)]
    scored = "" if whole else f"; scored on a sample of {len(test):,} test images"
    return [entry if entry.accuracy is None else replace(entry, note=entry.note + scored) for entry in made]


def _left_out(name: str, limit: int, classes: int) -> Baseline:
    note = f"left out: more than {limit // classes:,} images of {classes:,} classes are too many for one machine"
    return Baseline(name, None, None, note)


def read_answers(run: RunFolder, split: Split, sample: Sample) -> Answers | None:
    """Embeddings and mean probabilities of the first annotator that embeds; None where there is none."""
    for folder in run.read_used(split):
        card = writer.read_card(folder)
        if card.dim:
            return _answers(folder, writer.read_text(folder, card), sample)
    return None


def _answers(folder: Folder, text: TextTable, sample: Sample) -> Answers | None:
    order = np.argsort(sample.numbers)
    embedding = torch.zeros(len(sample), text.embeddings.shape[2], dtype=torch.float16)
    answered = 0
    for part in parts(folder):
        table = read_table(folder, part.name, ["image_id", "embedding"])
        rows = row_numbers(table["image_id"].to_pylist())
        in_sample = contains(sample.numbers[order], rows)
        places = order[np.searchsorted(sample.numbers[order], rows[in_sample])]
        embedding[torch.from_numpy(places)] = torch.from_numpy(matrix(table["embedding"], np.float16)[in_sample])
        answered += len(places)
    if answered < len(sample):
        return None
    mean = torch.cat([block.mean(dim=1) for block in probabilities(embedding, text)])
    return Answers(F.normalize(embedding.float(), dim=1), mean[:, : sample.candidates.shape[1]])


def _probe(known: Answers, asked: Answers, pool: Sample, test: Sample) -> Baseline:
    classes = pool.candidates.shape[1]
    if len(pool) * classes > MOST_PROBED:
        return _left_out(PROBE, MOST_PROBED, classes)
    started = time.perf_counter()
    weights = fit_probe(known.embedding, pool.candidates)
    hits = (_with_one(asked.embedding) @ weights).argmax(dim=1) == test.labels
    seconds = time.perf_counter() - started
    note = f"on {len(pool):,} stored embeddings; needs the annotator's image encoder to predict"
    return Baseline(PROBE, float(hits.double().mean()), seconds, note, len(test))


def fit_probe(embedding: Tensor, candidates: Tensor) -> Tensor:
    """Weights (D + 1, K), the last row a bias, of a linear classifier under partial cross-entropy.

    Args:
        embedding: (M, D) unit vectors. candidates: (M, K) bool.
    """
    inputs = _with_one(embedding)
    weights = torch.zeros(inputs.shape[1], candidates.shape[1], requires_grad=True)
    past = min(_PROBE_STEPS, max(2, _PROBE_MEMORY // (2 * weights.numel())))
    optimizer = torch.optim.LBFGS([weights], max_iter=_PROBE_STEPS, history_size=past, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = partial_cross_entropy(inputs @ weights, candidates) + _PROBE_DECAY * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _with_one(embedding: Tensor) -> Tensor:
    return torch.cat([embedding, torch.ones(len(embedding), 1)], dim=1)


def _distilled(
    targets: Tensor, pool: Sample, test: Sample, config: Config, limit_s: float, name: str = DISTILLED
) -> Baseline:
    started = time.perf_counter()
    with _half_of_the_threads():
        distilled = distil(pool, targets, config, limit_s)
    if distilled is None:
        limit = f"left out: {LEAST_EPOCHS} epochs would take more than {limit_s:.0f} s on this machine"
        return Baseline(name, None, None, limit)
    student, epochs = distilled
    device = student.device
    with torch.inference_mode():
        answers = [student.classify(block.to(device)).argmax(dim=1).cpu() for block in test.inputs.split(512)]
        predicted = torch.cat(answers)
    accuracy = float((predicted == test.labels).double().mean())
    seconds = time.perf_counter() - started
    cut = "" if epochs == distil_epochs(config) else f" of {distil_epochs(config)}, all that {limit_s:.0f} s allow"
    note = f"{len(pool):,} images, {epochs} epochs{cut}, the same architecture"
    return Baseline(name, accuracy, seconds, note, len(test))


@contextmanager
def _half_of_the_threads() -> Iterator[None]:
    """As many as a network has in training. Small networks gain nothing from more, and lose on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def distil_epochs(config: Config) -> int:
    """Passes over the images that the distilled student takes where there is time."""
    return min(DISTIL_EPOCHS, config.method.whole().epochs)


def distil(pool: Sample, targets: Tensor, config: Config, limit_s: float) -> tuple[Student, int] | None:
    """A student trained on targets (M, K) by SGD with a cosine schedule, and its epochs: fewer where it is slow here.

    Batch size, learning rates, precision and share of a warm start are those of the networks. None if not even
    LEAST_EPOCHS fit into `limit_s`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = None if pool.features is None else pool.inputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "distil"))
        size = None if features is None else features.shape[1]
        student = build_student(config.student, targets.shape[1], size).to(device).train()
    if features is None:
        student.normalise_by(*pixel_statistics(pixel_sums(pool.pixels.permute(0, 2, 3, 1))))
    else:
        student.normalise_by(*feature_statistics(feature_sums(features)))
    method, precision = config.method.whole(), working_precision(config.student, device)
    optimizer = optimizer_of(student, method, config.student)
    size = min(method.batch_size, len(pool))
    steps, epochs = len(pool) // size, distil_epochs(config)
    order, flip = generator(stream(config.seed, "distil", "order")), explicit_student(config).flip is not False
    started, taken = 0.0, 0
    while taken < steps * epochs:
        student.hold(taken < steps * epochs * config.student.warm_start / method.epochs)
        draws = uniform(stream(config.seed, "distil", taken), torch.from_numpy(pool.numbers), WEAK_DRAWS)
        for index in torch.randperm(len(pool), generator=order).split(size)[:steps]:
            optimizer.learning_rate = method.learning_rate * (1 + math.cos(math.pi * taken / (steps * epochs))) / 2
            if features is None:
                views = weak(pool.pixels[index].to(device), draws[index], flip=flip)
            else:
                views = features[index].to(device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = student.classify(views)
            loss = soft_cross_entropy(logits.float(), targets[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            taken += 1
            if taken == 1:  # it warmed up
                started = time.perf_counter()
            if taken == 1 + _TIMED_STEPS:
                pace = (time.perf_counter() - started) / _TIMED_STEPS
                affordable = int(limit_s / (pace * steps))
                if affordable < min(epochs, LEAST_EPOCHS):
                    return None
                epochs = min(epochs, affordable)
    return student.eval(), epochs
