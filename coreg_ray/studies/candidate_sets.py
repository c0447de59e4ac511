"""What kinds of candidate sets, and weights of candidates, are worth in training: the embedded digits, seed by seed.

    python -m coreg_ray.studies.candidate_sets --output study.jsonl --seeds 0 1 2 --student network
    python -m coreg_ray.studies.candidate_sets --output study.jsonl --seeds 0 1 2 --ways union --neighbours 0 10

Networks see 8 px, the scans' own size, or are heads on the tiny CLIP's embeddings. Trainings are added to the file one
by one, and the same command goes on where it was stopped; `--seeds` without a number only reads.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreg_ray.annotation.clip import ClipAnnotator, embed_text, load_model, probabilities, votes
from coreg_ray.annotation.vocabulary import vocabulary
from coreg_ray.config import MethodConfig, StudentConfig
from coreg_ray.embedded.digits import CLASS_NAMES, Split, digits
from coreg_ray.methods import KINDS
from coreg_ray.metrics import ACCURACY
from coreg_ray.pure.candidates import combine_votes
from coreg_ray.pure.cpl import cpl_bounds, cpl_sets
from coreg_ray.pure.label_fit import fit as fit_model
from coreg_ray.pure.label_model import block_sums, posterior, sets_by_mass
from coreg_ray.pure.rng import generator
from coreg_ray.pure.voters import survey_votes
from coreg_ray.pure.weights import relative_weights
from coreg_ray.training.evaluate import Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.neighbours import nearest
from coreg_ray.training.rows import Images, Rows, make_rows
from coreg_ray.training.state import build_state

log = logging.getLogger(__name__)

SIDE, CLASSES = 8, len(CLASS_NAMES)
COMMON: dict[str, Any] = {"resolution": SIDE, "projection": 32, "precision": "float32", "flip": False}
STUDENTS = {
    "network": StudentConfig(width=8, **COMMON),
    "head": StudentConfig(name="annotator", frozen=True, **COMMON),
}
WAYS = ("union", "union+weights", "label_model", "label_model+weights", "cpl", "union+posterior")


@dataclass(frozen=True)
class Answered:
    """Digits of one split: pixels (N, S, S, 3), labels (N,), embeddings (N, 1, D), votes (N, P), mean (N, K)."""

    pixels: Tensor
    labels: Tensor
    embedding: Tensor
    votes: Tensor
    mean: Tensor

    @classmethod
    def of(cls, split: Split) -> Answered:
        """What the tiny CLIP says of a split."""
        model = load_model("embedded", None)
        text = embed_text(model, vocabulary("digits", None, None))
        _, images, labels = digits(split)
        embedding = ClipAnnotator(model, text).embed(torch.from_numpy(images))
        mean = torch.cat([block.mean(dim=1) for block in probabilities(embedding, text)])
        small = torch.from_numpy(digits(split, SIDE)[1])
        return cls(small, torch.from_numpy(labels), embedding[:, None], votes(embedding, text).long(), mean)


def sets_and_values(pool: Answered) -> dict[str, tuple[Tensor, Tensor]]:
    """By each mode its candidate sets (N, K), and what its candidates are weighted by (N, K)."""
    union = combine_votes(pool.votes, CLASSES)
    model = fit_model(survey_votes(pool.votes, CLASSES), lambda one: block_sums(pool.votes, one))
    belief = posterior(pool.votes, model)
    cast = torch.zeros(len(union), CLASSES).scatter_add_(1, pool.votes, torch.ones(pool.votes.shape))
    return {
        "union": (union, cast),
        "union+posterior": (union, belief),
        "label_model": (sets_by_mass(belief, pool.votes), belief),
        "cpl": (cpl_sets(pool.mean, *cpl_bounds(pool.mean)), pool.mean),
    }


def train(
    way: str, seed: int, student: str, epochs: int, kind: str, neighbours: int, pool: Answered, test: Answered
) -> dict[str, Any]:
    """One training; the figures of its last epoch. Neighbours are those in the annotator's space."""
    sets, values = sets_and_values(pool)[way.removesuffix("+weights")]
    weights = relative_weights(values, sets) if "+" in way else None
    numbers = torch.randint(0, 2**62, (len(sets),), generator=generator(seed))
    heads = student == "head"
    rows: Rows = make_rows(numbers, pool.pixels, sets, weights=weights, features=pool.embedding if heads else None)
    method = MethodConfig.model_validate({
        "kind": kind, "neighbours": neighbours, "epochs": epochs,
        "warmup_epochs": min(epochs, max(4, epochs * 6 // 20)), "contrast_delay": 2, "ramp_epochs": 4,
        "batch_size": 64, "warmup_batch_size": 64, "learning_rate": 0.04, "key_momentum": 0.99, "queue_size": 1024,
    })  # fmt: skip
    near = nearest(pool.embedding[torch.argsort(numbers), 0], neighbours, Mesh()) if neighbours else None
    remember = KINDS[kind].remember
    state = build_state(method, STUDENTS[student], seed, list(CLASS_NAMES), rows, Mesh(), remember, neighbours=near)
    places = torch.arange(len(test.labels))
    scored = Images(places, test.pixels, test.labels, features=test.embedding if heads else None)
    *_, last = fit(state, rows, Scored(None, scored), Mesh(), KINDS[kind])
    return {
        "way": way, "seed": seed, "student": student, "epochs": epochs, "kind": kind, "neighbours": neighbours,
        "accuracy": last.metrics[ACCURACY],
        "coverage": float(sets.gather(1, pool.labels[:, None]).float().mean()),
        "candidates": float(sets.sum(1).float().mean()),
    }  # fmt: skip


def summary(lines: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each way: accuracies, their mean and spread over seeds, coverage and size of the sets."""
    for key in dict.fromkeys(map(_setting, lines)):
        some = [line for line in lines if _setting(line) == key]
        accuracies = [line["accuracy"] for line in some]
        spread = statistics.stdev(accuracies) if len(some) > 1 else 0.0
        yield (
            f"{key[0]}, {key[1]} epochs, {key[2]:20} {key[3]}, {key[4]} neighbours: "
            f"{statistics.mean(accuracies):.3f} +- {spread:.3f} "
            f"(truth in {some[0]['coverage']:.3f} at {some[0]['candidates']:.2f})"
        )


def _setting(line: dict[str, Any]) -> tuple[Any, ...]:
    """What was trained; lines of earlier versions are of Co-Reg without neighbours."""
    whom = (line.get("kind", "coreg"), line.get("neighbours", 0))
    return (line["student"], line["epochs"], line["way"], *whom)


def main() -> None:
    """Run the study, or read it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, one a training")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--student", choices=list(STUDENTS), default="network")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--kind", choices=("coreg", "dividemix"), default="coreg")
    parser.add_argument("--neighbours", type=int, nargs="*", default=[0], help="method.neighbours, one or more")
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.output.read_text().splitlines()] if given.output.exists() else []
    done = {(*_setting(line), line["seed"]) for line in lines}
    asked = [
        (way, seed, given.student, given.epochs, given.kind, near)
        for seed in given.seeds
        for way in given.ways
        for near in given.neighbours
    ]
    left = [one for one in asked if (one[2], one[3], one[0], one[4], one[5], one[1]) not in done]
    if left:
        pool, test = Answered.of("train"), Answered.of("test")
        for one in left:
            lines.append(train(*one, pool, test))
            log.info("%s", lines[-1])
            with given.output.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    for line in summary(lines):
        log.info("%s", line)


if __name__ == "__main__":
    main()
