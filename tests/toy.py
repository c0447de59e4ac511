"""A small image problem that trains in seconds: bars of four kinds under noise, with synthetic candidate sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from coreg_ray.config import Config, MethodConfig, StudentConfig
from coreg_ray.methods import KINDS
from coreg_ray.pure.candidates import synthetic_candidates
from coreg_ray.pure.rng import generator
from coreg_ray.run.folder import MANIFEST, RunFolder
from coreg_ray.run.records import CandidateFigures, CandidateManifest
from coreg_ray.training.evaluate import Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.neighbours import nearest
from coreg_ray.training.rows import Images, Rows, make_rows, part_of
from coreg_ray.training.state import State, build_state

CLASSES = ["horizontal", "vertical", "dot", "cross"]
SIDE = 12


@dataclass
class Toy:
    rows: Rows
    scored: Scored
    labels: Tensor  # of the training rows, in their order; for the tests' eyes only


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """uint8 (count, S, S, 3) and labels (count,): a bright shape at a random place on noise."""
    random = generator(seed)
    labels = torch.randint(0, len(CLASSES), (count,), generator=random)
    pixels = torch.randint(0, 110, (count, SIDE, SIDE, 3), generator=random)
    places = torch.randint(3, SIDE - 3, (count, 2), generator=random)
    for i, (label, (y, x)) in enumerate(zip(labels.tolist(), places.tolist(), strict=True)):
        if label in (0, 3):
            pixels[i, y, x - 3 : x + 4] += 120
        if label in (1, 3):
            pixels[i, y - 3 : y + 4, x] += 120
        if label == 2:
            pixels[i, y - 1 : y + 2, x - 1 : x + 2] += 120
    return pixels.clamp(max=255).to(torch.uint8), labels


def toy(count: int = 240, partial: float = 0.2, noise: float = 0.15, seed: int = 1) -> Toy:
    pixels, labels = images(count, seed)
    numbers = torch.randint(0, 2**62, (count,), generator=generator(seed + 1000))
    candidates = synthetic_candidates(labels, len(CLASSES), partial, noise, generator(seed + 2000))
    test_pixels, test_labels = images(200, seed + 1)
    test = Images(torch.arange(200), test_pixels, test_labels)
    held_pixels, _ = images(60, seed + 2)
    held_out = Images(torch.arange(60), held_pixels)
    return Toy(make_rows(numbers, pixels, candidates), Scored(held_out, test), labels[torch.argsort(numbers)])


def method(**settings: Any) -> MethodConfig:
    """A short schedule with the contrastive branch on from the second epoch after warm-up."""
    defaults: dict[str, Any] = {
        "epochs": 5, "warmup_epochs": 2, "contrast_delay": 0, "batch_size": 32, "warmup_batch_size": 32,
        "learning_rate": 0.02, "ramp_epochs": 2, "key_momentum": 0.9, "queue_size": 64, "exchanges": 2,
    }  # fmt: skip
    return MethodConfig(**(defaults | settings))


STUDENT = StudentConfig(resolution=SIDE, width=4, projection=8, precision="float32")


def start(
    data: Toy, mesh: Mesh, seed: int = 0, student: StudentConfig = STUDENT, **settings: Any
) -> tuple[State, Rows]:
    """A fresh state on this process's part of the rows."""
    rows = part_of(data.rows, mesh.replica, mesh.replicas)
    chosen = method(**settings)
    neighbours = nearest(space(rows), chosen.neighbours, mesh) if chosen.neighbours else None
    remember = KINDS[chosen.kind].remember
    return build_state(chosen, student, seed, CLASSES, rows, mesh, remember, neighbours=neighbours), rows


def space(rows: Rows) -> Tensor:
    """Where the rows' neighbours are looked for: their features, else what stands for embeddings (N, D) float16."""
    return rows.pixels.flatten(1)[:, ::5].half() if rows.features is None else rows.features[:, 0]


def history(data: Toy, mesh: Mesh, seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
    """Train to the end and return every epoch's metrics."""
    state, rows = start(data, mesh, seed, **settings)
    return [epoch.metrics for epoch in fit(state, rows, data.scored, mesh, KINDS[state.method.kind])]


def same(one: list[dict[str, Any]], other: list[dict[str, Any]], tolerance: float = 0.0) -> None:
    """Assert that two histories are equal in all but their times; a tolerance of zero means bit for bit."""
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        names = {name for name in left | right if not name.startswith("time/")}
        for name in sorted(names):
            close = left[name] == right[name]
            if tolerance and not close:
                close = abs(left[name] - right[name]) <= tolerance * max(1.0, abs(left[name]))
            assert close, f"epoch {left['epoch']}: {name} is {left[name]} and {right[name]}"


def prepare_run(output: Path, data: Toy, **sections: Any) -> Config:
    """A run folder as annotation leaves it, written directly, and the configuration to train on it."""
    rows, test = data.rows, data.scored.test
    assert test is not None
    assert test.labels is not None
    _write_table(output / "rows/pool", {"row": rows.numbers.numpy(), "image": _encoded(rows.pixels)})
    _write_table(output / "rows/test", {"row": test.numbers.numpy(), "image": _encoded(test.pixels)})
    _write_table(output / "labels/test", {"row": test.numbers.numpy(), "label": test.labels.numpy()})
    candidates = pa.ListArray.from_arrays(rows.indptr.numpy().astype(np.int32), rows.indices.numpy())
    _write_table(
        output / "candidates",
        {"row": rows.numbers.numpy(), "candidates": candidates, "trusted": rows.trusted.numpy()},
    )
    manifest = CandidateManifest(CLASSES, "toy", CandidateFigures(len(rows)), [0.1, 0.2, 0.3, 0.4])
    RunFolder.at(output).candidates.write_json(MANIFEST, manifest.as_json())
    return run_config(output, **sections)


def run_config(output: Path, **sections: Any) -> Config:
    """The configuration of a run in a folder that `prepare_run` has made."""
    defaults: dict[str, Any] = {
        "output": str(output), "method": method(), "student": STUDENT, "source": {"holdout": 0.1},
        "test": {"kind": "digits"},
    }  # fmt: skip
    return Config(**(defaults | sections))


def _encoded(pixels: Tensor) -> pa.Array:
    flat = pixels.reshape(len(pixels), -1).numpy()
    return pa.array([row.tobytes() for row in flat], pa.binary(flat.shape[1]))


def _write_table(folder: Path, columns: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "part.parquet")
