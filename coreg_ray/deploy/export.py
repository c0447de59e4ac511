"""From a finished run to what a user takes home: `model/` in the run folder.

model/
    model.json, model.safetensors   see model.py
    model.onnx, model.pt2           the same without this package (extra `onnx`; `export.program`)
    README.md                       the model card, for people
"""

from __future__ import annotations

import logging
import platform
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

import coreg_ray
from coreg_ray.config import Config, ExportConfig
from coreg_ray.deploy import onnx as portable
from coreg_ray.deploy.calibration import fit_temperature
from coreg_ray.deploy.model import CARD, WEIGHTS, Model
from coreg_ray.deploy.model_card import model_card
from coreg_ray.deploy.predictions import Pair
from coreg_ray.errors import UserError
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import without_credentials
from coreg_ray.training.sample import Sample, read_sample

log = logging.getLogger(__name__)

ASKED_IMAGES = 2048  # pool images that decide which network is deployed, and its temperature
ASK_S = 20.0  # time to ask about them; only large networks without a GPU get less far


def export(output: Folder) -> None:
    """Write `model/` from the newest whole checkpoint of the run folder, as its `config.yaml` asks.

    Raises:
        UserError: the run has no checkpoint yet, or `export.onnx` is asked for without the extra.
    """
    pair = Pair.of(output)
    if pair is None:
        raise UserError(f"{output.path} has no whole checkpoint, so there is nothing to export; train first")
    settings = (read_config(output) or Config()).export
    sample = read_sample(output, "pool", pair.student.resolution, len(pair.classes), ASKED_IMAGES)
    chosen, temperature = choose(pair, settings, sample)
    networks = nn.ModuleDict({name: getattr(pair, name) for name in chosen}).eval()
    model = Model(pair.classes, pair.student, networks, temperature, provenance(output, pair.said))
    write(model, output / "model", settings)
    log.info("model: network %s, temperature %.2f, in %s/model", " and ".join(chosen), temperature, output.path)


def read_config(output: Folder) -> Config | None:
    """The `config.yaml` of a run folder; None where there is none. Raises UserError: another version wrote it."""
    if not output.exists("config.yaml"):
        return None
    try:
        return Config.model_validate(yaml.safe_load(output.read("config.yaml")))
    except (ValidationError, yaml.YAMLError) as error:
        raise UserError(
            f"{output.path}/config.yaml is not for this version of coreg-ray ({error}); use the version that wrote it"
        ) from error


def write(model: Model, folder: Folder, settings: ExportConfig) -> None:
    """All files of an artifact. Raises UserError: `export.onnx` is asked for without the extra."""
    wants_onnx = portable.onnx_is_installed() if settings.onnx is None else settings.onnx
    extra = {"model.onnx": portable.to_onnx(model)} if wants_onnx else {}
    if settings.program:
        extra["model.pt2"] = portable.to_program(model)
    for stale in set(folder.entries()) - {*extra, "README.md", CARD, WEIGHTS}:
        folder.delete(stale)
    for name, content in extra.items():
        folder.write(name, content)
    folder.write("README.md", model_card(model, sorted(extra)))
    model.save(folder)


def choose(pair: Pair, settings: ExportConfig, sample: Sample | None) -> tuple[list[str], float]:
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
        return names or ["a"], 1.0
    logits, _ = pair.look(known.pixels, ASK_S)  # (2, m, K)
    known = known.where(np.arange(len(known)) < logits.shape[1])
    if names is None:
        sound = [float(known.candidates.gather(1, own.argmax(1)[:, None]).double().mean()) for own in logits]
        names = ["b"] if sound[1] > sound[0] else ["a"]
    if not settings.calibrate:
        return names, 1.0
    own, other = (logits.mean(0),) * 2 if len(names) == 2 else (logits[0], logits[1])
    if names == ["b"]:
        own, other = other, own
    return names, fit_temperature(own, purified_labels(other, known.candidates))


def purified_labels(logits: Tensor, candidates: Tensor) -> Tensor:
    """(M,) the likeliest candidate: logits (M, K), candidates (M, K) bool, none empty."""
    return logits.masked_fill(~candidates, -torch.inf).argmax(dim=1)


def provenance(output: Folder, said: dict[str, Any]) -> dict[str, Any]:
    """Where a model comes from: the run's and the annotation's fingerprints, settings, figures and versions.

    Args:
        said: the checkpoint's description.
    """
    annotated = output.read_json("candidates/manifest.json") if output.exists("candidates/manifest.json") else {}
    metrics = output.read_json("metrics.json") if output.exists("metrics.json") else {}
    settings = yaml.safe_load(output.read("config.yaml")) if output.exists("config.yaml") else {}
    last = said["history"][-1] if said["history"] else {}
    scores = {name: value for name, value in last.items() if name.startswith(("test/", "criterion/"))}
    return {
        "epoch": said["epoch"],
        "fingerprint": said["fingerprint"],
        "annotation_fingerprint": annotated.get("fingerprint"),
        "names": annotated.get("names"),  # of every class all names that labels may use
        "configuration": without_credentials(settings),
        "metrics": metrics | scores,
        "versions": {
            "coreg_ray": coreg_ray.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
