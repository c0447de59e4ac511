"""For small machines: the model in eight bits, the threshold below which it abstains, and what one image costs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from finished_run import NAMES, export, finished_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy import SIDE, images

from coreg_ray.annotation.arrow import write_table
from coreg_ray.cluster.predicted import write_predictions
from coreg_ray.commands import benchmark, predict
from coreg_ray.config import Config, StudentConfig
from coreg_ray.deploy import int8
from coreg_ray.deploy import onnx as onnx_form
from coreg_ray.deploy.abstain import UNKNOWN, Abstention
from coreg_ray.deploy.model import Model, new_network
from coreg_ray.deploy.onnx import to_onnx
from coreg_ray.deploy.threshold import least_images, threshold_for
from coreg_ray.embedded.digits import CLASS_NAMES, digits
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.records import PurifiedManifest
from coreg_ray.run.storage import Folder

STUDENT = StudentConfig(resolution=SIDE, width=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A trained run whose pool has the true labels as purified ones."""
    folder = finished_run(RunFolder.at(tmp_path_factory.mktemp("run")))
    _, labels = images(240, seed=4)
    table = pa.table(
        {
            "image_id": [f"pool/{number:03d}.png" for number in range(240)],
            "label": [NAMES[label] for label in labels.tolist()],
            "status": ["clean"] * 240,
        }
    )
    write_table(folder.purified, "0.parquet", table)
    folder.write_purified_manifest(PurifiedManifest("toy", 1, 0.1, 1.0, {}))
    return folder


@pytest.fixture(scope="module")
def content(run: RunFolder) -> bytes:
    """The run's model as ONNX, which takes ten seconds of a core to make."""
    pytest.importorskip("onnxruntime")
    exported(run, onnx=False)
    return to_onnx(Model.load(run.model))


def exported(run: RunFolder, **settings: Any) -> tuple[dict[str, Any], str]:
    """`model.json` and the model card after an export with these settings."""
    config = run.read_config() or Config()
    tree = config.settings()
    run.write_config(Config.model_validate({**tree, "export": {**tree["export"], **settings}}))
    export(run)
    return run.read_json("model/model.json"), run.read("model/README.md").decode()


# Eight bits.


@pytest.mark.parametrize(("faster", "kept"), [(1.5, True), (0.9, False)])
def test_eight_bits_are_kept_where_they_pay(
    run: RunFolder, content: bytes, faster: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_form, "to_onnx", lambda model: content)
    monkeypatch.setattr(int8, "speedup", lambda *sessions: faster)
    card, text = exported(run, onnx=True)
    figures = run.read_metrics()
    assert figures["int8/agreement"] >= int8.LEAST_AGREEMENT
    assert figures["int8/speedup"] == faster
    assert abs(figures["int8/accuracy"] - figures["int8/float_accuracy"]) < 0.05
    assert run.model.exists("model-int8.onnx") is kept
    assert ("model-int8.onnx" in card["files"]) is kept
    assert card["onnx"] == {"opset": card["onnx"]["opset"], "input": ["batch", 3, SIDE, SIDE]}
    assert card["onnx"]["opset"] >= 13
    assert f"onnxruntime, opset {card['onnx']['opset']}) takes `images`, float32 (B, 3, {SIDE}, {SIDE})" in text
    if kept:
        assert "names the same class for " in text
        pixels, _ = images(40, seed=9)
        small = int8.answers(int8.session(run.model.read("model-int8.onnx")), pixels.permute(0, 3, 1, 2))
        names = Model.load(run.model).predict(pixels.numpy()).classes
        assert np.mean([NAMES[number] == name for number, name in zip(small, names, strict=True)]) >= 0.9
    else:
        assert "No `model-int8.onnx`: it is not faster on this machine (0.90 times the float file's speed)." in text


