"""Annotation through Ray Data against a bare loop over the same model, which costs what CLIP ViT-B/32 costs."""

from __future__ import annotations

import json
import os
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from coreg_ray.annotation import factory
from coreg_ray.cluster.annotate import annotate
from coreg_ray.cluster.connect import connect
from coreg_ray.cluster.pools import open_pool
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.images.decode import Fit, decode
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.studies.clock import threads
from coreg_ray.studies.figures import Figures

_BATCH = 256  # what the annotator gets at a time: one file of the annotation table
_SIDE = 224
_DESIGN = {  # the image encoder is ViT-B/32's, 8.8 GFLOP an image; the text encoder takes no part in the figure
    "embed_dim": 512,
    "vision_cfg": {"image_size": _SIDE, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def measure_annotation(figures: Figures, images: int) -> None:
    """Images a second in the steady state, with random weights on the CPU; the bare loop runs before and after.

    The steady state is from the first finished batch to the last: loading the model and starting actors is left out on
    both sides. The loop gets decoded batches and writes nothing; Ray reads, decodes, resizes, annotates and writes, on
    the same cores.

    Args:
        images: how many go through Ray, a multiple of 256 and at least two of them.
    """
    if images < 2 * _BATCH or images % _BATCH:
        raise ValueError(f"images={images} have no steady state; use a multiple of {_BATCH}, at least {2 * _BATCH}")
    with tempfile.TemporaryDirectory(prefix="coreg-benchmark-") as place:
        folder = Path(place)
        config = _config(folder, images)
        loop = _BareLoop(config)
        before = loop.images_per_s()
        through_ray = _through_ray(config)
        after = loop.images_per_s()
    bare = [before, after]
    note = f"{images} JPEG files of {_SIDE} px, ViT-B/32's cost, float32, steady state"
    figures.add("annotation/bare_loop_per_s", bare, "1/s", "decoded batches, the same threads")
    figures.add("annotation/ray_data_per_s", through_ray, "1/s", note)
    ratios = [through_ray / rate for rate in bare]
    figures.add("annotation/ratio_to_bare_loop", ratios, "x", "Ray reads, decodes and writes as well")


class _BareLoop:
    """The annotator itself over one decoded batch."""

    def __init__(self, config: Config) -> None:
        words, _ = open_pool(config, "pool")
        card, text = factory.describe(config.annotator, words, [])
        self._threads = len(os.sched_getaffinity(0))
        self._annotator = factory.build(config.annotator, card, text, self._threads)
        fit = Fit(**card.preprocess)
        pool = pq.read_table(config.source.path, columns=["image"])["image"].slice(0, _BATCH // 2).to_pylist()
        pictures = [fit(decode(content)) for content in pool]
        self._batch: dict[str, Any] = {"image": np.stack(pictures)}
        self._annotator({"image": self._batch["image"][:32]})  # the first call is slower than all others

    def images_per_s(self) -> float:
        with threads(self._threads):
            start = time.perf_counter()
            self._annotator(dict(self._batch))
            return len(self._batch["image"]) / (time.perf_counter() - start)


def _through_ray(config: Config) -> float:
    connect()
    output = RunFolder.at(config.output)
    annotate(config, "pool", output)
    return steady_rate(output / "annotations", _BATCH)


def steady_rate(written: Folder, part: int) -> float:
    """Images a second from the first Parquet file in a folder to the last; `part`: images in each of them."""
    times = sorted(written.filesystem.get_file_info(file).mtime_ns / 1e9 for file in written.files(".parquet"))
    return part * (len(times) - 1) / (times[-1] - times[0])


def _config(folder: Path, images: int) -> Config:
    """A pool of noisy pictures and a model with random weights, in `folder`."""
    pool = folder / "pool.parquet"
    write_pictures(pool, images, _SIDE, _BATCH)
    design = folder / "vit-b-32-cost.json"
    design.write_text(json.dumps(_DESIGN))
    open_clip.add_model_config(design)
    weights = design.with_suffix(".safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(open_clip.create_model(design.stem).state_dict(), weights)
    return Config.model_validate(
        {
            "output": str(folder / "run"),
            "source": {
                "kind": "parquet",
                "path": str(pool),
                "classes": ["one", "other"],
                "prompts": ["a {}", "the {}"],
            },
            "annotator": AnnotatorConfig(model=str(design), pretrained=str(weights), num_cpus=1).model_dump(),
        }
    )


def write_pictures(file: Path, images: int, side: int, group: int) -> None:
    """A Parquet pool of JPEG files of `side` pixels, soft coloured clouds, `group` of them in a row group."""
    numbers = range(images)
    table = {"image_id": [f"{n:06d}" for n in numbers], "image": [_picture(n, side) for n in numbers]}
    pq.write_table(pa.table(table), file, row_group_size=group)


def _picture(seed: int, side: int) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    file = BytesIO()
    coarse.resize((side, side)).save(file, "JPEG")
    return file.getvalue()
