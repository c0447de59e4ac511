"""Heads over a frozen backbone through Ray, at the size of the preset's twin that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from coreg_ray.cluster import features
from coreg_ray.cluster.pipeline import run_pipeline
from coreg_ray.cluster.pools import open_pool
from coreg_ray.cluster.predict import evaluate
from coreg_ray.commands.base import Command, load
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import resolved
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.records import RowsManifest
from coreg_ray.training.backbone import read_backbone, timm_backbone
from coreg_ray.training.features import names_of


def command(output: Path, *more: str) -> Command:
    return load(["--preset", "photos-smoke", "--output", str(output), *more], Command)


@pytest.mark.cluster
def test_the_whole_way_its_restart_and_what_is_refused(tmp_path: Path, ray_cluster: None) -> None:
    output = tmp_path / "run"
    figures = run_pipeline(command(output, "--export.onnx", "false"))
    run = RunFolder.at(output)
    assert [row["phase"] for row in run.read_history()] == ["warmup"] * 3 + ["coreg"] * 3
    assert figures["test/accuracy"] > 0.3  # random features, six epochs
    assert run.model.read_json("model.json")["format"] == 2
    parts = {name: run.features.read(name) for name in _names(run)}
    begun = run.read_config()
    assert begun is not None
    fitted = resolved(command(output).method, 1437, frozen=True)
    assert begun.method.whole() == fitted  # what the preset leaves empty is settled, once

    (lost,) = [name for name in parts if name.startswith("test/")][:1]
    run.features.delete(lost)
    history = run.read_history()
    again = run_pipeline(command(output, "--export.onnx", "false"))
    assert again["annotation/encoded_images"] == 0
    assert {name: run.features.read(name) for name in _names(run)} == parts
    assert run.read_history() == history
    assert run.read_config() == begun

    other = tmp_path / "other"  # another training on the same images
    words = ("--export.onnx", "false", "--method.epochs", "4", "--report.images", "64")
    taken = run_pipeline(command(other, *words), annotated=str(output))
    assert 0 <= taken["test/accuracy"] <= 1
    assert RunFolder.at(other).features.path == run.features.path
    assert not (other / "features").exists()
    assert len(RunFolder.at(other).read_history()) == 4

    embeddings = tmp_path / "embeddings"  # heads on what the annotator has stored in the first run
    settings = {"student.name": "annotator", "student.frozen": "false", "method.epochs": "4", "export.onnx": "false"}
    given = command(embeddings, *(word for name, value in settings.items() for word in (f"--{name}", value)))
    taken = run_pipeline(given, annotated=str(output))
    assert 0 <= taken["test/accuracy"] <= 1
    card = RunFolder.at(embeddings).model.read_json("model.json")
    assert (card["student"]["name"], card["backbone"]["name"]) == ("annotator", "annotator")
    scored = evaluate(RunFolder.at(embeddings).model, open_pool(given, "test")[1])  # which sees the images themselves
    assert scored.accuracy == pytest.approx(taken[f"test/accuracy_{card['networks'][0]}"], abs=0.01)

    manifest = run.features.read_json("manifest.json")
    run.features.write_json("manifest.json", manifest | {"views": 6})
    with pytest.raises(UserError, match=r"holds features of another backbone or of other views .views 6, not 4."):
        run_pipeline(command(output, "--export.onnx", "false"))

    small = tmp_path / "small"
    with pytest.raises(UserError, match=r"the pool has 1437 images, fewer than two batches of method.batch_size=800"):
        run_pipeline(command(small, "--method.batch_size", "800"))
    assert not (small / "annotations/pool").exists() or not list((small / "annotations").rglob("*.parquet"))


# Before anything is annotated, without Ray.


def frozen(tmp_path: Path, **student: Any) -> Config:
    settings = {"name": "test_resnet", "frozen": True, "resolution": 32, "frozen_views": 4}
    return Config.model_validate({"output": str(tmp_path / "run"), "student": settings | student})


def test_another_runs_features_are_taken_over_where_they_are_the_same_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"part.parquet": 200}
    monkeypatch.setattr(features, "_counts", lambda folder: counts if folder.exists("part.parquet") else {})
    config = frozen(tmp_path)
    other = RunFolder.at(config.output)
    features.open_features(config, other)
    other.own("rows", "pool").write("part.parquet", b"")
    other.write_rows_manifest("pool", RowsManifest(32, "0123456789abcdef"))
    run = RunFolder.at(tmp_path / "mine")

    def taken(settings: Config = config) -> str | None:
        folder = features.fitting_features(settings, run, other, ["pool"])
        return folder.path if folder else None

    parts = sorted(names_of(counts))
    assert len(parts) == 2
    other.own("features", "pool").write(parts[0], b"")
    assert taken() is None  # a part is missing
    other.own("features", "pool").write(parts[1], b"")
    assert taken() == other.features.path
    assert features.fitting_features(config, run, other, ["pool", "test"]) is None  # there are no test images
    for change in ({"frozen_views": 6}, {"name": "test_efficientnet"}, {"resolution": 48}, {"frozen": False}):
        assert taken(frozen(tmp_path, **change)) is None
    assert taken(config.model_copy(update={"seed": 1})) is None  # its views are others
    features.open_features(config, run)
    assert taken() is None  # it has begun its own


def test_the_backbones_weights_are_kept_and_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = frozen(tmp_path)
    run = RunFolder.at(config.output)
    features.open_features(config, run)
    manifest = run.read_features_manifest()
    assert manifest is not None
    assert read_backbone(run.features, manifest.backbone).card == manifest.backbone
    monkeypatch.setattr(features, "timm_backbone", lambda *_: pytest.fail("it was built again"))
    features.open_features(config, run)
    assert run.read_features_manifest() == manifest


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"frozen_views": 6}, "views 4, not 6"),
        ({"name": "test_efficientnet"}, "name test_resnet, not test_efficientnet"),
        ({"resolution": 64}, "resolution 32, not 64"),
    ],
)
def test_other_features_in_the_folder_are_refused(tmp_path: Path, student: dict[str, Any], message: str) -> None:
    config = frozen(tmp_path)
    run = RunFolder.at(config.output)
    features.open_features(config, run)
    with pytest.raises(UserError, match=rf"run/features holds features of another backbone .*{message}.*remove that"):
        features.open_features(frozen(tmp_path, **student), run)


def test_other_weights_of_the_same_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    config = frozen(tmp_path, pretrained=str(path))
    run = RunFolder.at(config.output)
    for seed, refused in ((0, False), (1, True)):
        save_file(timm_backbone(frozen(tmp_path).student, seed).weights(), path)
        if refused:
            with pytest.raises(UserError, match=r"holds features of another backbone .*weights "):
                features.open_features(config, run)
        else:
            features.open_features(config, run)


def test_a_network_that_is_trained_is_looked_at_too(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path)
    for settings, message in (
        ({"name": "levit_128s", "resolution": 40}, "cannot take images of student.resolution=40"),
        ({"name": "resnt18"}, "is neither preact_resnet10 nor preact_resnet18 nor a timm model"),
        ({"name": "vit_tiny_patch16_224", "batch_norm": "frozen"}, "batch_norm=frozen: vit_tiny.* has no batch norm"),
    ):
        with pytest.raises(UserError, match=message):
            features.open_features(frozen(tmp_path, frozen=False, **settings), run)
    features.open_features(Config(), run)
    assert not run.exists("features")


def _names(run: RunFolder) -> list[str]:
    return [path.removeprefix(f"{run.features.path}/") for path in run.features.files(".parquet")]
