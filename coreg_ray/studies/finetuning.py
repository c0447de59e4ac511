"""How a pretrained network is best trained whole: its learning rate, its batch norm, a warm start of the heads.

Photos of waste (the data folder of `studies.real_noise`), small, with candidate sets drawn at random; each variant
trains Co-Reg, its warm-up first, and is scored on test images. `held` never lets the backbone learn.

    python -m coreg_ray.studies.finetuning --data DIR --output FILE --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from coreg_ray import metrics
from coreg_ray.config import MethodConfig, StudentConfig
from coreg_ray.errors import UserError
from coreg_ray.methods import coreg
from coreg_ray.pure.candidates import synthetic_candidates
from coreg_ray.pure.rng import generator, stream
from coreg_ray.studies.real_noise import data, tiny
from coreg_ray.training.evaluate import Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Images, Rows, make_rows
from coreg_ray.training.state import build_state

log = logging.getLogger(__name__)

NAME, SIDE = "tf_efficientnet_lite0", 64
PARTIAL_RATE, NOISE_RATE = 0.3, 0.2  # as of the frozen backbone's measurements (docs/frozen.md)
RATE = 0.02
SETTINGS: dict[str, Any] = {
    "contrast_delay": 0, "ramp_epochs": 1, "batch_size": 16, "warmup_batch_size": 16, "learning_rate": RATE,
    "key_momentum": 0.99, "queue_size": 256,
}  # fmt: skip

FIFTH: dict[str, Any] = {"backbone_learning_rate": RATE / 5}
FORTIETH: dict[str, Any] = {"backbone_learning_rate": RATE / 40}
VARIANTS: dict[str, dict[str, Any]] = {
    "held": {"warm_start": 1_000_000},
    "equal": {},
    "equal, frozen norm": {"batch_norm": "frozen"},
    "fifth": FIFTH,
    "fifth, frozen norm": {**FIFTH, "batch_norm": "frozen"},
    "fortieth": FORTIETH,
    "fortieth, frozen norm": {**FORTIETH, "batch_norm": "frozen"},
    "fortieth, warm start": {**FORTIETH, "warm_start": 1},
    "fortieth, frozen norm, warm start": {**FORTIETH, "batch_norm": "frozen", "warm_start": 1},
}


@dataclass(frozen=True)
class Photos:
    """A pool with its true labels (N,), and test images."""

    pool: data.Pictures
    pixels: torch.Tensor
    test: Images

    def rows(self, classes: int, seed: int) -> Rows:
        """All of the pool, with candidate sets drawn by the seed."""
        drawn = generator(stream(seed, "candidates"))
        sets = synthetic_candidates(self.pool.labels, classes, PARTIAL_RATE, NOISE_RATE, drawn)
        return make_rows(self.pool.numbers, self.pixels, sets)


def study(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing of the study; returns all its lines.

    Raises:
        UserError: the data folder lacks something, or no variant has that name.
    """
    unknown = [name for name in arguments.variant if name not in VARIANTS]
    if unknown:
        raise UserError(f"--variant {unknown[0]} is unknown; the variants are {', '.join(VARIANTS)}")
    which, folder = tiny.prepared(data.STUDIES["waste"], arguments.data, arguments.smoke, weights=True)
    name = tiny.STUDENT.name if arguments.smoke else NAME
    lines = (
        [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    )
    size = {"rows": arguments.rows, "epochs": arguments.epochs, "warmup_epochs": arguments.warmup}
    side = which.side if arguments.smoke else SIDE
    weights = None if arguments.smoke else str(folder / data.WEIGHTS)
    base = StudentConfig(name=name, pretrained=weights, resolution=side, precision="float32")
    photos = read_photos(which, folder, side, arguments.rows)
    for seed in arguments.seeds:
        for variant in arguments.variant or VARIANTS:
            key = {"variant": variant, "seed": seed, **size}
            if any(key.items() <= line.items() for line in lines):
                continue
            student = StudentConfig.model_validate(base.model_dump() | VARIANTS[variant])
            method = MethodConfig(**SETTINGS, epochs=arguments.epochs, warmup_epochs=arguments.warmup)
            lines.append({**key, **trained(photos, student, method, which.classes, seed)})
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            with arguments.output.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            log.info("%s", lines[-1])
    for text in table(lines):
        log.info("%s", text)
    return lines


def read_photos(which: data.Study, folder: Path, side: int, most: int) -> Photos:
    """Some of a study's images, drawn by their ids: at most so many of the pool, and to test."""
    pool = data.read_pictures(folder / which.pool, min(most, which.rows))
    test = data.read_pictures(folder / which.test, min(most, which.tested))
    shown = Images(test.numbers, test.pixels(0, len(test.files), side), test.labels)
    return Photos(pool, pool.pixels(0, len(pool.files), side), shown)


def trained(photos: Photos, student: StudentConfig, method: MethodConfig, classes: int, seed: int) -> dict[str, Any]:
    """Test accuracy of both networks together after each epoch, and the processor's seconds."""
    started = time.process_time()
    rows, mesh = photos.rows(classes, seed), Mesh()
    names = [str(number) for number in range(classes)]
    state = build_state(method, student, seed, names, rows, mesh, coreg.remember)
    scored = Scored(test=photos.test, compared=False)
    curve = [float(epoch.metrics[metrics.ACCURACY]) for epoch in fit(state, rows, scored, mesh, coreg)]
    return {"curve": [round(value, 3) for value in curve], "seconds": round(time.process_time() - started, 1)}


def table(lines: list[dict[str, Any]]) -> list[str]:
    """A line of Markdown for each variant and size: test accuracy at the end, its mean and that of each seed."""
    curves: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for line in lines:
        curves[tuple(line[name] for name in ("variant", "rows", "epochs", "warmup_epochs"))].append(line["curve"][-1])
    shown = ["| variant | rows | epochs | of them warm-up | test accuracy | each seed |", "|---|---|---|---|---|---|"]
    for key, values in curves.items():
        each = " ".join(f"{value:.3f}" for value in values)
        shown.append(f"| {' | '.join(map(str, key))} | {mean(values):.3f} | {each} |")
    return shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images, votes and weights")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, one a run")
    parser.add_argument("--variant", action="append", default=[], help="may be repeated; all without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=200, help="most images of the pool, and most to test")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=4, help="epochs of warm-up among them")
    parser.add_argument("--smoke", action="store_true", help="tiny images that the study makes itself")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # each network trains in a thread of its own
    try:
        study(parser.parse_args())
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
