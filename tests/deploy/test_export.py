"""The model as a user takes it home: export, load, predict, calibration, portable forms, and bad input."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import NAMES, export, finished_run
from PIL import Image
from torch.nn import functional as F
from toy import SIDE

import coreg_ray
from coreg_ray.config import ExportConfig
from coreg_ray.deploy import onnx
from coreg_ray.deploy.calibration import calibration_error, fit_temperature
from coreg_ray.deploy.export import choose, forms, purified_labels, write
from coreg_ray.deploy.model import Model
from coreg_ray.deploy.predictions import Pair
from coreg_ray.errors import UserError
from coreg_ray.pure.rng import generator
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.training.sample import read_sample


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = finished_run(RunFolder.at(tmp_path_factory.mktemp("run")))
    export(folder)
    return folder


@pytest.fixture(scope="module")
def model(run: RunFolder) -> Model:
    return coreg_ray.load(f"{run.path}/model")


def photographs(count: int = 3, side: int = SIDE) -> np.ndarray[Any, Any]:
    return torch.randint(0, 256, (count, side, side, 3), generator=generator(1), dtype=torch.uint8).numpy()


def test_the_model_says_what_the_trained_network_says(run: RunFolder, model: Model) -> None:
    pair = Pair.of(run)
    assert pair is not None
    pixels = photographs()
    name = run.read_json("model/model.json")["networks"][0]
    logits = getattr(pair, name).classify(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    expected = (logits / model.temperature).softmax(1).detach().numpy()
    class_names, probabilities = model.predict(pixels)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert class_names == [NAMES[number] for number in expected.argmax(1)]


def test_model_json_and_weights_suffice_without_the_package(run: RunFolder, model: Model) -> None:
    card = run.read_json("model/model.json")
    assert (card["classes"], card["resolution"]) == (NAMES, SIDE)
    pixels = torch.from_numpy(photographs()).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(card[name])[:, None, None] for name in ("mean", "std"))
    network: Any = model.networks[card["networks"][0]]
    by_hand = network.classifier(network.encoder((pixels / 255 - mean) / std)) / card["temperature"]
    np.testing.assert_allclose(by_hand.softmax(1).detach(), model.probabilities(pixels), atol=1e-4)
    assert not any("projector" in name for name in model.networks.state_dict())
    assert card["provenance"]["annotation_fingerprint"] == "toy"
    assert card["provenance"]["configuration"]["method"]["epochs"] == 4
    assert {"coreg_ray", "torch"} <= set(card["provenance"]["versions"])
    assert card["provenance"]["metrics"]["test/accuracy"] is not None


def test_every_way_to_hand_over_an_image_gives_the_same_answer(model: Model, tmp_path: Path) -> None:
    pixels = photographs(1)[0]
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    ways: list[Any] = [
        pixels, pixels[None], path, str(path), [path], path.read_bytes(), Image.open(path), tensor, tensor[None],
        tensor / 255, pixels / np.float64(255), (image for image in [pixels]), [tensor, pixels][:1],
    ]  # fmt: skip
    expected = model.predict(pixels).probabilities
    for way in ways:
        np.testing.assert_allclose(model.predict(way).probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (7, 50), (200, 30)])
def test_any_mode_and_size_is_an_image(model: Model, mode: str, size: tuple[int, int]) -> None:
    image = Image.new(mode, size)
    probabilities = model.predict([image, np.asarray(Image.new("RGBA", size))]).probabilities
    assert probabilities.shape == (2, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_batch_size_changes_nothing_and_an_empty_batch_is_one(model: Model) -> None:
    pixels = photographs(7)
    whole = model.predict(pixels).probabilities
    np.testing.assert_allclose(model.predict(pixels, batch_size=2).probabilities, whole, atol=1e-5)
    np.testing.assert_allclose(model.predict(list(pixels), batch_size=3).probabilities, whole, atol=1e-5)
    empty_batches: list[Any] = [[], np.empty((0, SIDE, SIDE, 3), np.uint8), torch.empty(0, 3, 5, 5)]
    for empty in empty_batches:
        class_names, probabilities = model.predict(empty)
        assert class_names == []
        assert probabilities.shape == (0, 4)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("missing.png", "missing.png"),
        (b"", "empty file"),
        (b"no image at all", "not an image"),
        (3, "type int"),
        ([None], "image 0"),
        (np.zeros((2, 3, 4, 5, 6)), "shape"),
        (np.zeros((4, 4, 7), np.uint8), "shape"),
        (np.full((4, 4), 300, np.int32), "0..255"),
        (np.full((4, 4), np.nan), "0..1"),
        (np.zeros((0, 4), np.uint8), "no pixel"),
    ],
)
def test_what_is_no_image_is_named(model: Model, image: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model.predict(image)


def test_the_broken_image_among_many_is_named(model: Model, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(photographs(1)[0]).save(good)
    bad.write_bytes(good.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"image 1 \(.*bad.png\)"):
        model.predict([good, bad])


def test_folders_that_hold_no_model_are_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean .*/model"):
        coreg_ray.load(run.path)
    with pytest.raises(UserError, match=r"no model\.json"):
        coreg_ray.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda card, weights: (card | {"format": 3}, weights), "upgrade"),
        (lambda card, weights: ({"classes": []}, weights), "format"),
        (lambda card, weights: (card | {"classes": ["a", "b"]}, weights), "damaged"),
        (lambda card, weights: (card | {"networks": ["c"]}, weights), "damaged"),
        (lambda card, weights: (card | {"student": {"width": 8}}, weights), "damaged"),
        (lambda card, weights: ({k: v for k, v in card.items() if k != "temperature"}, weights), "damaged"),
        (lambda card, weights: (card, weights[:-100]), "damaged"),
        (lambda card, weights: (card, b"garbage"), "damaged"),
    ],
)
def test_a_damaged_model_is_refused(run: RunFolder, tmp_path: Path, change: Any, reason: str) -> None:
    card, weights = change(run.read_json("model/model.json"), run.read("model/model.safetensors"))
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=reason):
        coreg_ray.load(tmp_path)


def test_a_model_without_weights_or_with_broken_json_is_refused(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(run.read("model/model.json"))
    with pytest.raises(UserError, match="lacks"):
        coreg_ray.load(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        coreg_ray.load(tmp_path)


def test_a_run_without_checkpoint_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train first"):
        export(RunFolder.at(tmp_path))


def test_the_ensemble_is_the_sum_of_logits_and_stays_one_when_loaded(run: RunFolder, tmp_path: Path) -> None:
    pair = Pair.of(run)
    assert pair is not None
    names, temperature = choose(pair, ExportConfig(network="ensemble", calibrate=False), None)
    assert (names, temperature) == (["a", "b"], 1.0)
    both = Model(pair.class_names, pair.student, torch.nn.ModuleDict({"a": pair.a, "b": pair.b}))
    write(both, Folder.at(tmp_path / "m"), ExportConfig(onnx=False))
    pixels = torch.from_numpy(photographs()).permute(0, 3, 1, 2)
    expected = pair.logits(pixels).mean(0).softmax(1)
    loaded = coreg_ray.load(tmp_path / "m")
    np.testing.assert_allclose(loaded.predict(pixels).probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("better", ["a", "b"])
def test_the_network_whose_class_is_more_often_a_candidate_is_deployed(run: RunFolder, better: str) -> None:
    pair = Pair.of(run)
    assert pair is not None
    sample = read_sample(run, "pool", SIDE, len(NAMES), 100)
    assert sample is not None
    best = pair.logits(sample.pixels)["ab".index(better)].argmax(1)
    sets = F.one_hot(best, len(NAMES)).bool()
    favourable = replace(sample, candidates=sets)
    assert choose(pair, ExportConfig(calibrate=False), favourable)[0] == [better]


def test_only_what_the_method_deploys_is_chosen(run: RunFolder) -> None:
    pair = Pair.of(run)
    sample = read_sample(run, "pool", SIDE, len(NAMES), 100)
    assert pair is not None
    for deployed in (("a",), ("b",)):
        for known in (sample, None):
            assert choose(pair, ExportConfig(), known, deployed)[0] == list(deployed)


def test_a_temperature_undoes_a_known_scale() -> None:
    logits = torch.randn(4000, 5, generator=generator(1)) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator(2))[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(1.0, rel=0.05)
    assert fit_temperature(logits * 3, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-3)
    assert fit_temperature(logits[:0], labels[:0]) == 1.0


def test_calibration_error_by_hand() -> None:
    confidence, correct = torch.tensor([0.95, 0.95, 0.55, 1.0]), torch.tensor([True, False, True, True])
    by_hand = (3 / 4) * abs((0.95 + 0.95 + 1.0) / 3 - 2 / 3) + (1 / 4) * abs(0.55 - 1)
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(by_hand, abs=1e-6)
    assert calibration_error(confidence[:0], correct[:0]) == 0


def test_purified_labels_lie_in_the_candidate_set() -> None:
    logits = torch.tensor([[5.0, 1.0, 2.0], [-3.0, -2.0, 9.0]])
    sets = torch.tensor([[False, True, True], [True, True, False]])
    assert purified_labels(logits, sets).tolist() == [2, 1]


def test_an_exporter_that_fails_costs_its_own_form_alone(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Model) -> bytes:
        raise ValueError("The model contains functions")

    monkeypatch.setattr(onnx, "onnx_is_installed", lambda: True)
    monkeypatch.setattr(onnx, "to_onnx", fail)
    made = forms(model, ExportConfig())
    assert (made.files, made.figures) == ({}, {})
    assert made.remarks[0].startswith("no ONNX: the installed torch, onnx and onnxscript cannot make it (ValueError)")
    write(model, Folder.at(tmp_path), ExportConfig())
    assert "no ONNX: the installed torch" in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match="contains functions"):
        forms(model, ExportConfig(onnx=True))


def test_onnx_agrees_with_pytorch_at_any_batch_size(model: Model, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    write(model, Folder.at(tmp_path), ExportConfig(onnx=True))
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["images"]
    for count in (1, 7):
        images = torch.rand(count, 3, SIDE, SIDE, generator=generator(count))
        probabilities = session.run(["probabilities"], {"images": images.numpy()})[0]
        np.testing.assert_allclose(probabilities, model.probabilities(images * 255), atol=1e-4)


def test_the_exported_program_agrees_at_any_batch_size(model: Model, tmp_path: Path) -> None:
    write(model, Folder.at(tmp_path), ExportConfig(onnx=False, program=True))
    program = torch.export.load(BytesIO((tmp_path / "model.pt2").read_bytes())).module()
    for count in (1, 7):
        images = torch.rand(count, 3, SIDE, SIDE, generator=generator(count))
        np.testing.assert_allclose(program(images).detach(), model.probabilities(images * 255), atol=1e-5)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


NAMES_OF_FILES = ["README.md", "model.json", "model.safetensors"]


def test_files_of_an_earlier_export_do_not_stay(model: Model, tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    model.save(folder, {"model.onnx": b"of another model", "README.md": b"of another model"})
    write(model, folder, ExportConfig(onnx=False))
    assert names(tmp_path) == NAMES_OF_FILES
    files = folder.read_json("model.json")["files"]
    assert sorted(files) == NAMES_OF_FILES
    assert files["README.md"] == hashlib.sha256((tmp_path / "README.md").read_bytes()).hexdigest()


def test_nor_do_those_of_versions_that_kept_no_list(model: Model, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"format": 1}))
    for name in ("model.onnx", "model.pt2", "model.safetensors"):
        (tmp_path / name).write_bytes(b"of another model")
    (tmp_path / "README.md").write_text("perhaps edited")
    write(model, Folder.at(tmp_path), ExportConfig(onnx=False))
    assert names(tmp_path) == ["README-new.md", *NAMES_OF_FILES]
    assert (tmp_path / "README.md").read_text() == "perhaps edited"


def test_a_persons_own_files_stay(model: Model, tmp_path: Path) -> None:
    folder, settings = Folder.at(tmp_path), ExportConfig(onnx=False)
    write(model, folder, settings)
    fresh = folder.read("README.md")
    own = {"notes.txt": b"mine", "model.onnx": b"mine", "sub/deep/a.txt": b"mine", "README.md": fresh + b"\nmine"}
    for name, content in own.items():
        folder.write(name, content)
    for _ in range(2):
        write(model, folder, settings)
        assert {name: folder.read(name) for name in own} == own
        assert folder.read("README-new.md") == fresh
        assert names(tmp_path) == sorted(["README-new.md", *NAMES_OF_FILES, "model.onnx", "notes.txt", "sub"])
    (tmp_path / "README.md").unlink()
    write(model, folder, settings)
    assert folder.read("README.md") == fresh
    assert not folder.exists("README-new.md")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_file_that_a_person_has_put_in_place_of_ours_is_kept_aside(
    model: Model, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, settings = Folder.at(tmp_path), ExportConfig(onnx=False)
    write(model, folder, settings)
    card = folder.read_json("model.json")
    content = json.dumps(card | {"temperature": 7}).encode() if name == "model.json" else b"mine"
    folder.write(name, content)
    write(model, folder, settings)
    kept = name.replace("model.", "model-kept.")
    assert folder.read(kept) == content
    assert f"it stays as {kept}" in caplog.text
    write(model, folder, settings)
    assert names(tmp_path) == sorted([*NAMES_OF_FILES, kept])
    assert coreg_ray.load(tmp_path).classes == model.classes


def test_the_model_card_cannot_be_broken_by_a_class_name(run: RunFolder) -> None:
    text = run.read("model/README.md").decode()
    assert "<b>" not in text
    assert "`&lt;b>bold&lt;/b>`" in text


def test_loading_needs_neither_ray_nor_open_clip_and_leaves_the_generator_alone(run: RunFolder) -> None:
    program = (
        "import sys, torch, coreg_ray, numpy\n"
        "before = torch.get_rng_state()\n"
        f"coreg_ray.load({run.path + '/model'!r}).predict(numpy.zeros((9, 9), 'uint8'))\n"
        "assert torch.equal(before, torch.get_rng_state())\n"
        "loaded = {'ray', 'open_clip', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, coreg_ray; assert not {'torch', 'ray', 'open_clip'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
