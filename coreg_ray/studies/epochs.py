"""What happens once an epoch, and whole epochs: assessment, the mixture, rows by the million, CIFAR-10's size."""

from __future__ import annotations

import torch

from coreg_ray import metrics
from coreg_ray.methods import coreg
from coreg_ray.pure import purify
from coreg_ray.pure.rng import generator
from coreg_ray.studies.clock import take_turns
from coreg_ray.studies.figures import Figures
from coreg_ray.studies.problem import Problem, build_problem, method_settings, student_settings, synthetic_rows
from coreg_ray.training.assess import assess
from coreg_ray.training.evaluate import Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.state import build_state


def measure_assessment(figures: Figures, fast: Problem, low: Problem, rounds: int) -> None:
    """Every row judged by one network, mixture included: float32 and bf16 in turns."""
    tasks = {
        name: lambda problem=problem: assess(problem.state, problem.learner, problem.rows, problem.mesh, 1)
        for name, problem in (("float32", fast), ("bf16", low))
    }
    seconds = take_turns(tasks, rounds, fast.device)
    for name, taken in seconds.items():
        count = len(fast.rows)
        figures.add(f"assess/rows_per_s_{name}", [count / s for s in taken], "rows/s", f"{count} rows, one network")


def measure_mixture(figures: Figures, device: torch.device, rounds: int, count: int = 1_000_000) -> None:
    """Clean probabilities of a million losses, where the method computes them: on the CPU."""
    random = generator(0)
    bad = torch.rand(count, generator=random) < 0.2
    losses = (0.1 + 0.05 * torch.randn(count, generator=random) + 0.5 * bad).clamp(0, 1)
    seconds = take_turns({"mixture": lambda: purify.clean_probability(losses)}, rounds, device)["mixture"]
    figures.add("assess/mixture_million_s", seconds, "s", f"{count:,} losses")


def measure_row_counts(figures: Figures, device: torch.device, counts: tuple[int, int], steps: int) -> None:
    """Steps over few and over many rows in turns; images and a network so small that handling rows would show."""
    few, many = (
        build_problem(synthetic_rows(count, side=16), 64, 4, device=device, most_batches=max(steps, 8))
        for count in counts
    )
    seconds = take_turns({"few": few.step, "many": many.step}, steps, device)
    note = f"median of {steps} steps, 16 px, batch 64, width 4"
    figures.add(f"rows/step_ms_{counts[0]}", [1e3 * s for s in seconds["few"]], "ms", note)
    figures.add(f"rows/step_ms_{counts[1]}", [1e3 * s for s in seconds["many"]], "ms", note)
    medians = [sorted(seconds[name])[steps // 2] for name in ("many", "few")]
    figures.add("rows/many_over_few", medians[0] / medians[1], "x", f"{counts[1]:,} over {counts[0]:,} rows, medians")


def measure_epoch(
    figures: Figures,
    device: torch.device,
    count: int = 50_000,
    width: int = 64,
    batch_size: int = 256,
    precision: str = "bf16",
) -> None:
    """Whole epochs of both networks in this process after a warm-up epoch: assessment, contrast, exchanges, all."""
    mesh, rows = Mesh(device), synthetic_rows(count)
    rows.pixels = rows.pixels.to(device)
    method = method_settings(epochs=6, warmup_epochs=1, batch_size=batch_size, warmup_batch_size=2 * batch_size)
    class_names = [f"class {k}" for k in range(rows.num_classes)]
    state = build_state(
        method, student_settings(width=width, precision=precision), 0, class_names, rows, mesh, coreg.remember
    )
    epochs = [epoch.metrics for epoch in fit(state, rows, Scored(), mesh, coreg) if epoch.number > 2]
    clean_a, clean_b = (metrics.of(metrics.CLEAN, network) for network in metrics.NETWORKS)
    clean = min(float(epoch[clean_a]) + float(epoch[clean_b]) for epoch in epochs) / 2
    size = f"{count:,} rows, both networks, width {width}, batch {batch_size}, {precision}"
    note = f"{size}, {clean:.0%} of the rows labelled"
    figures.add("epoch/seconds", [float(epoch[metrics.EPOCH_S]) for epoch in epochs], "s", note)
    figures.add("epoch/assess_s", [float(epoch[metrics.ASSESS_S]) for epoch in epochs], "s", "of these")