def test_eight_bits_that_answer_otherwise_are_not_kept(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    pool, _ = images(60, seed=1)
    other = onnx.load_from_string(content)
    (bias,) = [entry for entry in other.graph.initializer if entry.name.endswith("classifier.bias")]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 0, 99], np.float32), bias.name))
    monkeypatch.setattr(int8, "quantize", lambda *_: other.SerializeToString())
    came = int8.quantized(content, pool.permute(0, 3, 1, 2))
    assert came.content is None
    assert "it answers as the float file for " in came.words()
    monkeypatch.undo()
    assert (
        int8.quantized(b"no file", pool.permute(0, 3, 1, 2))
        .words()
        .startswith("No `model-int8.onnx`: onnxruntime cannot make it (")
    )
    assert int8.quantized(content, None).words() == (
        "No `model-int8.onnx`: the run keeps its images at another size than the model's, so none is there to ask."
    )


@pytest.mark.slow
def test_a_wide_network_shrinks_to_a_quarter_and_answers_alike() -> None:
    """Of width 64, on the embedded digits at the size of the scans."""
    pytest.importorskip("onnxruntime")
    student = StudentConfig(resolution=8, width=64)
    network: Any = new_network(student, 10)
    split = {name: digits(name, 8)[1:] for name in ("train", "test")}
    pixels, labels = {}, {}
    for name, (images_, numbers) in split.items():
        pixels[name], labels[name] = torch.from_numpy(images_).permute(0, 3, 1, 2), torch.from_numpy(numbers)
    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    network.train()
    for _ in range(2):
        for block in torch.arange(len(labels["train"])).split(32):
            loss = torch.nn.functional.cross_entropy(network.classify(pixels["train"][block]), labels["train"][block])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model = Model(list(CLASS_NAMES), student, torch.nn.ModuleDict({"a": network}).eval())
    content = to_onnx(model)
    came = int8.quantized(content, pixels["train"], (pixels["test"], labels["test"]))
    assert came.figures["int8/float_accuracy"] > 0.8
    assert came.figures["int8/agreement"] >= int8.LEAST_AGREEMENT
    assert came.figures["int8/size"] <= 0.3
    assert came.figures["int8/accuracy"] >= came.figures["int8/float_accuracy"] - 0.02


# Abstention.


def by_trying(confidence: list[float], right: list[bool], precision: float) -> float | None:
    """The lowest threshold that is good enough, of all that there are."""
    for threshold in sorted(set(confidence)):
        kept = [ok for value, ok in zip(confidence, right, strict=True) if value >= threshold]
        if (kept.count(False) + 1) / (len(kept) + 1) <= 1 - precision + 1e-12:
            return threshold
    return None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.3, 0.4, 0.5, 0.625, 0.75, 0.875, 1.0]), st.booleans()), min_size=1),
    st.sampled_from([0.2, 0.5, 0.75, 0.9]),
)
def test_the_threshold_is_the_lowest_that_is_precise_enough(rows: list[tuple[float, bool]], precision: float) -> None:
    confidence, right = [row[0] for row in rows], [row[1] for row in rows]
    chosen = threshold_for(torch.tensor(confidence, dtype=torch.float64), torch.tensor(right), precision)
    assert chosen == by_trying(confidence, right, precision)


def test_few_images_prove_nothing() -> None:
    assert [least_images(wish) for wish in (0.5, 0.9, 0.95, 0.99)] == [1, 9, 19, 99]
    for wish in (0.5, 0.9, 0.95, 0.99):
        least = least_images(wish)
        assert threshold_for(torch.full((least,), 0.7), torch.ones(least, dtype=torch.bool), wish) is not None
        assert threshold_for(torch.full((least - 1,), 0.7), torch.ones(least - 1, dtype=torch.bool), wish) is None


