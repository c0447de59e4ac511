"""A run folder with a few labelled pictures, as annotation (and training, if asked for) leaves it, without either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from coreg_ray.annotation.arrow import lists, write_table
from coreg_ray.config import Config
from coreg_ray.deploy.purified import Making, purified_labels
from coreg_ray.ids import row_numbers
from coreg_ray.run.folder import MANIFEST, RunFolder
from coreg_ray.run.records import CandidateFigures, CandidateManifest, PurifiedManifest

NAMES = ["cat", "a/b", "..", "CON", "=SUM(A1)", "Cat"]
PICTURES = {  # image id: class, votes of the candidates; equal names in several folders, two formats
    "one/1.png": (0, {0: 3}),
    "two/1.png": (1, {1: 2, 3: 1}),
    "two/deep/1.png": (2, {2: 1, 4: 1}),
    "2.JPG": (3, {3: 3}),
    "=3.png": (4, {4: 3}),
    "one/_1.png": (5, {5: 2, 0: 1}),
    "one__1.png": (0, {0: 2, 5: 1}),
}
TRUSTED, BACKGROUND = "2.JPG", "=3.png"


def color(image_id: str) -> tuple[int, int, int]:
    """By which a picture is known again."""
    number = list(PICTURES).index(image_id)
    return 30 * number, 255 - 30 * number, 128


def labelled_run(place: Path, **settings: Any) -> RunFolder:
    """Pictures below `place/pool`, and the run folder `place/run` with candidate sets in two parts."""
    for image_id in PICTURES:
        path = place / "pool" / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), color(image_id)).save(path, "JPEG" if image_id.endswith("JPG") else "PNG")
    run = RunFolder.at(place / "run")
    source = {"kind": "folder", "path": str(place / "pool"), "classes": NAMES}
    run.write_config(Config.model_validate({"source": source, "output": str(place / "run"), **settings}))
    ids = list(PICTURES)
    for part, some in enumerate((ids[:4], ids[4:])):
        write_table(run.candidates, f"{part}.parquet", facts(some))
    quality = CandidateFigures(rows=len(ids))
    manifest = CandidateManifest(NAMES, "toy", quality, [1 / len(NAMES)] * len(NAMES), made_from="toy", parts=2)
    run.candidates.write_json(MANIFEST, manifest.as_json())
    return run


def facts(ids: list[str]) -> pa.Table:
    """Candidate sets as annotation writes them."""
    votes = [PICTURES[image_id][1] for image_id in ids]
    counts = np.array([len(row) for row in votes])
    cast = np.array([count for row in votes for count in row.values()], np.int32)
    scores = np.array([count / sum(row.values()) for row in votes for count in row.values()], np.float16)
    return pa.table(
        {
            "row": row_numbers(ids),
            "image_id": ids,
            "candidates": lists(counts, np.array([number for row in votes for number in row], np.int32)),
            "votes": lists(counts, cast),
            "scores": lists(counts, scores),
            "background": [image_id == BACKGROUND for image_id in ids],
            "trusted": [image_id == TRUSTED for image_id in ids],
        }
    )


def logits_for(classes: list[int], sure: float = 6.0) -> Tensor:
    """(2, B, K) of two networks that both take these classes."""
    return (sure * torch.nn.functional.one_hot(torch.tensor(classes), len(NAMES)).float()).expand(2, -1, -1)


def purify_by_hand(run: RunFolder) -> None:
    """Purified labels as a training would leave them: the networks know every class."""
    ids = list(PICTURES)
    making = Making(NAMES, doubt=0.1)
    for part, some in enumerate((ids[:3], ids[3:])):
        logits = logits_for([PICTURES[image_id][0] for image_id in some])
        clean = torch.full((2, len(some)), 0.9)
        clean[:, 0] = 0.2
        labels, probabilities = purified_labels(facts(some), logits, clean, making)
        write_table(run.purified, f"{part}.parquet", labels)
        write_table(run.probabilities, f"{part}.parquet", probabilities)
    run.write_purified_manifest(PurifiedManifest("toy", 2, 0.1, 1.0, {}))
