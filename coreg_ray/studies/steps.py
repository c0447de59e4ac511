"""A training step: against the plain way, cut into its parts, and against the machine's matrix products."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from coreg_ray.methods import coreg
from coreg_ray.pure import losses
from coreg_ray.pure.rng import stream, uniform
from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, strong, weak
from coreg_ray.studies.clock import Task, seconds_of, take_turns
from coreg_ray.studies.figures import Figures
from coreg_ray.studies.plain import PlainLearner, draw_mixing, pillow_batch
from coreg_ray.studies.problem import Problem
from coreg_ray.training.fit import exchange
from coreg_ray.training.networks import compiled, follow
from coreg_ray.training.steps import mixed_terms

_CEILING_SIDE = {"cpu": 1536, "cuda": 8192}  # of the square matrices: large enough to be at the machine's best


def measure_steps(figures: Figures, fast: Problem, low: Problem, two: Problem, rounds: int) -> None:
    """The same step in float32, in bf16 and the plain way, in turns; all with the contrastive branch on.

    Args:
        fast, low, two: equal problems of which the second has bf16, and the third two weak views a network, as the
            plain way has.
    """
    device, batch_size = fast.device, fast.state.method.batch_size
    tasks: dict[str, Task] = {
        "fast": fast.step, "plain": plain_task(fast), "bf16": low.step, "two_weak_views": two.step
    }  # fmt: skip
    seconds = take_turns(tasks, rounds, device)
    threads = f"batch {batch_size}, width {fast.state.student.width}, {torch.get_num_threads()} threads"
    figures.add_ratio("step/speedup_over_plain", seconds["plain"], seconds["fast"], f"float32, {threads}")
    figures.add_ratio("step/speedup_bf16", seconds["plain"], seconds["bf16"], f"bf16 over plain float32, {threads}")
    figures.add_ratio("step/bf16_over_float32", seconds["fast"], seconds["bf16"])
    note = "float32, method.weak_views 2: the plain step's own 26 forward passes a row, not 23"
    figures.add_ratio("step/speedup_two_weak_views", seconds["plain"], seconds["two_weak_views"], note)
    for name, taken in seconds.items():
        figures.add(f"step/{name}_rows_per_s", [batch_size / s for s in taken], "rows/s", "labelled rows")


def measure_compiled(figures: Figures, problem: Problem, rounds: int, name: str) -> None:
    """What `student.compile` gains: the same step before and after. The networks of the problem stay compiled."""
    learner = problem.learner
    assert learner.memory.keys is not None
    before = take_turns({"step": problem.step}, rounds, problem.device)["step"]
    for network in (learner.student, learner.peer, learner.memory.keys):
        compiled(network)
    first = seconds_of(problem.step, problem.device)
    after = take_turns({"step": problem.step}, rounds, problem.device)["step"]
    figures.add_ratio(f"compile/speedup_{name}", before, after, "a step with student.compile over one without")
    figures.add(f"compile/first_step_s_{name}", first, "s", "compilation included")


def plain_task(problem: Problem) -> Task:
    """The plain step on the same rows, from the same weights on."""
    learner, rows, method = problem.learner, problem.rows, problem.state.method
    plain = PlainLearner(learner, method)
    draws = random.Random(0)
    pixels = rows.pixels.cpu().numpy()

    def step() -> list[float]:
        batch = problem.batch()
        views = pillow_batch(pixels[batch.labelled], pixels[batch.unlabelled], draws, problem.device)
        opinion = rows.scatter(batch.labelled, problem.opinion.soft_labels, problem.device).float()
        mixing = draw_mixing(
            2 * (len(batch.labelled) + len(batch.unlabelled)), method.mixup_alpha, draws, problem.device
        )
        clean = problem.opinion.clean[batch.labelled].to(problem.device)
        return plain.step(views, opinion, clean, mixing, batch.position / method.ramp_epochs, method)

    return step


def measure_parts(figures: Figures, problem: Problem, rounds: int, name: str) -> None:
    """Where a step's time goes, each part run by itself on ready inputs, in turns with whole steps; and its FLOP/s."""
    parts = _parts(problem)
    tasks: dict[str, Task] = {"step": problem.step, "ceiling": _ceiling(problem), **parts}
    seconds = take_turns(tasks, rounds, problem.device)
    exchanges = [s / _steps_between_exchanges(problem) for s in seconds["exchange"]]
    part_seconds = {part: seconds[part] for part in parts if part != "exchange"} | {"exchange": exchanges}
    note = f"{name}, batch {problem.state.method.batch_size}"
    for part, taken in part_seconds.items():
        figures.add(f"parts_{name}/{part}_ms", [1e3 * s for s in taken], "ms", note)
    figures.add(f"parts_{name}/step_ms", [1e3 * s for s in seconds["step"]], "ms", "a whole step, exchange left out")
    with FlopCounterMode(display=False) as counter:
        problem.step()
    work = counter.get_total_flops()
    ceiling = [2 * _CEILING_SIDE[problem.device.type] ** 3 / s for s in seconds["ceiling"]]
    reached = [work / s for s in seconds["step"]]
    figures.add(f"flops_{name}/step_tflop", work / 1e12, "TFLOP", "convolutions and matrix products of one step")
    figures.add(f"flops_{name}/step_tflop_per_s", [f / 1e12 for f in reached], "TFLOP/s")
    figures.add(f"flops_{name}/ceiling_tflop_per_s", [f / 1e12 for f in ceiling], "TFLOP/s", "square matrix product")
    figures.add_ratio(f"flops_{name}/share_of_ceiling", reached, ceiling)