def test_the_rule_is_stored_and_kept_to(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, text = exported(run, onnx=False, abstain=0.2)
    assert card["abstain"]["precision"] == 0.2
    assert "Asked to abstain, it says `unknown` below a probability of " in text
    assert run.read_metrics()["abstain/images"] >= least_images(0.2)
    model = Model.load(run.model)
    assert model.abstain == Abstention(0.2, card["abstain"]["threshold"])
    pixels, _ = images(40, seed=9)
    stated = model.predict(pixels.numpy()).probabilities.max(axis=1)
    model.abstain = Abstention(0.2, float(np.median(stated)))
    sure = stated >= np.median(stated)
    assert {True, False} <= set(sure.tolist())
    plain, told = model.predict(pixels.numpy()).classes, model.predict(pixels.numpy(), abstain=True).classes
    assert told == [name if kept else UNKNOWN for name, kept in zip(plain, sure, strict=True)]
    run.model.write("model.json", json.dumps({**card, "abstain": {"precision": 0.2, "threshold": 1.1}}))
    Image.fromarray(pixels.numpy()[0]).save(tmp_path / "a.png")
    words = ["--model", run.model.path, "--single", str(tmp_path / "a.png")]
    predict.main([*words, "--abstain", "true"])
    assert capsys.readouterr().out.startswith("unknown: no class is as probable as 1.1000\n")
    predict.main(words)
    assert "unknown" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wish", "figures", "reason"),
    [
        (0.99, {}, r"for a precision of 0.99, [0-9]+ held-out images have a label, and 99 are the least"),
        (0.6, {"trust/votes_improved": False}, "its purified labels are not to be trusted above the votes"),
        (None, {}, ""),
    ],
)
def test_without_a_precision_that_is_known_no_threshold_is_stored(
    run: RunFolder, wish: float | None, figures: dict[str, Any], reason: str
) -> None:
    before = run.read_metrics()
    run.write_json("metrics.json", {**before, **figures})
    card, text = exported(run, onnx=False, abstain=wish)
    run.write_json("metrics.json", before)
    assert "abstain" not in card
    (line,) = [line for line in text.splitlines() if "no threshold" in line] or [""]
    assert re.search(reason, line)
    with pytest.raises(UserError, match=r"stores no threshold to abstain by.*--export.abstain PRECISION"):
        Model.load(run.model).predict([], abstain=True)


def test_a_class_that_is_called_so_would_be_mistaken() -> None:
    model = Model(["cat", UNKNOWN], STUDENT, torch.nn.ModuleDict({"a": new_network(STUDENT, 2)}).eval())
    model.abstain = Abstention(0.9, 0.5)
    with pytest.raises(UserError, match="a class of the model is called unknown"):
        model.predict([], abstain=True)


def test_predictions_hold_unknown_and_what_it_might_be(tmp_path: Path) -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6]], np.float32)
    batch = {"image_id": np.array(["a", "b"]), "content": np.array(["0", "1"]), "probabilities": probabilities}
    folder = Folder.at(tmp_path / "predictions")
    settings_: dict[str, Any] = {"folder": folder, "rejects": Folder.at(tmp_path / "rejects"), "run": 0}
    write_predictions(batch, **settings_, fingerprint="0" * 32, class_names=["cat", "dog"], top_k=2, least=0.7)
    rows = pq.read_table(folder.files(".parquet")[0]).to_pylist()
    assert [(row["class"], row["top_classes"]) for row in rows] == [
        ("cat", ["cat", "dog"]),
        ("unknown", ["dog", "cat"]),
    ]
    assert [row["probability"] for row in rows] == pytest.approx([0.9, 0.6])


# What one image costs.


def test_one_image_is_measured_in_every_form(
    run: RunFolder,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(onnx_form, "to_onnx", lambda model: content)
    monkeypatch.setattr(int8, "speedup", lambda *sessions: 0.9)
    exported(run, onnx=True, abstain=0.6)
    benchmark.main(["--model", run.model.path, "--smoke", "--output", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("pytorch_ms", "onnx_ms", "onnx_speedup", "pytorch_memory_mb", "onnx_memory_mb", "onnx_file_mb"):
        assert figures[f"model/{name}"] > 0
    assert "model-int8.onnx does not lie in the folder" in figures["skipped"]["model/int8_ms"]
    assert "model/onnx_speedup" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main(["--model", str(tmp_path)])
    assert "holds no model.json" in capsys.readouterr().err
