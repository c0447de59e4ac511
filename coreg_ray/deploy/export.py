"""From a finished run to what a user takes home: `model/` in the run folder.

model/
    model.json, model.safetensors   see model.py
    model.onnx, model.pt2           the same without this package (extra `onnx`; `export.program`)
    model-int8.onnx                 in eight bits, where it answers alike and faster (int8.py)
    README.md                       the model card, for people

What else lies there is a person's, and stays (own_files.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreg_ray import metrics
from coreg_ray.config import Config, ExportConfig
from coreg_ray.deploy import onnx
from coreg_ray.deploy.calibration import fit_temperature
from coreg_ray.deploy.int8 import FILE as INT8
from coreg_ray.deploy.int8 import quantized
from coreg_ray.deploy.model import Model
from coreg_ray.deploy.model_card import model_card
from coreg_ray.deploy.own_files import README
from coreg_ray.deploy.predictions import Pair
from coreg_ray.deploy.threshold import Choice
from coreg_ray.deploy.threshold import choose as choose_threshold
from coreg_ray.errors import UserError
from coreg_ray.metrics import NETWORKS
from coreg_ray.run.folder import RunFolder, versions
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import without_credentials
from coreg_ray.training.backbone import Backbone, read_backbone
from coreg_ray.training.sample import Sample, Samples, read_sample

log = logging.getLogger(__name__)

FORMS = ("model.onnx", "model-int8.onnx", "model.pt2")  # what an artifact may have besides weights and cards
ASKED_IMAGES = 2048  # pool images that decide which network is deployed, and its temperature
ASK_S = 20.0  # time to ask about them; only large networks without a GPU get less far


@dataclass(frozen=True)
class Forms:
    """A model's further forms: files by name, figures by name, and what people should know about them."""

    files: dict[str, bytes]
    figures: dict[str, Any]
    remarks: list[str]


@dataclass(frozen=True)
class Draft:
    """A model in all its forms that lacks what purified labels say of it, and the seconds that it took."""

    model: Model
    pair: Pair
    forms: Forms
    settings: ExportConfig
    seconds: float


def draft(run: RunFolder, samples: Samples | None = None, deployed: tuple[str, ...] = NETWORKS) -> Draft:
    """The model of the newest whole checkpoint, as the run's `config.yaml` asks.

    Nothing is written and purified labels are not needed, so they may be made at the same time.

    Args:
        samples: of this run, where they are read already. deployed: the networks that may be taken home, which the
            run's method names.

    Raises:
        UserError: the run has no checkpoint yet, or `export.onnx` is asked for without the extra.
    """
    started = time.monotonic()
    pair = Pair.of(run)
    if pair is None:
        raise UserError(f"{run.path} has no whole checkpoint, so there is nothing to export; train first")
    backbone = _backbone(run, pair)
    settings = (run.read_config() or Config()).export
    samples = samples or Samples(run, pair.student.resolution, len(pair.class_names))
    pool = samples.of("pool", ASKED_IMAGES)
    chosen, temperature = choose(pair, settings, pool, deployed)
    networks = nn.ModuleDict({name: getattr(pair, name) for name in chosen}).eval()
    model = Model(pair.class_names, pair.student, networks, temperature, backbone=backbone)
    made = forms(model, settings, pool, samples.of("test", ASKED_IMAGES))
    return Draft(model, pair, made, settings, time.monotonic() - started)


def complete(given: Draft, run: RunFolder) -> None:
    """Write `model/`: a draft, when it may abstain by the run's purified labels, and a card that says what they say."""
    started = time.monotonic()
    model, made, abstain = given.model, given.forms, given.settings.abstain
    rule = _abstention(run, given.pair, model, abstain)
    model.abstain = rule.rule if rule else None
    run.update_metrics({**made.figures, **(rule.metrics() if rule else {})}, stale=("int8/", "abstain/"))
    model.provenance = provenance(run, given.pair.checkpoint)
    remarks = [*made.remarks, *([rule.words(abstain)] if rule and abstain else [])]
    for remark in remarks:
        log.info("model: %s", remark)
    save(model, run.model, made.files, remarks)
    chosen = " and ".join(model.networks)
    log.info("model: network %s, temperature %.2f, in %s", chosen, model.temperature, run.model.path)
    run.update_metrics({metrics.EXPORT_S: given.seconds + time.monotonic() - started})


