"""Purified labels of a large pool through Ray Data, against a bare loop of both networks over the same decoded images.

    python -m coreg_ray.studies.purifying --images 50000 --pairs 5

Networks of width 16 at 32 px, with random weights; Ray reads, finds candidate sets, combines and writes as well.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time

import numpy as np
import pyarrow as pa
import torch

from coreg_ray.annotation.arrow import lists, write_table
from coreg_ray.cluster.connect import connect
from coreg_ray.cluster.purify import purify
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool
from coreg_ray.deploy.predictions import Pair
from coreg_ray.ids import row_numbers
from coreg_ray.methods import coreg
from coreg_ray.run.folder import MANIFEST, RunFolder
from coreg_ray.run.records import CandidateFigures, CandidateManifest
from coreg_ray.studies.annotation import steady_rate
from coreg_ray.studies.clock import machine, threads
from coreg_ray.studies.figures import Figures
from coreg_ray.training import checkpoint
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import make_rows
from coreg_ray.training.state import build_state

log = logging.getLogger(__name__)

_SIDE, _CLASSES, _PART, _BATCH = 32, 10, 256, 256
_LABELS_PART = 1024  # images in a part of the labels
_BARE = 8 * _BATCH  # images of the bare loop, after some that do not count
_SETTINGS = {"resolution": _SIDE, "width": 16, "precision": "float32"}


def measure_purifying(figures: Figures, images: int, pairs: int) -> None:
    """Images a second in the steady state and in all, and both over the bare loop that runs before each.

    Args:
        images: a multiple of 1,024 and at least three of them. pairs: how often both are measured, in turns.
    """
    if images < 3 * _LABELS_PART or images % _LABELS_PART:
        raise ValueError(f"images={images} have no steady state; use a multiple of {_LABELS_PART}, at least three")
    with tempfile.TemporaryDirectory(prefix="coreg-benchmark-") as place:
        config = fitted_to_pool(Config.model_validate({"output": f"{place}/run", "student": _SETTINGS}), images)
        run = _prepared(config, images)
        connect()
        bare, steady, whole = [], [], []
        for _ in range(pairs):
            bare.append(_bare_loop(run))
            for folder in (run.purified, run.probabilities):
                folder.delete()
            started = time.perf_counter()
            purify(config, run)
            whole.append(images / (time.perf_counter() - started))
            steady.append(steady_rate(run.purified, _LABELS_PART))
    note = f"{images} images of {_SIDE} px, two networks of width {_SETTINGS['width']}"
    figures.add("purify/bare_loop_per_s", bare, "1/s", "decoded batches, the same threads")
    figures.add("purify/ray_data_per_s", steady, "1/s", f"{note}, from the first part written to the last")
    ratios = [ours / loop for ours, loop in zip(steady, bare, strict=True)]
    figures.add("purify/ratio_to_bare_loop", ratios, "x", "of each pair")
    ratios = [ours / loop for ours, loop in zip(whole, bare, strict=True)]
    figures.add("purify/ratio_with_start", ratios, "x", "the same, from the call to its end")


def _prepared(config: Config, images: int) -> RunFolder:
    """A run folder as training leaves it: rows, candidate sets, and networks that have learnt nothing."""
    run, random = RunFolder.at(config.output), np.random.default_rng(0)
    ids = [f"{number:06d}.png" for number in range(images)]
    numbers = row_numbers(ids)
    names = [f"class {number}" for number in range(_CLASSES)]
    for start in range(0, images, _PART):
        pixels = random.integers(0, 256, (_PART, _SIDE, _SIDE, 3), dtype=np.uint8)
        flat = pa.array([image.tobytes() for image in pixels], pa.binary(_SIDE * _SIDE * 3))
        table = pa.table({"row": numbers[start : start + _PART], "image": flat})
        write_table(run.rows("pool"), f"{start:06d}.parquet", table)
    two = random.integers(0, _CLASSES - 1, images)
    members = np.stack([two, two + 1], axis=1).reshape(-1).astype(np.int32)
    facts = {
        "row": numbers,
        "image_id": ids,
        "candidates": lists(np.full(images, 2), members),
        "votes": lists(np.full(images, 2), np.ones(2 * images, np.int32)),
        "scores": lists(np.full(images, 2), np.full(2 * images, 0.5, np.float16)),
        "trusted": np.zeros(images, dtype=bool),
        "background": np.zeros(images, dtype=bool),
    }
    write_table(run.candidates, "0.parquet", pa.table(facts))
    manifest = CandidateManifest(names, "toy", CandidateFigures(rows=images), [1 / _CLASSES] * _CLASSES, parts=1)
    run.candidates.write_json(MANIFEST, manifest.as_json())
    some = make_rows(
        torch.from_numpy(numbers[:_PART]), torch.from_numpy(pixels), torch.ones(_PART, _CLASSES, dtype=torch.bool)
    )
    state = build_state(config.method.whole(), config.student, 0, names, some, Mesh(), coreg.remember)
    state.epoch = 1
    checkpoint.save(state, run.checkpoints, "0" * 16, Mesh())
    run.write_config(config)
    return run


def _bare_loop(run: RunFolder) -> float:
    """Images a second of both networks over decoded batches, after one that does not count."""
    pair = Pair.of(run)
    assert pair is not None
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (_BATCH, 3, _SIDE, _SIDE), dtype=np.uint8))
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with threads(len(os.sched_getaffinity(0))), torch.inference_mode():
        for turn in range(1 + _BARE // _BATCH):
            if turn == 1:
                started = time.perf_counter()
            for network in (pair.a, pair.b):
                network.classify(pixels)
        return _BARE / (time.perf_counter() - started)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50 * _LABELS_PART)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    figures = Figures(machine(torch.device("cpu")))
    measure_purifying(figures, arguments.images, arguments.pairs)
    log.info("%s", figures.table())


if __name__ == "__main__":
    main()
