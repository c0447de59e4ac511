"""What one image costs with a trained model, in every form that lies in its folder: milliseconds and memory.

The forms take turns on the same image, with equally many threads. Memory is the most that a process of its own holds
which loads one form and answers one image: Python and the runtime (torch, or onnxruntime without torch) are in it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from coreg_ray.deploy.int8 import FILE as INT8
from coreg_ray.deploy.int8 import session
from coreg_ray.deploy.model import WEIGHTS, Model, model_folder
from coreg_ray.deploy.own_files import CARD
from coreg_ray.pure.rng import generator
from coreg_ray.studies.clock import Task, machine, take_turns
from coreg_ray.studies.figures import Figures

PYTORCH, ONNX, EIGHT_BITS = "pytorch", "onnx", "int8"
_FILES = {ONNX: "model.onnx", EIGHT_BITS: INT8}
_PEAK = """
import resource, sys
def peak():
    try:
        with open("/proc/self/status") as file:  # its own, not what it was forked from
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
"""
_BY_TORCH = f"""{_PEAK}
import numpy, torch, coreg_ray
torch.set_num_threads(int(sys.argv[3]))
model, side = coreg_ray.load(sys.argv[1]), int(sys.argv[2])
model.predict(numpy.zeros((1, side, side, 3), numpy.uint8))
sys.stdout.write(str(peak()))
"""
_BY_ONNX = f"""{_PEAK}
import numpy, onnxruntime
options, side = onnxruntime.SessionOptions(), int(sys.argv[2])
options.intra_op_num_threads = int(sys.argv[3])
running = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
running.run(None, {{"images": numpy.zeros((1, 3, side, side), numpy.float32)}})
sys.stdout.write(str(peak()))
"""


def measure_model(place: str, turns: int) -> Figures:
    """Figures of the model in a folder, a path, a URI or on the Hub.

    Args:
        turns: that the forms take.

    Raises:
        UserError: the folder holds no model.
    """
    folder = model_folder(place)
    model, device = Model.load(folder), torch.device("cpu")
    side, count = model.resolution, torch.get_num_threads()
    pixels = torch.randint(0, 256, (1, 3, side, side), generator=generator(0), dtype=torch.uint8)
    image = (pixels.float() / 255).numpy()
    figures = Figures({**machine(device), "model": f"{place}, {side} px"})
    tasks: dict[str, Task] = {PYTORCH: lambda: model.probabilities(pixels)}
    contents = {}
    for form, file in _FILES.items():
        if not folder.exists(file):
            figures.skipped[f"model/{form}_ms"] = f"{file} does not lie in the folder; its README.md may say why"
            continue
        try:
            running = session(folder.read(file), count)
        except ModuleNotFoundError as missing:
            figures.skipped[f"model/{form}_ms"] = f"{missing.name} is not installed"
            continue
        contents[form] = folder.read(file)
        tasks[form] = lambda running=running: running.run(None, {"images": image})  # type: ignore[misc]
    seconds = take_turns(tasks, turns, device)
    for form, some in seconds.items():
        figures.add(f"model/{form}_ms", [1000 * one for one in some], "ms", "one image at a time")
    if ONNX in seconds:
        figures.add_ratio("model/onnx_speedup", seconds[PYTORCH], seconds[ONNX], "over PyTorch")
    if EIGHT_BITS in seconds and ONNX in seconds:
        figures.add_ratio("model/int8_speedup", seconds[ONNX], seconds[EIGHT_BITS], "over the float ONNX file")
    with tempfile.TemporaryDirectory(prefix="coreg-ray-") as scratch:
        here = Path(scratch)
        for name in (CARD, WEIGHTS):
            (here / name).write_bytes(folder.read(name))
        _add_memory(figures, PYTORCH, _BY_TORCH, here, side, count)
        for form, content in contents.items():
            written = here / f"{form}.onnx"
            written.write_bytes(content)
            _add_memory(figures, form, _BY_ONNX, written, side, count)
            figures.add(f"model/{form}_file_mb", len(content) / 2**20, "MiB")
    return figures


def _add_memory(figures: Figures, form: str, program: str, path: Path, side: int, threads: int) -> None:
    """Peak memory of a process that loads one form and answers one image."""
    words = [sys.executable, "-c", program, str(path), str(side), str(threads)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 (a program of ours)
    name = f"model/{form}_memory_mb"
    if ended.returncode:
        figures.skipped[name] = (ended.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    else:
        figures.add(name, float(ended.stdout), "MiB", "a process with its runtime")
