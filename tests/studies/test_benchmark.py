"""The benchmark's pieces at a tiny scale, and its baseline: the plain step computes what the fast one does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from coreg_ray.config import MethodConfig, StudentConfig
from coreg_ray.methods import coreg
from coreg_ray.pure.rng import generator, stream, uniform
from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, strong, weak
from coreg_ray.studies import epochs, steps, suite, views, workers
from coreg_ray.studies.clock import machine, take_turns
from coreg_ray.studies.figures import Figures
from coreg_ray.studies.plain import Mixing, PlainLearner, Views, pillow_batch
from coreg_ray.studies.problem import METHOD, STUDENT, Problem, build_problem, synthetic_rows
from coreg_ray.training.networks import pack

CPU = torch.device("cpu")
JOB = Path(__file__).parents[2] / "jobs" / "benchmark.py"


def tiny(precision: str = "float32", **method: Any) -> Problem:
    settings = {"queue_size": 64, "prototype_momentum": 0.9, "key_momentum": 0.9} | method
    return build_problem(synthetic_rows(96, side=16), 8, 4, precision, **settings)


@pytest.fixture
def figures() -> Figures:
    return Figures(machine(CPU))


def test_settings_are_the_configurations() -> None:
    coregs = MethodConfig().model_dump(exclude={"kind", "labels", *MethodConfig().of_others()})
    assert coregs | {"warmup_epochs": 0, "contrast_delay": 0} == METHOD
    assert StudentConfig().model_dump() == STUDENT


def test_the_benchmark_needs_torch_alone() -> None:
    code = (
        "import sys\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in sys.argv[1].split(): raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Bare())\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from benchmark import benchmark\n"  # the command, as its launcher sees it
        "from coreg_ray.studies.suite import Figures\n"
        "figures = Figures({})\n"
        "benchmark.through_ray(figures, 512)\n"
        "print(figures.table())"
    )
    missing = "pydantic pydantic_settings pyarrow safetensors ray yaml sklearn scipy timm open_clip matplotlib jinja2"
    done = subprocess.run(
        [sys.executable, "-c", code, missing, str(JOB.parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "annotation/ratio_to_bare_loop  not measured: " in done.stdout
    assert "is not installed" in done.stdout


def same_views(problem: Problem, step: int) -> Views:
    """The views that `coreg_step` makes in that step."""
    state, learner, batch = problem.state, problem.learner, problem.batches[step]

    def both(index: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        images = problem.rows.take(index, CPU)
        made = []
        for number in (1, 2):
            views = stream(state.seed, f"{kind} {number}", learner.network, batch.epoch, batch.step)
            count = WEAK_DRAWS if kind == "weak" else STRONG_DRAWS
            draws = uniform(views, problem.rows.numbers[index], count)
            made.append((weak if kind == "weak" else strong)(images, draws, flip=state.flip).float().contiguous())
        return made[0], made[1]

    return Views(*(both(index, kind) for kind in ("weak", "strong") for index in (batch.labelled, batch.unlabelled)))


def same_mixing(problem: Problem, step: int) -> Mixing:
    state, batch = problem.state, problem.batches[step]
    purpose = (state.seed, "mixup", problem.learner.network, batch.epoch, batch.step)
    alpha = state.method.mixup_alpha
    share = np.random.default_rng(stream(*purpose)).beta(alpha, alpha)
    rows = 2 * (len(batch.labelled) + len(batch.unlabelled))
    return Mixing(max(share, 1 - share), torch.randperm(rows, generator=generator(stream(*purpose, 0))))


def test_the_plain_step_computes_what_the_fast_one_does() -> None:
    problem = tiny(weak_views=2)
    learner, method = problem.learner, problem.state.method
    plain = PlainLearner(learner, method)
    start = pack(learner.student)
    assert plain.queue.shape == (64, 128)
    for step in range(3):
        batch = problem.batches[step]
        views, mixing = same_views(problem, step), same_mixing(problem, step)
        opinion = problem.rows.scatter(batch.labelled, problem.opinion.soft_labels, CPU).float()
        clean, ramp = problem.opinion.clean[batch.labelled], batch.position / method.ramp_epochs
        expected = plain.step(views, opinion, clean, mixing, ramp, method)
        terms = coreg.coreg_step(problem.state, learner, batch, problem.mesh, problem.opinion)[2:]
        assert terms.tolist() == pytest.approx(expected, rel=1e-4)
        assert all(term > 0 for term in expected)
    torch.testing.assert_close(learner.memory.prototypes, plain.prototypes, rtol=1e-4, atol=1e-5)
    for ours, theirs in ((learner.student, plain.student), (learner.memory.keys, plain.keys)):
        assert ours is not None
        moved = (pack(ours) - start).norm()
        assert moved > 0
        assert (pack(ours) - pack(theirs)).norm() < 1e-2 * moved


def test_pillow_makes_the_views_of_a_step() -> None:
    pixels = synthetic_rows(20).pixels.numpy()
    views = pillow_batch(pixels[:12], pixels[12:], random.Random(3), CPU)
    for pair, count in ((views.weak_x, 12), (views.weak_u, 8), (views.strong_x, 12), (views.strong_u, 8)):
        for made in pair:
            assert made.shape == (count, 3, 32, 32)
            assert made.dtype == torch.float32
            assert made.is_contiguous()
            assert 0 <= made.min() < made.max() <= 255
        assert not torch.equal(*pair)


def test_tasks_take_turns_after_one_call_to_warm_up() -> None:
    called: list[str] = []
    seconds = take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3, CPU)
    assert called == ["a", "b"] * 4
    assert [len(taken) for taken in seconds.values()] == [3, 3]


def test_figures_as_table_and_json(figures: Figures) -> None:
    figures.add_ratio("step/x", [4.0, 2.0, 9.0], [2.0, 2.0, 3.0], "a note")
    figures.skipped["epoch/y"] = "no GPU"
    content = json.loads(json.dumps(figures.as_json()))
    assert content["step/x"] == 2.0
    assert content["spread"]["step/x"] == [1.0, 3.0]
    assert content["skipped"] == {"epoch/y": "no GPU"}
    assert "not measured: no GPU" in figures.table()
    assert "a note" in figures.table()


@pytest.mark.slow
def test_parts_of_a_step_and_its_work(figures: Figures) -> None:
    problem = tiny()
    steps.measure_steps(figures, problem, tiny("bf16"), tiny(weak_views=2), 2)
    steps.measure_parts(figures, problem, 2, "float32")
    content = figures.as_json()
    for name in ("step/speedup_over_plain", "step/speedup_bf16", "flops_float32/share_of_ceiling"):
        assert content[name] > 0
    parts = ("views", "no_gradient_passes", "forward_backward", "optimiser", "exchange")
    assert all(content[f"parts_float32/{part}_ms"] > 0 for part in parts)
    # 23 forward passes' worth a labelled row; a little less, because pixels take no gradient
    network = problem.learner.peer
    forward = 1e-12 * 23 * 8 * forward_flops(problem, network)
    assert 0.9 * forward < content["flops_float32/step_tflop"] < forward
    with FlopCounterMode(display=False) as counter:
        tiny(weak_views=2).step()
    more = counter.get_total_flops() - 1e12 * content["flops_float32/step_tflop"]
    b, u = len(problem.batches[1].labelled), len(problem.batches[1].unlabelled)
    expected = (b + u) * forward_flops(problem, network) + u * forward_flops(problem, network.classify)
    assert more == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_compiled_networks_are_those_of_the_problem(figures: Figures) -> None:
    problem = tiny()
    with torch.compiler.set_stance("force_eager"):  # all but the compilation, which takes minutes
        steps.measure_compiled(figures, problem, 2, "float32")
    learner = problem.learner
    for network in (learner.student, learner.peer, learner.memory.keys):
        assert network is not None
        assert network.encoder._compiled_call_impl is not None
    assert figures.measured["compile/speedup_float32"].value > 0
    assert figures.measured["compile/first_step_s_float32"].value > 0


def forward_flops(problem: Problem, network: Callable[[Tensor], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(problem.rows.take(torch.arange(8), CPU))
    return counter.get_total_flops() / 8


@pytest.mark.slow
def test_views_assessment_mixture_and_row_counts(figures: Figures) -> None:
    views.measure_views(figures, CPU, 1, 16)
    epochs.measure_assessment(figures, tiny(), tiny("bf16"), 1)
    epochs.measure_mixture(figures, CPU, 1, 1000)
    epochs.measure_row_counts(figures, CPU, (160, 400), 2)
    content = figures.as_json()
    names = (
        "views/strong_per_s_core", "views/weak_per_s_core", "views/speedup_over_pil", "assess/rows_per_s_float32",
        "views/strong_per_s_core_128", "views/speedup_over_pil_128", "views/speedup_over_pil_224",
        "assess/rows_per_s_bf16", "assess/mixture_million_s", "rows/many_over_few",
    )  # fmt: skip
    assert all(content[name] > 0 for name in names)


@pytest.mark.slow
def test_whole_epochs_label_the_clean_rows(figures: Figures) -> None:
    epochs.measure_epoch(figures, CPU, count=96, width=4, batch_size=16, precision="float32")
    assert figures.measured["epoch/seconds"].value > figures.measured["epoch/assess_s"].value > 0


@pytest.mark.slow
def test_one_process_and_two_train_epochs_in_turns(figures: Figures) -> None:
    workers.measure_workers(figures, 1, 48, 8, 4)
    workers.measure_exchange(figures, 1, 4, 4)
    content = figures.as_json()
    assert content["workers/two_over_one"] > 0
    assert 0 < content["exchange/share_of_epoch"] < 1


@pytest.mark.slow
def test_a_failing_worker_is_named() -> None:
    with workers.World(1, 1) as world, pytest.raises(RuntimeError, match="rank 0 of 1 failed"):
        world.run("epoch", 1)


def test_scales_are_within_what_the_parts_take() -> None:
    for scale in (suite.SMOKE, suite.FULL):
        assert scale.worker_rows >= 2 * scale.batch_size
        assert scale.row_counts[1] > scale.row_counts[0]
