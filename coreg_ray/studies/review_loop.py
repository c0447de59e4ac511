"""What a few reviewed images are worth: accuracy after 10, 20 and 50 of them by review.csv's order, and at random.

    python -m coreg_ray.studies.review_loop --output study.jsonl --seeds 0 1 2

A run on the embedded digits that leaves room is the start: networks half as wide as the preset's, 12 epochs, and the
three prompts for calculators, which name the truth for 0.80 of the images. Its images are put in an order, the first
of them get their true labels as manual ones, and the run goes on from its networks for a few epochs, as `--start_from`
does. The order `doubt` is by the entropy of both networks' mean prediction alone. Continuations are added to the file
one by one, and the same command goes on where it was stopped; `--seeds` without numbers only reads.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.annotation.clip import ClipAnnotator, embed_text, load_model, votes
from coreg_ray.annotation.vocabulary import vocabulary
from coreg_ray.config import ExportConfig, MethodConfig, StudentConfig
from coreg_ray.deploy.export import choose
from coreg_ray.deploy.predictions import Pair
from coreg_ray.embedded.digits import CLASS_NAMES, PROMPTS, digits
from coreg_ray.ids import held_out, row_numbers
from coreg_ray.methods import coreg
from coreg_ray.metrics import ACCURACY
from coreg_ray.pure.candidates import combine_votes
from coreg_ray.pure.rng import generator, stream
from coreg_ray.report.review import review_order
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.evaluate import Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Images, Rows, make_rows
from coreg_ray.training.sample import Sample
from coreg_ray.training.state import State, build_state

log = logging.getLogger(__name__)

SIDE, HOLDOUT = 16, 0.05
POOR = (9, 10, 11)  # places among the embedded prompts
COUNTS = (10, 20, 50)
ORDERS = ("review", "random", "doubt")
STUDENT = StudentConfig(resolution=SIDE, width=8, projection=32, flip=False)
_COMMON: dict[str, Any] = {"batch_size": 64, "warmup_batch_size": 64, "key_momentum": 0.99, "queue_size": 512}
FIRST = MethodConfig(epochs=12, warmup_epochs=6, contrast_delay=1, ramp_epochs=4, learning_rate=0.04, **_COMMON)
THEN = MethodConfig(epochs=6, warmup_epochs=0, contrast_delay=0, ramp_epochs=0, learning_rate=0.02, **_COMMON)
FIGURES = (ACCURACY, "pool/accuracy")


def study(seeds: list[int], orders: list[str], done: set[tuple[int, str, int]], kept: Path) -> Iterator[dict[str, Any]]:
    """Continue every seed's first run with each order and number of reviewed images that is not done.

    Args:
        done: (seed, order, count). kept: folder for the checkpoints of the first runs.
    """
    continuations = [("none", 0), *((order, count) for count in COUNTS for order in orders)]
    if all((seed, *pair) in done for seed in seeds for pair in continuations):
        return
    rows, scored, truth = load_pool()
    for seed in seeds:
        left = [pair for pair in continuations if (seed, *pair) not in done]
        if not left:
            continue
        start, logits, features = first_run(rows, scored, seed, RunFolder.at(kept / f"seed-{seed}"))
        wrong = logits.mean(dim=0).argmax(dim=1) != truth
        for order, count in left:
            chosen = images(order, count, logits, features, seed)
            began = time.monotonic()
            state = build_state(THEN, STUDENT, seed, list(CLASS_NAMES), rows, Mesh(), coreg.remember)
            checkpoint.start_from(state, start)
            for epoch in fit(state, reviewed(rows, chosen, truth[chosen]), scored, Mesh(), coreg):
                figures = epoch.metrics
            rest = torch.ones(len(rows), dtype=torch.bool)
            rest[chosen] = False
            yield {
                "seed": seed,
                "order": order,
                "count": count,
                "found": int(wrong[chosen].sum()),
                "before/pool/accuracy": float((~wrong).double().mean()),
                f"before/{ACCURACY}": checkpoint.describe(start)["history"][-1][ACCURACY],
                ACCURACY: figures[ACCURACY],
                "pool/accuracy": float((both(state, rows) == truth)[rest].double().mean()),
                "seconds": time.monotonic() - began,
            }


def load_pool() -> tuple[Rows, Scored, Tensor]:
    """The digits to train on with the candidate sets of a few poor prompts, those that only score, and true labels."""
    ids, pixels, labels = digits("train", size=SIDE)
    model = load_model("embedded", None)
    text = embed_text(model, vocabulary("digits", None, [PROMPTS[place] for place in POOR]))
    sets = combine_votes(votes(ClipAnnotator(model, text).embed(torch.from_numpy(digits("train")[1])), text), 10)
    numbers = row_numbers(ids)
    kept = ~held_out(numbers, HOLDOUT)
    kept_numbers = torch.from_numpy(numbers[kept])
    rows = make_rows(kept_numbers, torch.from_numpy(pixels[kept]), sets[torch.from_numpy(kept)])
    test_ids, test_pixels, test_labels = digits("test", size=SIDE)
    test = Images(torch.from_numpy(row_numbers(test_ids)), torch.from_numpy(test_pixels), torch.from_numpy(test_labels))
    return rows, Scored(None, test), torch.from_numpy(labels[kept])[kept_numbers.argsort()]


def first_run(rows: Rows, scored: Scored, seed: int, folder: RunFolder) -> tuple[Folder, Tensor, Tensor]:
    """The checkpoint to start from, trained unless it lies there; its calibrated logits (2, N, K), features (N, F)."""
    if checkpoint.newest(folder.checkpoints) is None:
        state = build_state(FIRST, STUDENT, seed, list(CLASS_NAMES), rows, Mesh(), coreg.remember)
        for epoch in fit(state, rows, scored, Mesh(), coreg):
            log.info("seed %d, epoch %d: %.3f", seed, epoch.number, epoch.metrics[ACCURACY])
        checkpoint.save(state, folder.checkpoints, "review loop", Mesh())
    start, pair = checkpoint.newest(folder.checkpoints), Pair.of(folder)
    assert start is not None
    assert pair is not None
    sets, unknown = rows.candidates(torch.arange(len(rows)), torch.device("cpu")), torch.full((len(rows),), -1)
    pixels = rows.pixels.permute(0, 3, 1, 2)
    sample = Sample(rows.numbers.numpy(), pixels, [""] * len(rows), unknown, sets, unknown, rows.trusted, len(rows))
    _, temperature = choose(pair, ExportConfig(), sample)
    logits, features = pair.look(pixels)
    return start, logits / temperature, features


def images(order: str, count: int, logits: Tensor, features: Tensor, seed: int) -> Tensor:
    """The rows that a person looks at."""
    probs = logits.softmax(dim=2)
    if order == "review":
        return review_order(probs, features, count)
    if order == "doubt":
        mean = probs.mean(dim=0)
        return torch.xlogy(mean, mean).sum(dim=1).argsort()[:count]
    return torch.randperm(len(features), generator=generator(stream(seed, "random review")))[:count]


def reviewed(rows: Rows, chosen: Tensor, labels: Tensor) -> Rows:
    """The rows with manual labels for the chosen ones, as `source.manual_labels` would make them."""
    sets = rows.candidates(torch.arange(len(rows)), torch.device("cpu"))
    sets[chosen] = F.one_hot(labels, rows.num_classes).bool()
    trusted = torch.zeros(len(rows), dtype=torch.bool)
    trusted[chosen] = True
    return make_rows(rows.numbers, rows.pixels, sets, trusted)


@torch.inference_mode()
def both(state: State, rows: Rows) -> Tensor:
    """(N,) what both networks together say."""
    device = torch.device("cpu")
    networks = [learner.student.eval() for learner in state.learners]
    parts = [
        torch.stack([network.classify(rows.take(index, device)) for network in networks]).mean(0).argmax(1)
        for index in torch.arange(len(rows)).split(512)
    ]
    return torch.cat(parts)


def table(entries: list[dict[str, Any]]) -> list[str]:
    """A line for each number of images: mean and spread over the seeds in each order, and the model's errors met."""
    if not entries:
        return ["nothing measured yet"]
    before = {entry["seed"]: entry for entry in entries}.values()
    lines = [f"{len(before)} seeds; before: {_spread([entry[f'before/{name}'] for entry in before])} {name}"
             for name in FIGURES]  # fmt: skip
    for count in (0, *COUNTS):
        for order in ("none",) if not count else ORDERS:
            same = [entry for entry in entries if (entry["order"], entry["count"]) == (order, count)]
            if same:
                shown = ", ".join(f"{name} {_spread([entry[name] for entry in same])}" for name in FIGURES)
                errors = statistics.mean(entry["found"] for entry in same)
                lines.append(f"{count:3} {order:7} {shown}, wrong before: {errors:.1f} of {count}")
    return lines


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} +- {spread:.4f} ({' '.join(f'{value:.4f}' for value in values)})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines; checkpoints lie beside it")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # each network trains in a thread of its own
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    entries = list(map(json.loads, lines))
    done = {(entry["seed"], entry["order"], entry["count"]) for entry in entries}
    for entry in study(arguments.seeds, arguments.orders, done, arguments.output.with_suffix(".checkpoints")):
        entries.append(entry)
        log.info("seed %(seed)d, %(count)d images, %(order)s: %(test/accuracy).4f", entry)
        with arguments.output.open("a") as file:
            file.write(json.dumps(entry) + "\n")
    for line in table(entries):
        log.info("%s", line)


if __name__ == "__main__":
    main()
