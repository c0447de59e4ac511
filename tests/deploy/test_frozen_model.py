"""What is taken home of heads: backbone and head in one model, with all its forms; the report on such a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import frozen_toy
import numpy as np
import onnxruntime
import pytest
import torch
from finished_run import export, finished_run
from PIL import Image
from safetensors.torch import load
from toy_clip import write_toy_clip

import coreg_ray
from coreg_ray.cluster.predict import fit_of
from coreg_ray.deploy.model import Model
from coreg_ray.deploy.predictions import Pair
from coreg_ray.errors import UserError
from coreg_ray.images.decode import Fit
from coreg_ray.report.baselines import compare
from coreg_ray.report.data import read_run
from coreg_ray.run.folder import RunFolder
from coreg_ray.training.backbone import read_backbone
from coreg_ray.training.sample import read_sample


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    student = frozen_toy.STUDENT.model_dump()
    exports = {"onnx": True, "network": "ensemble"}
    place = RunFolder.at(tmp_path_factory.mktemp("run"))
    folder = finished_run(place, before=frozen_toy.make_features, student=student, export=exports)
    export(folder)
    return folder


@pytest.fixture(scope="module")
def model(run: RunFolder) -> Model:
    return coreg_ray.load(f"{run.path}/model")


def pixels(run: RunFolder) -> torch.Tensor:
    sample = read_sample(run, "test", frozen_toy.STUDENT.resolution, 4, 20)
    assert sample is not None
    return sample.pixels


def test_the_model_is_backbone_and_heads_in_one(run: RunFolder, model: Model) -> None:
    pair, manifest = Pair.of(run), run.read_features_manifest()
    assert pair is not None
    assert manifest is not None
    features = read_backbone(run.features, manifest.backbone)(pixels(run))
    logits = torch.stack([pair.a.classify(features), pair.b.classify(features)]).mean(0)
    torch.testing.assert_close(model.logits(pixels(run)), logits, atol=1e-4, rtol=1e-4)
    names = {name.split(".")[0] for name in load(run.model.read("model.safetensors"))}
    assert names == {"backbone", "a", "b"}  # one backbone for both
    card = run.model.read_json("model.json")
    assert (card["format"], card["resolution"], card["student"]["frozen"]) == (2, 12, True)
    assert card["backbone"]["name"] == "test_efficientnet"
    assert card["mean"] == pytest.approx(manifest.backbone.mean)
    assert "small head on a frozen test_efficientnet" in run.model.read("README.md").decode()


def test_a_sample_has_the_stored_features_of_its_images(run: RunFolder) -> None:
    manifest = run.read_features_manifest()
    assert manifest is not None
    network = read_backbone(run.features, manifest.backbone)
    for split in ("pool", "test"):
        sample = read_sample(run, split, 12, 4, 90)
        assert sample is not None
        torch.testing.assert_close(sample.inputs, network(sample.pixels), atol=2e-2, rtol=1e-2)
        fewer = sample.where(np.arange(len(sample)) % 2 == 1)
        assert torch.equal(fewer.inputs, sample.inputs[1::2])


def test_onnx_takes_images_as_always(run: RunFolder, model: Model) -> None:
    session = onnxruntime.InferenceSession(run.model.read("model.onnx"), providers=["CPUExecutionProvider"])
    images = pixels(run).float().contiguous().numpy() / 255
    (probabilities,) = session.run(["probabilities"], {"images": images})
    np.testing.assert_allclose(probabilities, model.probabilities(pixels(run)), atol=1e-4)


def test_photos_of_any_size_and_grey_ones_are_predicted(model: Model) -> None:
    grey = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30))
    rgb = Image.merge("RGB", [grey] * 3)
    one, other = model.predict([grey, rgb]).probabilities
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_report_and_what_it_compares_with_take_features(run: RunFolder) -> None:
    config = run.read_config()
    assert config is not None
    probe, distilled = compare(run, config)
    assert probe.accuracy is not None
    assert distilled.accuracy is not None
    looked = read_run(run)
    assert looked.pool is not None
    assert looked.test is not None
    assert looked.test.logits.shape[0] == 2


def test_a_model_whose_features_are_gone_is_not_exported_without_its_backbone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "read_features_manifest", lambda self: None)
    with pytest.raises(UserError, match="has no features/ any more, where the backbone's weights lie"):
        export(run)


# Heads on the annotator's own embeddings.


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("annotator")
    annotator = write_toy_clip(folder, embed_dim=8)
    run = finished_run(
        RunFolder.at(folder / "run"),
        before=frozen_toy.copy_embeddings,
        student={"name": "annotator", "resolution": 12, "width": 4, "projection": 8, "precision": "float32"},
        annotator=annotator,
    )
    export(run)
    return run


def test_heads_on_embeddings_learn_from_what_the_annotator_stored(embedded: RunFolder) -> None:
    history = embedded.read_history()
    assert len(history) == 4
    assert float(history[-1]["test/accuracy"]) > 0.5  # the stored embeddings lie near their class's text
    manifest = embedded.read_features_manifest()
    assert manifest is not None
    assert (manifest.views, manifest.backbone.features, manifest.backbone.resolution) == (0, 8, 32)


def test_such_a_model_sees_images_as_the_annotator_did(embedded: RunFolder) -> None:
    from coreg_ray.annotation.clip import load_model

    config = embedded.read_config()
    assert config is not None
    clip = load_model(config.annotator.model, config.annotator.pretrained)
    model = coreg_ray.load(f"{embedded.path}/model")
    assert (model.resolution, model.fit) == (32, clip.fit)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    normalised = (images / 255 - torch.tensor(clip.mean)[:, None, None]) / torch.tensor(clip.std)[:, None, None]
    expected = torch.nn.functional.normalize(clip.network.encode_image(normalised), dim=-1)
    assert model.backbone is not None
    torch.testing.assert_close(model.backbone(images), expected, atol=1e-5, rtol=1e-4)
    assert "image encoder of the annotator, which open_clip builds" in embedded.model.read("README.md").decode()


def test_it_needs_open_clip_and_says_so(embedded: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip.model", None)
    with pytest.raises(UserError, match=r"annotator.s image encoder, which open_clip builds .* pip install open_clip"):
        coreg_ray.load(f"{embedded.path}/model")


@pytest.mark.parametrize("fit", [None, {"height": 32, "width": 32, "mode": "squash", "fill": 3}])
def test_how_images_are_brought_to_size_is_written_down(fit: dict[str, Any] | None) -> None:
    expected = Fit(32, 32, "squash", fill=3) if fit else Fit.square(32)
    assert fit_of({"resolution": 32, "backbone": {"fit": fit}}) == expected
    assert fit_of({"resolution": 32}) == Fit.square(32)


def test_a_model_of_a_later_format_is_refused(run: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    for name in ("model.json", "model.safetensors"):
        folder.write(name, run.model.read(name))
    folder.write_json("model.json", run.model.read_json("model.json") | {"format": 3})
    with pytest.raises(UserError, match="has format 3, this version reads up to 2"):
        coreg_ray.load(tmp_path)
