"""Batch prediction through Ray Data against a bare loop over the same model, a pre-activation ResNet-18 at 32 px."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from coreg_ray.cluster.connect import connect
from coreg_ray.cluster.predict import Pool, predict
from coreg_ray.config import Config, ExportConfig, StudentConfig
from coreg_ray.deploy import export
from coreg_ray.deploy.model import Model, new_network
from coreg_ray.images import open_source
from coreg_ray.images.decode import Fit, decode
from coreg_ray.run.storage import Folder
from coreg_ray.studies.annotation import steady_rate, write_pictures
from coreg_ray.studies.clock import threads
from coreg_ray.studies.figures import Figures

_BATCH, _SIDE, _CLASSES = Pool().batch_size, 32, 100


def measure_prediction(figures: Figures, images: int) -> None:
    """Images a second in the steady state, with random weights on the CPU; the bare loop runs before and after.

    The loop gets decoded batches and writes nothing; Ray reads, decodes, resizes, predicts and writes, on the same
    cores.

    Args:
        images: how many go through Ray, a multiple of 256 and at least three of them.
    """
    if images < 3 * _BATCH or images % _BATCH:
        raise ValueError(f"images={images} have no steady state; use a multiple of {_BATCH}, at least {3 * _BATCH}")
    with tempfile.TemporaryDirectory(prefix="coreg-benchmark-") as place:
        model, pool, output = Folder.at(f"{place}/model"), Path(place, "pool.parquet"), Folder.at(f"{place}/out")
        student = StudentConfig(resolution=_SIDE, width=64)
        names = [f"class {number}" for number in range(_CLASSES)]
        network = nn.ModuleDict({"a": new_network(student, _CLASSES)}).eval()
        export.write(Model(names, student, network), model, ExportConfig(onnx=False))
        write_pictures(pool, images, _SIDE, _BATCH)
        before = _bare_loop(model, pool)
        connect()
        source = {"kind": "parquet", "path": str(pool), "classes": names}
        predict(model, open_source(Config.model_validate({"source": source}), "pool"), output)
        through_ray = steady_rate(output / "predictions", _BATCH)
        after = _bare_loop(model, pool)
    bare = [before, after]
    figures.add("prediction/bare_loop_per_s", bare, "1/s", "decoded batches, the same threads")
    note = f"{images} JPEG files of {_SIDE} px, pre-activation ResNet-18, steady state"
    figures.add("prediction/ray_data_per_s", through_ray, "1/s", note)
    ratios = [through_ray / rate for rate in bare]
    figures.add("prediction/ratio_to_bare_loop", ratios, "x", "Ray reads, decodes and writes as well")


def _bare_loop(folder: Folder, pool: Path) -> float:
    """Images a second of the model itself over two decoded batches, after one that does not count."""
    model, fit = Model.load(folder), Fit.square(_SIDE)
    contents = pq.read_table(pool, columns=["image"])["image"].slice(0, _BATCH).to_pylist()
    pixels = torch.from_numpy(np.stack([fit(decode(content)) for content in contents])).permute(0, 3, 1, 2)
    with threads(len(os.sched_getaffinity(0))):
        model.probabilities(pixels)
        start = time.perf_counter()
        for _ in range(2):
            model.probabilities(pixels)
        return 2 * len(pixels) / (time.perf_counter() - start)