def _parts(problem: Problem) -> dict[str, Task]:
    state, learner, rows, mesh = problem.state, problem.learner, problem.rows, problem.mesh
    batch = problem.batches[0]
    index = torch.cat([batch.labelled, batch.unlabelled])
    b = len(batch.labelled)
    assert learner.memory.keys is not None
    keys, queue = learner.memory.keys, learner.memory.queue

    def views(which: Callable[..., torch.Tensor], count: int, of: torch.Tensor) -> torch.Tensor:
        draws = uniform(stream(0, "benchmark", len(of)), rows.numbers[of], count)
        return which(rows.take(of, mesh.device), draws, flip=True)

    def weak_views() -> tuple[torch.Tensor, torch.Tensor]:
        """What the network itself looks at, and what the other one does."""
        if state.method.weak_views == 1:
            return views(weak, WEAK_DRAWS, index), views(weak, WEAK_DRAWS, index[b:])
        both = [views(weak, WEAK_DRAWS, index) for _ in range(2)]
        return torch.cat(both), torch.cat([view[b:] for view in both])

    own_views, peer_views = weak_views()
    first, second = (views(strong, STRONG_DRAWS, index) for _ in range(2))
    strong_views = torch.cat([first, second])
    with torch.no_grad():
        own, own_keys = learner.student(own_views)[0], keys(second)[1]
    targets = own[: len(index)].softmax(dim=1)
    classes = targets.argmax(dim=1)
    confident = torch.arange(len(index), device=mesh.device) < b

    @torch.no_grad()
    def no_gradient() -> None:
        learner.student.eval()
        with state.autocast():
            learner.student(own_views)
            learner.peer.classify(peer_views)
            keys(second)
        learner.student.train()

    def forward_backward() -> None:
        terms, _ = mixed_terms(state, learner, batch, strong_views, targets, mesh, learner.memory.prototypes)
        with state.autocast():
            _, queries = learner.student(first)
        contrast = losses.noise_tolerant_contrast(
            queries, own_keys, classes, confident, queue.keys, queue.classes, queue.confident, queue.valid
        )
        (terms.sum() + contrast).backward()

    def optimiser() -> None:
        learner.optimizer.step()  # by the same gradients every time
        follow(keys, learner.student, state.method.key_momentum)

    return {
        "views": lambda: (weak_views(), *(views(strong, STRONG_DRAWS, index) for _ in range(2))),
        "no_gradient_passes": no_gradient,
        "forward_backward": forward_backward,
        "optimiser": optimiser,
        "exchange": lambda: exchange(state, mesh, state.learners, coreg),
    }


def _steps_between_exchanges(problem: Problem) -> float:
    """In an epoch of 50,000 rows, CIFAR-10's, nine tenths of them clean; both networks take part in an exchange."""
    return max(2 * 45_000 / problem.state.method.batch_size / problem.state.method.exchanges, 1.0)


def _ceiling(problem: Problem) -> Task:
    """The best this machine does in this precision: one large square matrix product."""
    side = _CEILING_SIDE[problem.device.type]
    settings: dict[str, Any] = {"device": problem.device, "dtype": problem.state.precision}
    one, other = torch.randn(side, side, **settings), torch.randn(side, side, **settings)
    return lambda: one @ other
