"""What is taken home of a pretrained network that was trained whole, its batch-norm statistics as they came."""

from __future__ import annotations

from pathlib import Path

import finetune_toy
import numpy as np
import onnxruntime
import pytest
import torch
import toy
from finished_run import export, finished_run
from safetensors.torch import load_file

import coreg_ray
from coreg_ray.deploy.model import Model
from coreg_ray.report.baselines import compare
from coreg_ray.run.folder import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def run(folder: Path) -> RunFolder:
    student = finetune_toy.student(finetune_toy.weights(folder), batch_norm="frozen", warm_start=1).model_dump()
    settings = toy.method(epochs=2, warmup_epochs=1, batch_size=64, warmup_batch_size=64).model_dump()
    place = RunFolder.at(folder / "run")
    finished = finished_run(place, student=student, method=settings, export={"onnx": True, "network": "ensemble"})
    export(finished)
    return finished


@pytest.fixture(scope="module")
def model(run: RunFolder) -> Model:
    return coreg_ray.load(f"{run.path}/model")


def test_the_model_has_the_statistics_of_the_weights_it_came_from(run: RunFolder, model: Model, folder: Path) -> None:
    origin = load_file(folder / "weights.safetensors")
    for network in model.networks.values():
        taken = {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}
        kept = {name for name in origin if torch.equal(origin[name], taken[name])}
        assert kept == {name for name in origin if "running" in name or "tracked" in name}
    assert set(run.model.read_json("model.json")["student"]) == {"name", "width", "resolution"}  # all that it needs


def test_onnx_says_what_the_model_says(run: RunFolder, model: Model) -> None:
    pixels = toy.images(20, 4)[0].permute(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(run.model.read("model.onnx"), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": pixels.float().contiguous().numpy() / 255})
    np.testing.assert_allclose(probabilities, model.probabilities(pixels), atol=1e-4)


def test_the_distilled_student_is_trained_likewise(run: RunFolder) -> None:
    config = run.read_config()
    assert config is not None
    _, distilled = compare(run, config)
    assert distilled.accuracy is not None
