"""Views a second and core against Pillow's, and a second on the device."""

from __future__ import annotations

import random

import numpy as np
import torch

from coreg_ray.pure.rng import uniform
from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, strong, weak
from coreg_ray.studies.clock import Task, take_turns, threads
from coreg_ray.studies.figures import Figures
from coreg_ray.studies.pillow_views import strong_view, weak_view
from coreg_ray.studies.problem import synthetic_rows

LARGE = (128, 224)  # sides of photos, in pixels


def measure_views(figures: Figures, device: torch.device, rounds: int, count: int = 1024) -> None:
    """Batched views on one CPU thread in turns with Pillow's; and, where there is a GPU, on it."""
    host = torch.device("cpu")
    with threads(1):
        seconds = take_turns({**_batched(count, host), **_one_by_one(count // 4)}, rounds, host)
    for kind in ("weak", "strong"):
        batched, pillow = [s / count for s in seconds[kind]], [s / (count // 4) for s in seconds[f"{kind} Pillow"]]
        figures.add(f"views/{kind}_per_s_core", [1 / s for s in batched], "1/s", f"32 px, {count} at once, 1 thread")
        figures.add(f"views/{kind}_pillow_per_s_core", [1 / s for s in pillow], "1/s")
        name = "views/speedup_over_pil" if kind == "strong" else "views/weak_speedup_over_pil"
        figures.add_ratio(name, pillow, batched, f"{kind} views on one core")
    for side in LARGE:
        _measure_large(figures, side, rounds, max(count // 16, 1))
    if device.type == "cuda":
        many = 16 * count
        seconds = take_turns(_batched(many, device), rounds, device)
        for kind in ("weak", "strong"):
            figures.add(f"views/{kind}_per_s_device", [many / s for s in seconds[kind]], "1/s", f"{many} at once")
    else:
        figures.skipped["views/strong_per_s_device"] = "no GPU"


def _measure_large(figures: Figures, side: int, rounds: int, count: int) -> None:
    """Strong views alone, of photos of that size, as many for Pillow as in a batch."""
    host = torch.device("cpu")
    tasks = {**_batched(count, host, side), **_one_by_one(count, side)}
    with threads(1):
        seconds = take_turns({name: tasks[name] for name in ("strong", "strong Pillow")}, rounds, host)
    batched, pillow = [s / count for s in seconds["strong"]], [s / count for s in seconds["strong Pillow"]]
    figures.add(f"views/strong_per_s_core_{side}", [1 / s for s in batched], "1/s", f"{side} px, {count} at once")
    figures.add_ratio(f"views/speedup_over_pil_{side}", pillow, batched, f"strong views at {side} px on one core")


def _batched(count: int, device: torch.device, side: int = 32) -> dict[str, Task]:
    rows = synthetic_rows(count, side)
    images = rows.pixels.permute(0, 3, 1, 2).to(device)
    return {
        "weak": lambda: weak(images, uniform(1, rows.numbers, WEAK_DRAWS)),
        "strong": lambda: strong(images, uniform(2, rows.numbers, STRONG_DRAWS)),
    }


def _one_by_one(count: int, side: int = 32) -> dict[str, Task]:
    pixels, draws = synthetic_rows(count, side).pixels.numpy(), random.Random(0)
    return {
        "weak Pillow": lambda: np.stack([np.asarray(weak_view(image, draws)) for image in pixels]),
        "strong Pillow": lambda: np.stack([np.asarray(strong_view(image, draws)) for image in pixels]),
    }
