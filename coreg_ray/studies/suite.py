"""All parts of the benchmark, in the order in which they are shown."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from coreg_ray.studies import epochs, steps, views, workers
from coreg_ray.studies.clock import machine, peak_megabytes
from coreg_ray.studies.figures import Figures
from coreg_ray.studies.problem import build_problem, synthetic_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: turns of every comparison. step_rounds: of whole training steps. row_steps: steps for each number of
            rows. row_counts: few and many. batch_size, width: of the student that is trained. assessed: rows.
        compiled: whether `student.compile` is measured, which takes minutes.
        worker_rows: of an epoch in one and in two processes. exchange_steps, exchange_batch: what an epoch is
            extrapolated from. images: annotated through Ray; twice as many are predicted.
    """

    rounds: int
    step_rounds: int
    row_steps: int
    row_counts: tuple[int, int]
    batch_size: int
    width: int
    assessed: int
    compiled: bool
    worker_rows: int
    exchange_steps: int
    exchange_batch: int
    images: int


SMOKE = Scale(5, 5, 40, (10_000, 1_000_000), 64, 16, 2048, False, 256, 3, 8, 512)
FULL = Scale(15, 20, 200, (10_000, 1_000_000), 64, 16, 10_000, True, 1024, 50, 8, 2048)
GPU = {"batch_size": 256, "width": 64, "assessed": 50_000}


def measure(scale: Scale, device: torch.device) -> Figures:
    """Run every part that needs torch alone; what this machine cannot run is named with the reason."""
    figures = Figures(machine(device))
    on_gpu = device.type == "cuda"
    views.measure_views(figures, device, scale.rounds)
    rows = synthetic_rows(max(scale.assessed, 8 * scale.batch_size))
    size = (rows, scale.batch_size, scale.width)
    fast, low = (build_problem(*size, precision, device) for precision in ("float32", "bf16"))
    two = build_problem(*size, "float32", device, weak_views=2)
    parts: dict[str, Callable[[], None]] = {
        "step": lambda: steps.measure_steps(figures, fast, low, two, scale.step_rounds),
        "parts_float32": lambda: steps.measure_parts(figures, fast, scale.rounds, "float32"),
        "parts_bf16": lambda: steps.measure_parts(figures, low, scale.rounds, "bf16"),
        "memory": lambda: figures.add("memory/peak_mb", peak_megabytes(device), "MB", "so far, in this process"),
        "assess": lambda: epochs.measure_assessment(figures, fast, low, max(scale.rounds // 3, 2)),
        "mixture": lambda: epochs.measure_mixture(figures, device, scale.rounds),
        "rows": lambda: epochs.measure_row_counts(figures, device, scale.row_counts, scale.row_steps),
    }
    if scale.compiled:  # last of those who use these problems
        parts["compile_float32"] = lambda: steps.measure_compiled(figures, fast, scale.rounds, "float32")
        parts["compile_bf16"] = lambda: steps.measure_compiled(figures, low, scale.rounds, "bf16")
    else:
        figures.skipped["compile/speedup_bf16"] = "compiling takes minutes; measured without --smoke"
    if on_gpu:
        parts["epoch"] = lambda: epochs.measure_epoch(figures, device)
        for name in ("workers/two_over_one", "exchange/share_of_epoch"):
            figures.skipped[name] = "one GPU holds one worker; measured where there is none"
    else:
        figures.skipped["epoch/seconds"] = "50,000 rows take a GPU"
        parts["workers"] = lambda: workers.measure_workers(
            figures, max(scale.rounds // 3, 2), scale.worker_rows, scale.batch_size, scale.width
        )
        parts["exchange"] = lambda: workers.measure_exchange(figures, scale.exchange_steps, scale.exchange_batch)
    for name, part in parts.items():
        timed(name, part)
    return figures


def timed(name: str, part: Callable[[], None]) -> None:
    """Run a part and log how long that took."""
    started = time.perf_counter()
    part()
    log.info("%s: measured in %.0f s", name, time.perf_counter() - started)
