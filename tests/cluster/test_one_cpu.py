"""A cluster of one CPU is enough: what annotates or predicts shares it with what reads the images."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from toy import CLASSES, SIDE, images
from toy_clip import write_toy_clip

pytestmark = pytest.mark.cluster

PROGRAM = """
import importlib, json, logging, os, signal, sys
import ray
from coreg_ray.cluster import waiting

signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests that run in the background are without

class Ending(logging.Handler):
    def emit(self, record):
        if "1 GPU" in record.getMessage():
            print("told:", record.getMessage(), flush=True)
            os.kill(os.getpid(), signal.SIGINT)

ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
for name, arguments in json.loads(sys.argv[1]):
    importlib.import_module(f"coreg_ray.commands.{name}").main(arguments)
    print("done:", name, flush=True)
waiting.AFTER_S = waiting._LOOK_EVERY_S = 1.0
logging.getLogger("coreg_ray").addHandler(Ending())
try:
    importlib.import_module("coreg_ray.commands.annotate").main(json.loads(sys.argv[2]))
except KeyboardInterrupt:
    print("ended", flush=True)
"""


def draw(folder: Path, count: int, seed: int) -> Path:
    """Pictures in a sub-folder for each class."""
    pixels, labels = images(count, seed)
    for number, (pixel, label) in enumerate(zip(pixels.numpy(), labels.tolist(), strict=True)):
        (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixel).save(folder / CLASSES[label] / f"{number:03d}.png")
    return folder


def options(**settings: object) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('__', '.')}", str(value))]


def test_every_step_from_images_to_scores_ends_on_one_cpu_and_a_wait_in_vain_is_told(tmp_path: Path) -> None:
    pool, test = draw(tmp_path / "pool", 120, seed=1), draw(tmp_path / "test", 40, seed=2)
    for number, path in enumerate(sorted(test.rglob("*.png"))[:3]):
        (pool / CLASSES[0] / f"copy-{number}.png").write_bytes(path.read_bytes())
    toy = write_toy_clip(tmp_path)
    annotated, run, labelled = tmp_path / "annotated", tmp_path / "run", {"test__kind": "folder", "test__path": test}
    source = {"source__kind": "folder", "source__path": pool, "source__classes": json.dumps(CLASSES)}
    small = {
        "method__epochs": 2, "method__warmup_epochs": 1, "method__batch_size": 32, "method__warmup_batch_size": 32,
        "method__queue_size": 64, "export__onnx": "false", "report__pictures": 0,
    }  # fmt: skip
    student = {"student__resolution": SIDE, "student__width": 4, "student__projection": 8}
    asked = {"source__prompts": json.dumps(["a {}", "the {}"]), "annotator__model": toy["model"], **student}
    asked["annotator__pretrained"] = toy["pretrained"]
    commands = [
        ("annotate", options(**source, **labelled, **asked, output=annotated)),
        ("train", options(annotations=annotated / "annotations", output=run, **small)),
        ("predict", options(model=run / "model", **source, output=tmp_path / "out", actors=2)),
        ("evaluate", options(model=run / "model", **labelled, output=tmp_path / "scores")),
    ]
    in_vain = options(**source, **asked, annotator__num_gpus=1, output=tmp_path / "never")
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands), json.dumps(in_vain)],
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for name, _ in commands:
        assert f"done: {name}" in ended.stdout
    assert "123 images: 123 annotated now" in ended.stdout
    assert "3 of the 40 test images (8%) lie in the pool too" in ended.stdout
    assert "123 of 123 images predicted now" in ended.stdout
    (told,) = [line for line in ended.stdout.splitlines() if line.startswith("told:")]
    assert re.search(r"1 x \(1 CPU, 1 GPU\) wanted; the cluster has 1 CPU \([01] free\), no GPU", told)
    assert ended.stdout.splitlines()[-1] == "ended", ended.stdout
    assert json.loads((run / "metrics.json").read_text())["test/images_in_pool"] == 3
    assert len(json.loads((run / "baselines.json").read_text())["baselines"]) == 2  # a task beside the purifier
    assert json.loads((tmp_path / "scores/metrics.json").read_text())["test/images"] == 40
