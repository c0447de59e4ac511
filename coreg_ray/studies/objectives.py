"""How well criteria without labels rank trials: many varied small trainings on the embedded digits, then correlations.

    python -m coreg_ray.studies.objectives --noise clip --regime wide --trials 24 --output study.jsonl

Trials are added to the file one by one, and the same command goes on where it was stopped; `--trials 0` only reads.
Regimes: `wide` reaches from useless settings to fair ones at 12 px, so networks collapse now and then; in `near` all
settings are sensible, at 16 px, and what differs is whether purification or the annotator's errors win.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreg_ray.annotation.clip import ClipAnnotator, embed_text, load_model, votes
from coreg_ray.annotation.vocabulary import vocabulary
from coreg_ray.config import MethodConfig, StudentConfig
from coreg_ray.embedded.digits import CLASS_NAMES, digits
from coreg_ray.ids import held_out, row_numbers
from coreg_ray.methods import coreg
from coreg_ray.metrics import ACCURACY
from coreg_ray.pure.candidates import combine_votes, synthetic_candidates
from coreg_ray.pure.label_free import ENOUGH
from coreg_ray.pure.rng import generator
from coreg_ray.search.definition import Search
from coreg_ray.search.objective import DEFAULT, WITHOUT_LABELS, settled, spearman, spearman_interval
from coreg_ray.studies.halving import replay
from coreg_ray.training.evaluate import Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Images, Rows, make_rows
from coreg_ray.training.state import build_state

log = logging.getLogger(__name__)

HOLDOUT = 0.05
SYNTHETIC = (0.15, 0.15)  # partial rate, noise rate
SIDES = {"wide": 12, "near": 16}
TRUTH = ACCURACY


def settings(regime: str, number: int) -> dict[str, Any]:
    """What trial `number` sets; any two trials differ in about everything."""
    random = np.random.default_rng([number, len(regime)])

    def log_uniform(low: float, high: float) -> float:
        return float(10 ** random.uniform(math.log10(low), math.log10(high)))

    def one_of(*values: Any) -> Any:
        return values[int(random.integers(len(values)))]

    common = {"warmup_batch_size": 64, "key_momentum": 0.99, "queue_size": 512}
    if regime == "near":
        return common | {
            "epochs": 20, "warmup_epochs": one_of(8, 8, 10, 10, 12, 20), "learning_rate": log_uniform(0.012, 0.06),
            "lambda_u": one_of(0.5, 1.0, 2.0), "clean_threshold": float(random.uniform(0.35, 0.6)),
            "batch_size": one_of(32, 64), "contrast_weight": one_of(0.0, 0.1), "contrast_delay": 2, "ramp_epochs": 4,
        }  # fmt: skip
    return common | {
        "epochs": 14, "warmup_epochs": int(random.integers(4, 10)), "learning_rate": log_uniform(0.006, 0.08),
        "lambda_u": one_of(0.0, 0.5, 1.0, 2.0), "clean_threshold": float(random.uniform(0.2, 0.8)),
        "temperature": one_of(0.3, 0.5, 0.8), "batch_size": one_of(64, 64, 128), "momentum": one_of(0.6, 0.9, 0.9),
        "weight_decay": log_uniform(1e-5, 3e-3), "contrast_weight": one_of(0.0, 0.1, 0.3),
        "prototype_weight": one_of(0.0, 0.1), "contrast_delay": 1, "ramp_epochs": 3,
    }  # fmt: skip


def candidate_sets(noise: str, labels: Tensor) -> Tensor:
    """Candidate sets (N, K) of the embedded pool: of the tiny CLIP's votes, or drawn from the labels (N,)."""
    if noise == "synthetic":
        return synthetic_candidates(labels, len(CLASS_NAMES), *SYNTHETIC, generator(7))
    model = load_model("embedded", None)
    text = embed_text(model, vocabulary("digits", None, None))
    return combine_votes(votes(ClipAnnotator(model, text).embed(torch.from_numpy(digits("train")[1])), text), 10)


def load_pool(noise: str, side: int) -> tuple[Rows, Scored]:
    """The digits to train on, and those that networks are scored on, as in a training run."""
    ids, _, labels = digits("train")
    numbers, sets = torch.from_numpy(row_numbers(ids)), candidate_sets(noise, torch.from_numpy(labels))
    pixels = torch.from_numpy(digits("train", size=side)[1])
    out = torch.from_numpy(held_out(numbers.numpy(), HOLDOUT))
    test_ids, test_pixels, test_labels = digits("test", size=side)
    test = Images(torch.from_numpy(row_numbers(test_ids)), torch.from_numpy(test_pixels), torch.from_numpy(test_labels))
    looked_at = torch.from_numpy(held_out(numbers.numpy(), ENOUGH / len(numbers)))

    def rows(mask: Tensor) -> Rows:
        return make_rows(numbers[mask], pixels[mask], sets[mask])

    return rows(~out), Scored(rows(out), test, rows(looked_at & ~out))


