"""A large pool of small images through Ray: overhead an image, the driver's memory, disk, and new prompts.

    python -m coreg_ray.studies.pool --images 200000

The model has 512 dimensions and one layer, so what is measured is everything but the model.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from coreg_ray.annotation import factory
from coreg_ray.annotation.parts import parts
from coreg_ray.annotation.writer import read_card
from coreg_ray.cluster.annotate import annotate
from coreg_ray.cluster.annotator_pool import vote_again
from coreg_ray.cluster.connect import connect
from coreg_ray.cluster.describing import Described, keep
from coreg_ray.cluster.pools import open_pool
from coreg_ray.config import Config
from coreg_ray.run.folder import RunFolder
from coreg_ray.studies.clock import machine
from coreg_ray.studies.figures import Figures

log = logging.getLogger(__name__)

_SIDE, _GROUP = 32, 1024
_DESIGN = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": _SIDE, "layers": 1, "width": 64, "patch_size": _SIDE},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def measure_pool(figures: Figures, images: int, prompts: int = 27, classes: int = 100) -> None:
    """Annotate a pool of arrays, ask it again with other prompts and class names, and say what both took.

    Overhead is time in the steady state (from the first written part to the last, all of them equal) less that of the
    bare model on decoded batches with the same number of threads.
    """
    with tempfile.TemporaryDirectory(prefix="coreg-benchmark-") as place:
        config = _config(Path(place), images, ["one", "other"], ["a {}"])
        output = RunFolder.at(config.output)
        connect()
        bare_s = _bare_loop(config)
        before = _peak_mb()
        annotate(config, "pool", output)
        (folder,) = output.read_used("pool")
        files = [folder.filesystem.get_file_info(f"{folder.path}/{part.name}") for part in parts(folder)]
        times = sorted(info.mtime_ns / 1e9 for info in files)
        each_s = (times[-1] - times[0]) / (images * (len(files) - 1) / len(files))
        note = f"{images} arrays of {_SIDE} px, a model of 512 dimensions and one layer"
        figures.add("pool/images_per_s", 1 / each_s, "1/s", note)
        figures.add("pool/overhead_ms", (each_s - bare_s) * 1e3, "ms", "an image, over the bare model")
        figures.add("pool/disk_bytes", sum(info.size for info in files) / images, "bytes", "an image")
        names = [f"class number {number}" for number in range(classes)]
        words = open_pool(_asking(config, names, [f"{number} {{}}" for number in range(prompts)]), "pool")[0]
        card, text = factory.describe(config.annotator, words, [])
        keep(Described(card, text.to_bytes() if text else b""), folder)
        started = time.perf_counter()
        vote_again(folder, read_card(folder))
        asked = f"{images} stored embeddings, {prompts} prompts, {classes} classes"
        figures.add("pool/vote_again_s", time.perf_counter() - started, "s", asked)
        figures.add("pool/driver_growth_mb", _peak_mb() - before, "MB", "peak memory of the driver over both")


def _bare_loop(config: Config) -> float:
    """Seconds an image of the model alone, on one decoded batch."""
    words, source = open_pool(config, "pool")
    card, text = factory.describe(config.annotator, words, [])
    annotator = factory.build(config.annotator, card, text, len(os.sched_getaffinity(0)))
    decoded: Any = list(source.fetch(next(source.listing()).slice(0, 256)))
    batch: dict[str, Any] = {"image": np.stack(decoded)}
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        annotator(dict(batch))
        best = min(best, time.perf_counter() - started)
    return best / len(batch["image"])


def _config(place: Path, images: int, class_names: list[str], prompts: list[str]) -> Config:
    """A pool of noise in one Parquet file, and a model with random weights."""
    random, pool = np.random.default_rng(0), place / "pool.parquet"
    tensor = pa.fixed_shape_tensor(pa.uint8(), (_SIDE, _SIDE, 3))
    with pq.ParquetWriter(pool, pa.schema({"image_id": pa.string(), "image": tensor}), compression="none") as writer:
        for start in range(0, images, _GROUP):
            count = min(_GROUP, images - start)
            pixels = random.integers(0, 256, (count, _SIDE, _SIDE, 3), dtype=np.uint8)
            ids = [f"images/{number:09d}.png" for number in range(start, start + count)]
            column = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
            writer.write_table(pa.table({"image_id": ids, "image": column}), row_group_size=_GROUP)
    design = place / "one-layer.json"
    design.write_text(json.dumps(_DESIGN))
    open_clip.add_model_config(design)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(open_clip.create_model(design.stem).state_dict(), design.with_suffix(".safetensors"))
    source = {"kind": "parquet", "path": str(pool), "classes": class_names, "prompts": prompts}
    annotator = {"model": str(design), "pretrained": str(design.with_suffix(".safetensors"))}
    return Config.model_validate({"output": str(place / "run"), "source": source, "annotator": annotator})


def _asking(config: Config, class_names: list[str], prompts: list[str]) -> Config:
    return config.model_copy(
        update={"source": config.source.model_copy(update={"classes": class_names, "prompts": prompts})}
    )


def _peak_mb() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    for name in ("coreg_ray", __name__):  # not open_clip, which has much to say
        logging.getLogger(name).setLevel(logging.INFO)
    figures = Figures(machine(torch.device("cpu")))
    measure_pool(figures, arguments.images)
    log.info("%s", figures.table())
    if arguments.output:
        arguments.output.write_text(json.dumps(figures.as_json(), indent=1) + "\n")


if __name__ == "__main__":
    main()
