"""A small finished run without Ray: tables as the annotation writes them, and a few epochs of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F
from toy import CLASSES, SIDE, images, method

from coreg_ray import metrics
from coreg_ray.annotation.arrow import lists, write_table
from coreg_ray.annotation.card import MANIFEST, TEXT, Card
from coreg_ray.annotation.clip import TextTable
from coreg_ray.annotation.parts import Part, annotation_table
from coreg_ray.config import Config
from coreg_ray.deploy.export import complete, draft
from coreg_ray.ids import content_hash, row_numbers
from coreg_ray.methods import KINDS
from coreg_ray.pure.candidates import synthetic_candidates
from coreg_ray.pure.rng import generator
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import CandidateFigures, CandidateManifest, TrainResult
from coreg_ray.run.storage import Folder
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.sample import Samples
from coreg_ray.training.worker import train

POOL, TEST = 240, 80
NAMES = ["<b>bold</b>", "vertical $x$", "dot & co", "cross"]  # nothing of it may be executed or typeset
PROMPTS = ("a {}", "the {}")


def finished_run(
    folder: RunFolder,
    classes: list[str] = NAMES,
    before: Callable[[Config, RunFolder], Any] = lambda config, run: None,
    **settings: Any,
) -> RunFolder:
    """Write tables, train, and leave `config.yaml`, `metrics.json`, `history.csv` and checkpoints in `folder`.

    Args:
        before: what else is done before training.
    """
    config = run_config(folder, classes, **settings)
    folder.write_config(config)
    ids, answers = annotated_split(folder, "pool", POOL)
    manifest = candidates(folder, ids, synthetic_candidates(answers, len(classes), 0.2, 0.1, generator(3)), classes)
    annotated_split(folder, "test", TEST)
    before(config, folder)
    for epoch in train(config, Mesh(), KINDS[config.method.kind]):
        last = epoch.metrics
    folder.update_metrics(manifest.quality.metrics())
    folder.update_metrics(TrainResult(last, world_size=1, start_epoch=0).metrics())
    folder.update_metrics({metrics.ZERO_SHOT: 0.6, metrics.ANNOTATE_S: 1.5, metrics.TRAIN_S: 12.0})
    return folder


def export(run: RunFolder, samples: Samples | None = None) -> None:
    """Write `model/`, as the end of a run does."""
    complete(draft(run, samples), run)


def run_config(folder: Folder, classes: list[str], **settings: Any) -> Config:
    tree: dict[str, Any] = {
        "output": folder.path,
        "source": {"kind": "folder", "path": "pool", "classes": classes, "holdout": 0.1},
        "test": {"kind": "folder", "path": "test"},
        "student": {"resolution": SIDE, "width": 4, "projection": 8, "precision": "float32"},
        "method": method(epochs=4).model_dump(),
        "export": {"onnx": False},
    }
    return Config.model_validate(tree | settings)


def annotated_split(run: RunFolder, split: Split, count: int) -> tuple[list[str], torch.Tensor]:
    """Rows, annotations and, of test images, labels; returns image ids and the annotator's answers (count,)."""
    pixels, labels = images(count, seed=len(split))
    ids = [f"{split}/{number:03d}.png" for number in range(count)]
    rows = row_numbers(ids)
    flat = pa.array([pixel.tobytes() for pixel in pixels.numpy()], pa.binary(SIDE * SIDE * 3))
    for part, start in enumerate(range(0, count, 50)):
        table = pa.table({"row": rows[start : start + 50], "image": flat[start : start + 50]})
        write_table(run.rows(split), f"{part:04d}.parquet", table)
    if split == "test":
        table = pa.table({"row": rows, "image_id": ids, "label": labels.numpy().astype(np.int32)})
        write_table(run.labels(split), "labels.parquet", table)
    return ids, _annotate(run, split, ids, labels)


def _annotate(run: RunFolder, split: Split, ids: list[str], labels: torch.Tensor) -> torch.Tensor:
    """Embeddings near their class's text; returns what a zero-shot annotator would answer, 1 in 10 wrong."""
    count = len(labels)
    wrong = torch.rand(count, generator=generator(1)) < 0.1
    answers = torch.where(wrong, (labels + 1) % len(CLASSES), labels)
    noise = torch.randn(count, 8, generator=generator(2)) * 0.1
    embedding = F.normalize(torch.eye(len(CLASSES), 8)[answers] + noise, dim=1)
    text = torch.eye(len(CLASSES), 8)[None].repeat(2, 1, 1)
    names = tuple((name,) for name in CLASSES)
    card = Card("clip", "toy", "0123456789abcdef", PROMPTS, names, {}, 8, {"scale": 10.0, "bias": 0.0})
    folder = run.annotations(split) / card.folder
    votes = answers[:, None].repeat(1, 2).numpy().astype(np.int32)
    contents = [content_hash(image_id.encode()) for image_id in ids]
    rows = annotation_table(ids, contents, card.folder, votes, embedding.half().numpy())
    write_table(folder, Part(0, "0" * 16, card.text).name, rows)
    folder.write(TEXT, TextTable(text, torch.zeros(0, 8), 10.0, 0.0).to_bytes())
    folder.write_json(MANIFEST, card.manifest())
    run.write_used(split, [card.folder])
    return answers


def candidates(run: RunFolder, ids: list[str], sets: torch.Tensor, class_names: list[str]) -> CandidateManifest:
    """Write the candidate sets (N, K) and their manifest."""
    counts = sets.sum(1).numpy()
    members = sets.nonzero()[:, 1].numpy().astype(np.int32)
    table = pa.table(
        {
            "row": row_numbers(ids),
            "image_id": ids,
            "candidates": lists(counts, members),
            "votes": lists(counts, np.ones(len(members), np.int32)),
            "scores": lists(counts, np.full(len(members), 0.5, np.float16)),
            "trusted": pa.array(np.zeros(len(ids), dtype=bool)),
        }
    )
    write_table(run.candidates, "0.parquet", table)
    quality = CandidateFigures(
        rows=len(ids),
        mean_candidates=float(counts.mean()),
        singletons=float((counts == 1).mean()),
        agreement=0.8,
        votes_per_class=sets.sum(0).tolist(),
        prompt_dissent=[0.05, 0.15],
    )
    manifest = CandidateManifest(class_names, "toy", quality, [0.25] * len(class_names))
    run.candidates.write_json(MANIFEST, manifest.as_json())
    return manifest


def parquet(folder: Folder) -> pa.Table:
    """All rows below a folder."""
    return pa.concat_tables([pq.read_table(path) for path in folder.files(".parquet")])
