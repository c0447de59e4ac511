"""One part of a source's predictions on its way to `predictions/`, and of what is not finite to `rejects/`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import lists, write_table
from coreg_ray.annotation.parts import Part
from coreg_ray.annotation.rejects import NOT_FINITE, record_rejects
from coreg_ray.deploy.abstain import UNKNOWN
from coreg_ray.ids import images_hash
from coreg_ray.run.storage import Folder


def write_predictions(
    batch: dict[str, NDArray[Any]],
    *,
    folder: Folder,
    rejects: Folder,
    run: int,
    fingerprint: str,
    class_names: list[str],
    top_k: int,
    least: float = 0.0,
) -> dict[str, Any]:
    """Write one part of the predictions, and rejects of what is not finite; answer with the number of both.

    Args:
        least: probability below which the class is `unknown`.
    """
    finite = np.isfinite(batch["probabilities"]).all(axis=1)
    if not finite.all():
        known = zip(batch["image_id"][~finite].tolist(), batch["content"][~finite].tolist(), strict=True)
        record_rejects(rejects, [(*entry, NOT_FINITE) for entry in known], run)
        batch = {name: values[finite] for name, values in batch.items()}
    if finite.any():
        _write_part(batch, folder, run, fingerprint, class_names, top_k, least)
    return {"images": [int(finite.sum())], "not_finite": [int((~finite).sum())]}


def _write_part(
    batch: dict[str, NDArray[Any]],
    folder: Folder,
    run: int,
    fingerprint: str,
    class_names: list[str],
    top_k: int,
    least: float,
) -> None:
    ids, contents = batch["image_id"].tolist(), batch["content"].tolist()
    best = torch.from_numpy(batch["probabilities"]).topk(min(top_k, len(class_names)), dim=1)  # (B, k)
    names = pa.array(class_names, pa.string())
    top_classes = names.take(pa.array(best.indices.reshape(-1).numpy()))
    first = pa.array(best.indices[:, 0].numpy())
    each_k = np.full(len(ids), best.values.shape[1])
    table = pa.table(
        {
            "image_id": pa.array(ids, pa.string()),
            "content": pa.array(contents, pa.string()),
            "class": pc.if_else(best.values[:, 0].numpy() >= least, names.take(first), UNKNOWN),
            "probability": best.values[:, 0].numpy(),
            "top_classes": lists(each_k, top_classes),
            "top_probabilities": lists(each_k, best.values.reshape(-1).numpy()),
        }
    )
    write_table(folder, Part(run, images_hash(ids, contents), fingerprint[:8]).name, table)