def run_trials(noise: str, regime: str, numbers: range, done: set[int]) -> Iterator[dict[str, Any]]:
    """Train the trials that are not done; yields what each came to."""
    left = [number for number in numbers if number not in done]
    if not left:
        return
    rows, scored = load_pool(noise, SIDES[regime])
    student = StudentConfig(resolution=SIDES[regime], width=8, projection=32, flip=False, views="randaugment")
    for number in left:
        method = MethodConfig(**settings(regime, number))
        state = build_state(method, student, number, list(CLASS_NAMES), rows, Mesh(), coreg.remember)
        history = [epoch.metrics for epoch in fit(state, rows, scored, Mesh(), coreg)]
        log.info("%s, %s, trial %d: accuracy %.3f", noise, regime, number, history[-1][TRUTH])
        kept = [{name: epoch[name] for name in (*WITHOUT_LABELS, TRUTH)} for epoch in history]
        yield {"noise": noise, "regime": regime, "trial": number, "history": kept}


def correlations(trials: list[dict[str, Any]], share: float = 1.0) -> list[str]:
    """Lines of a table: each criterion after `share` of the epochs against the final accuracy, with its 90 % interval.

    The last column is what choosing by the criterion costs: the best trial's accuracy less the chosen one's.
    """
    truth = [trial["history"][-1][TRUTH] for trial in trials]
    lines = [f"{len(trials)} trials, accuracy {min(truth):.2f} to {max(truth):.2f}, after {share:.0%} of the epochs"]
    for name in WITHOUT_LABELS:
        scores = [settled(_first([epoch[name] for epoch in trial["history"]], share)) for trial in trials]
        low, high = spearman_interval(scores, truth)
        lost = max(truth) - truth[int(np.argmax(scores))]
        lines.append(f"  {name:22} {spearman(scores, truth):5.2f}  [{low:5.2f}, {high:5.2f}]  {lost:.3f}")
    return lines


def _first(values: list[float], share: float) -> list[float]:
    return values[: max(1, round(share * len(values)))]


def early_stopping(trials: list[dict[str, Any]], count: int = 16, searches: int = 300) -> list[str]:
    """What ASHA by the default objective would have spent and lost: means over searches of `count` trials each.

    A search takes trials of the study in an order of its own. Lost is the accuracy of its best trial less that of its
    winner; beside it, what the same objective loses without early stopping, and with it by the true accuracy.
    """
    count = min(count, len(trials))
    truth = np.array([trial["history"][-1][TRUTH] for trial in trials])
    scores = {name: [[epoch[name] for epoch in trial["history"]] for trial in trials] for name in (DEFAULT, TRUTH)}
    longest, reduction = max(map(len, scores[TRUTH])), Search().reduction_factor
    orders = [np.random.default_rng(number).permutation(len(trials))[:count] for number in range(searches)]
    ended = np.array([settled(history) for history in scores[DEFAULT]])
    at_end = np.mean([truth[o].max() - truth[o][np.argmax(ended[o])] for o in orders])
    lines = [
        f"{count} trials a search, reduction {reduction:g}, all trained to the end: {at_end:.3f} lost by {DEFAULT}",
        "  grace         share of the epochs  lost   lost by the true accuracy",
    ]
    for part in (3, 4, 5, 8):
        grace = max(1, round(longest / part))
        spent, lost = {}, {}
        for name, histories in scores.items():
            replays = [replay([histories[i] for i in order], grace, reduction) for order in orders]
            whole = [sum(len(histories[i]) for i in order) for order in orders]
            spent[name] = np.mean([sum(each.epochs) / all_ for each, all_ in zip(replays, whole, strict=True)])
            lost[name] = np.mean(
                [truth[o].max() - truth[o][each.winner] for o, each in zip(orders, replays, strict=True)]
            )
        shown = f"{spent[DEFAULT]:.2f}                 {lost[DEFAULT]:.3f}  {lost[TRUTH]:.3f}"
        lines.append(f"  1/{part} {grace:3} epochs  {shown}")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", choices=("clip", "synthetic"), default="clip")
    parser.add_argument("--regime", choices=tuple(SIDES), default="wide")
    parser.add_argument("--trials", type=int, default=24, help="trials in all, those in the file included")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # each network trains in a thread of its own
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    trials = [json.loads(line) for line in lines]
    same = [t for t in trials if (t["noise"], t["regime"]) == (arguments.noise, arguments.regime)]
    done = {trial["trial"] for trial in same}
    for trial in run_trials(arguments.noise, arguments.regime, range(arguments.trials), done):
        same.append(trial)
        with arguments.output.open("a") as file:
            file.write(json.dumps(trial) + "\n")
    for share in (0.4, 0.65, 1.0):
        for line in correlations(same, share):
            log.info("%s", line)
    for line in early_stopping(same):
        log.info("%s", line)


if __name__ == "__main__":
    main()
