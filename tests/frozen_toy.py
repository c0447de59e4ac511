"""The toy problem as a frozen backbone sees it: features of the images and of views of them, and runs over them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import toy
from torch import nn

from coreg_ray.annotation.parts import parts
from coreg_ray.config import Config, StudentConfig
from coreg_ray.methods import coreg
from coreg_ray.run.features import BackboneCard, FeaturesManifest
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.backbone import Backbone, annotator_backbone, given_by, timm_backbone, write_backbone
from coreg_ray.training.features import copy_part, count_rows, features_of, make_part, manifest_for, stretches
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import no_pixels

FEATURES, VIEWS = 64, 4
STUDENT = StudentConfig(
    name="test_efficientnet", frozen=True, frozen_views=VIEWS, resolution=toy.SIDE, width=4, projection=8,
    precision="float32",
)  # fmt: skip
CARD = BackboneCard("toy", toy.SIDE, FEATURES, [0.2] * 3, [0.2] * 3, "")
MANIFEST = FeaturesManifest(CARD, "toy", VIEWS, seed=0, flip=True, policy="randaugment")


def backbone() -> Backbone:
    """One convolution with random weights, and the largest of what it sees anywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        convolution = nn.Conv2d(3, FEATURES, 7)
    return Backbone(nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()), CARD)


def frozen(data: toy.Toy) -> toy.Toy:
    """The same problem by its features alone."""
    network, rows, test, held_out = backbone(), data.rows, data.scored.test, data.scored.held_out
    assert test is not None
    assert held_out is not None

    def seen(images: Any, views: bool) -> dict[str, Any]:
        features = features_of(images.pixels, images.numbers, network, MANIFEST, views)
        return {"features": features, "pixels": no_pixels(len(images))}

    scored = replace(
        data.scored, test=replace(test, **seen(test, False)), held_out=replace(held_out, **seen(held_out, True))
    )
    return replace(data, rows=replace(rows, **seen(rows, True)), scored=scored)


def history(mesh: Mesh, settings: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of a whole training run."""
    return toy.history(frozen(toy.toy(**data)), mesh, student=STUDENT, **settings)


def world_of_two(settings: dict[str, Any], data: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    """The metrics of a whole training run, whose checkpoints lie in `folder`."""
    mesh, problem = Mesh(), frozen(toy.toy(**data))
    state, rows = toy.start(problem, mesh, student=STUDENT, **settings)
    taken = []
    for epoch in fit(state, rows, problem.scored, mesh, coreg):
        checkpoint.save(state, Folder.at(folder), "toy", mesh)
        taken.append(epoch.metrics)
    return taken


def resumed(settings: dict[str, Any], data: dict[str, Any], saved: Folder) -> list[dict[str, Any]]:
    """The metrics of a training run that goes on from a checkpoint, those before it included."""
    problem = frozen(toy.toy(**data))
    state, rows = toy.start(problem, Mesh(), student=STUDENT, **settings)
    checkpoint.resume(state, saved, Mesh())
    list(fit(state, rows, problem.scored, Mesh(), coreg))
    return state.history


def make_features(config: Config, run: RunFolder, splits: tuple[Split, ...] = ("pool", "test")) -> FeaturesManifest:
    """What `cluster/features.py` does, in this process."""
    network = timm_backbone(config.student, config.seed)
    manifest = manifest_for(config, network.card, given_by(config.student, config.seed))
    write_backbone(run.features, network)
    run.write_features_manifest(manifest)
    for split in splits:
        rows, features = run.rows(split), run.own("features", split)
        counts = dict(count_rows(name, rows) for name in rows.entries() if name.endswith(".parquet"))
        for stretch in stretches(counts, features):
            make_part(stretch, rows, features, network, manifest, split == "pool")
    return manifest


def prepared(output: Path, data: toy.Toy, **sections: Any) -> Config:
    """A run folder as annotation and the backbone leave it, and the configuration to train on it."""
    config = toy.prepare_run(output, data, **({"student": STUDENT} | sections))
    make_features(config, RunFolder.at(output))
    return config


def copy_embeddings(config: Config, run: RunFolder) -> FeaturesManifest:
    """The annotator's embeddings as features, as `cluster/features.py` takes them over."""
    network = annotator_backbone(config.annotator)
    (folder,) = run.read_used("pool")
    manifest = manifest_for(config, network.card, folder.name)
    write_backbone(run.features, network)
    run.write_features_manifest(manifest)
    for split in ("pool", "test"):
        (folder,) = run.read_used(split)
        for part in parts(folder):
            copy_part(part.name, folder, run.own("features", split))
    return manifest
