"""From a finished run to what a user takes home: `model/` in the run folder.

model/
    model.json, model.safetensors   see model.py
    model.onnx, model.pt2           the same without this package (extra `onnx`; `export.program`)
    README.md                       the model card, for people

What else lies there is a person's, and stays (own_files.py).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreg_ray import metrics
from coreg_ray.config import Config, ExportConfig
from coreg_ray.deploy import onnx
from coreg_ray.deploy.calibration import fit_temperature
from coreg_ray.deploy.model import Model
from coreg_ray.deploy.model_card import model_card
from coreg_ray.deploy.own_files import README
from coreg_ray.deploy.predictions import Pair
from coreg_ray.errors import UserError
from coreg_ray.metrics import NETWORKS
from coreg_ray.run.folder import RunFolder, versions
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import without_credentials
from coreg_ray.training.backbone import Backbone, read_backbone
from coreg_ray.training.sample import Sample, Samples

log = logging.getLogger(__name__)

FORMS = ("model.onnx", "model-int8.onnx", "model.pt2")  # what an artifact may have besides weights and cards
ASKED_IMAGES = 2048  # pool images that decide which network is deployed, and its temperature
ASK_S = 20.0  # time to ask about them; only large networks without a GPU get less far


def export(run: RunFolder, samples: Samples | None = None, deployed: tuple[str, ...] = NETWORKS) -> None:
    """Write `model/` from the newest whole checkpoint of the run folder, as its `config.yaml` asks.

    Args:
        samples: of this run, where they are read already. deployed: the networks that may be taken home, which the
            run's method names.

    Raises:
        UserError: the run has no checkpoint yet, or `export.onnx` is asked for without the extra.
    """
    pair = Pair.of(run)
    if pair is None:
        raise UserError(f"{run.path} has no whole checkpoint, so there is nothing to export; train first")
    backbone = _backbone(run, pair)
    settings = (run.read_config() or Config()).export
    samples = samples or Samples(run, pair.student.resolution, len(pair.class_names))
    chosen, temperature = choose(pair, settings, samples.of("pool", ASKED_IMAGES), deployed)
    networks = nn.ModuleDict({name: getattr(pair, name) for name in chosen}).eval()
    came_from = provenance(run, pair.checkpoint)
    model = Model(pair.class_names, pair.student, networks, temperature, came_from, backbone)
    write(model, run.model, settings)
    log.info("model: network %s, temperature %.2f, in %s", " and ".join(chosen), temperature, run.model.path)


def _backbone(run: RunFolder, pair: Pair) -> Backbone | None:
    """What stands before both networks where they are heads. Raises UserError: its weights are not there any more."""
    if not pair.student.on_features:
        return None
    features = run.read_features_manifest()
    if features is None:
        raise UserError(f"{run.path} has no features/ any more, where the backbone's weights lie; train again")
    return read_backbone(run.features, features.backbone)


def write(model: Model, folder: Folder, settings: ExportConfig) -> None:
    """All files of an artifact, for those of an earlier one. Raises UserError: `export.onnx` needs the extra."""
    wants_onnx = onnx.onnx_is_installed() if settings.onnx is None else settings.onnx
    extra = {"model.onnx": onnx.to_onnx(model)} if wants_onnx else {}
    if settings.program:
        extra["model.pt2"] = onnx.to_program(model)
    model.save(folder, {**extra, README: model_card(model, sorted(extra)).encode()})


def choose(
    pair: Pair, settings: ExportConfig, sample: Sample | None, deployed: tuple[str, ...] = NETWORKS
) -> tuple[list[str], float]:
    """Which networks are deployed, and the temperature of their logits.

    Neither needs labels. The better network is the one whose class is more often among the candidates. The temperature
    fits the purified labels: a network's own are the *other's* prediction restricted to S (METHOD: section 3, step 2),
    on all rows. Clean rows alone are the easy ones, which makes it overconfident. Expected calibration error on the
    embedded digits' test images, one run each at accuracy 0.75 / 0.96: 0.30 / 0.19 as trained, 0.07 / 0.06 so, 0.15 /
    0.03 with the clean rows only, 0.04 / 0.02 with the best temperature that labels could find.
    """
    names = {"a": ["a"], "b": ["b"], "ensemble": ["a", "b"]}.get(settings.network)
    known = None if sample is None else sample.where(sample.candidates.any(dim=1).numpy())
    if known is None or not len(known):
        return names or [deployed[0]], 1.0
    logits, _ = pair.look(known.inputs, ASK_S)  # (2, m, K)
    known = known.where(np.arange(len(known)) < logits.shape[1])
    if names is None:
        sound = {
            name: float(known.candidates.gather(1, logits[NETWORKS.index(name)].argmax(1)[:, None]).double().mean())
            for name in deployed
        }
        names = [max(deployed, key=sound.__getitem__)]
    if not settings.calibrate:
        return names, 1.0
    own, other = (logits.mean(0),) * 2 if len(names) == 2 else (logits[0], logits[1])
    if names == ["b"]:
        own, other = other, own
    return names, fit_temperature(own, purified_labels(other, known.candidates))


def purified_labels(logits: Tensor, candidates: Tensor) -> Tensor:
    """(M,) the likeliest candidate: logits (M, K), candidates (M, K) bool, none empty."""
    return logits.masked_fill(~candidates, -torch.inf).argmax(dim=1)


def provenance(run: RunFolder, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Where a model comes from: the run's and the annotation's fingerprints, settings, figures and versions.

    Args:
        checkpoint: what the checkpoint says of itself.
    """
    annotated, config = run.read_candidate_manifest(), run.read_config()
    last = checkpoint["history"][-1] if checkpoint["history"] else {}
    scores = {name: value for name, value in last.items() if name.startswith((metrics.TEST, metrics.CRITERION))}
    return {
        "epoch": checkpoint["epoch"],
        "fingerprint": checkpoint["fingerprint"],
        "annotation_fingerprint": annotated.fingerprint if annotated else None,
        "names": annotated.names if annotated else None,  # of every class all names that labels may use
        "configuration": without_credentials(config.settings()) if config else {},
        "metrics": run.read_metrics() | scores,
        "versions": versions(),
    }