def _abstention(run: RunFolder, pair: Pair, model: Model, wish: float | None) -> Choice | None:
    """The rule by which the model may abstain; None where nobody wants one."""
    if wish is None:
        return None
    share = (run.read_config() or Config()).source.holdout
    side, classes = pair.student.resolution, model.classes
    sample = read_sample(run, "pool", side, len(classes), ASKED_IMAGES, share) if share else None
    if sample is None:
        return Choice(None, "no image was held out (source.holdout)")
    logits, _ = pair.look(sample.inputs, ASK_S)  # (2, m, K)
    chosen = [NETWORKS.index(name) for name in model.networks]
    probabilities = (logits[chosen].mean(dim=0) / model.temperature).softmax(dim=1)
    return choose_threshold(run, sample.first(len(probabilities)), probabilities, classes, wish)


def _backbone(run: RunFolder, pair: Pair) -> Backbone | None:
    """What stands before both networks where they are heads. Raises UserError: its weights are not there any more."""
    if not pair.student.on_features:
        return None
    features = run.read_features_manifest()
    if features is None:
        raise UserError(f"{run.path} has no features/ any more, where the backbone's weights lie; train again")
    return read_backbone(run.features, features.backbone)


def forms(model: Model, settings: ExportConfig, pool: Sample | None = None, test: Sample | None = None) -> Forms:
    """The forms that are asked for; says in the model what ONNX it comes with.

    Args:
        pool: images to make eight bits from; without any there are none. test: labelled ones, to compare on.

    Raises:
        UserError: `export.onnx` or `export.int8` needs the extra.
    """
    files, figures, remarks = dict[str, bytes](), dict[str, Any](), list[str]()
    wants_onnx = onnx.onnx_is_installed() if settings.onnx is None else settings.onnx
    if wants_onnx:
        try:
            files["model.onnx"] = onnx.to_onnx(model)
        except Exception as error:  # exporters raise anything; who has not asked for this form loses nothing else by it
            if settings.onnx:
                raise
            wants_onnx = False
            remarks.append(
                f"no ONNX: the installed torch, onnx and onnxscript cannot make it ({type(error).__name__}); "
                "--export.onnx true shows why"
            )
    if wants_onnx:
        model.onnx = {"opset": onnx.opset_of(files["model.onnx"]), "input": ["batch", 3, *(2 * [model.resolution])]}
    if pool is not None and wants_onnx and settings.int8 is not False:
        fits = pool.pixels.shape[-1] == model.resolution
        labelled = None if test is None or not fits else test.where((test.labels >= 0).numpy())
        told = (labelled.pixels, labelled.labels) if labelled is not None else None
        small = quantized(files["model.onnx"], pool.pixels if fits else None, told)
        figures, remarks = small.figures, [small.words()]
        if small.content is not None:
            files[INT8] = small.content
    elif settings.int8 and not wants_onnx:
        raise UserError("export.int8=true is made from model.onnx; add export.onnx true")
    if settings.program:
        files["model.pt2"] = onnx.to_program(model)
    return Forms(files, figures, remarks)


def write(model: Model, folder: Folder, settings: ExportConfig) -> None:
    """All files of an artifact, for those of an earlier one. Raises UserError: `export.onnx` needs the extra."""
    made = forms(model, settings)
    save(model, folder, made.files, made.remarks)


def save(model: Model, folder: Folder, files: dict[str, bytes], remarks: Sequence[str] = ()) -> None:
    """A model and its further forms, for those of an earlier one; `remarks`: what its card says of them besides."""
    model.save(folder, {**files, README: model_card(model, sorted(files), remarks).encode()})


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
