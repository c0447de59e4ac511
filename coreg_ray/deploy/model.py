"""The trained model as a user holds it: read from its folder, it classifies images of any kind.

model/
    model.json          format, classes, resolution, normalisation, architecture, temperature, provenance, files
    model.safetensors   weights of one or both networks, keys `a.*` and `b.*`; the projection head is left behind

Format 2 has `backbone` too: a frozen network that sees the image first, keys `backbone.*`; `a` and `b` are heads then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from coreg_ray.config import StudentConfig
from coreg_ray.deploy.abstain import UNKNOWN, Abstention, abstention_of, threshold_of
from coreg_ray.deploy.hub import fetched, is_on_hub
from coreg_ray.deploy.own_files import CARD, replace_files
from coreg_ray.errors import UserError
from coreg_ray.images.coerce import pixel_batches
from coreg_ray.images.decode import Fit
from coreg_ray.run.features import BackboneCard
from coreg_ray.run.records import from_json
from coreg_ray.run.storage import Folder
from coreg_ray.training.backbone import Backbone, built
from coreg_ray.training.networks import Student, build_student

FORMAT, WITHOUT_BACKBONE = 2, 1  # of models, and of those that earlier versions read too
WEIGHTS = "model.safetensors"


class Prediction(NamedTuple):
    """What a model says about N images.

    Attributes:
        classes: N class names, the most probable one of each image; `unknown` where the model abstains.
        probabilities: (N, K) float32, in the order of `Model.classes`.
    """

    classes: list[str]
    probabilities: NDArray[np.float32]


@dataclass
class Model:
    """One network, or both as an ensemble, ready to predict.

    Attributes:
        classes: K class names.
        student: architecture and resolution.
        networks: by name (`a`, `b`), in evaluation mode.
        temperature: logits are divided by it before the softmax.
        provenance: where the model comes from, for people; nothing reads it back.
        backbone: what sees the image where the networks are heads; else None.
        abstain: below which probability it says nothing where it is asked to; None: nobody knows.
        onnx: of `model.onnx`, where there is one: `opset`, and `input`, the shape of `images`.
    """

    classes: list[str]
    student: StudentConfig
    networks: nn.ModuleDict
    temperature: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)
    backbone: Backbone | None = None
    abstain: Abstention | None = None
    onnx: dict[str, Any] | None = None

    @classmethod
    def load(cls, folder: str | Path | Folder, device: str = "cpu") -> Model:
        """The model in `folder`, a path, a URI or `hf://ORG/NAME`. Nothing in it is executed.

        Raises:
            UserError: the folder holds no model, a damaged one, or one of a newer format.
        """
        place = folder if isinstance(folder, Folder) else model_folder(folder)
        card = read_card(place)
        try:
            weights = place.read(WEIGHTS)
        except FileNotFoundError as error:
            raise UserError(f"{place.path} lacks {WEIGHTS}; copy the whole folder") from error
        try:
            return cls.build(card, weights, device)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{place.path} holds a damaged model ({_short(error)}); export it again") from error

    @classmethod
    def build(cls, card: dict[str, Any], weights: bytes, device: str = "cpu") -> Model:
        """From the content of `model.json` and `model.safetensors`, as another machine may have sent it."""
        student = StudentConfig.model_validate(card["student"])
        class_names, tensors = list(card["classes"]), load_tensors(weights)
        networks = nn.ModuleDict(
            {name: _network(student, len(class_names), tensors, name) for name in card["networks"]}
        )
        backbone = None
        if "backbone" in card:
            backbone = built(from_json(BackboneCard, card["backbone"]), _below(tensors, "backbone")).to(device)
        provenance = card.get("provenance", {})
        model = cls(class_names, student, networks.to(device).eval(), float(card["temperature"]), provenance, backbone)
        model.abstain, model.onnx = abstention_of(card), card.get("onnx")
        return model

    def save(self, folder: Folder, further: Mapping[str, bytes] | None = None) -> None:
        """Write the model; the card comes last, so that a folder with it is whole. A person's own files there stay.

        Args:
            further: contents of other files of the artifact, by name.
        """
        weights = {
            f"{name}.{key}": tensor.detach().cpu().contiguous()
            for name, network in self.networks.items()
            for key, tensor in network.state_dict().items()
            if not key.startswith("projector.")
        }
        if self.backbone is not None:
            weights |= {f"backbone.{key}": tensor for key, tensor in self.backbone.weights().items()}
        replace_files(folder, {**(further or {}), WEIGHTS: save_tensors(weights)}, self.card())

    def card(self) -> dict[str, Any]:
        """What `model.json` says: all that another program needs to use the weights, and the provenance."""
        first: Any = self.backbone or next(iter(self.networks.values()))
        names = ("name", "width", "resolution", *(("frozen",) if self.backbone else ()))
        backbone = {"backbone": asdict(self.backbone.card)} if self.backbone else {}
        return {
            "format": FORMAT if self.backbone else WITHOUT_BACKBONE,
            "classes": self.classes,
            "resolution": self.resolution,
            "mean": (first.pixel_mean / 255).tolist(),
            "std": (first.pixel_std / 255).tolist(),
            "student": {name: getattr(self.student, name) for name in names},
            **backbone,
            "networks": list(self.networks),
            "temperature": self.temperature,
            **({"abstain": asdict(self.abstain)} if self.abstain else {}),
            **({"onnx": self.onnx} if self.onnx else {}),
            "provenance": self.provenance,
        }

    @property
    def resolution(self) -> int:
        """S: images are brought to S x S pixels."""
        return self.backbone.card.resolution if self.backbone else self.student.resolution

    @property
    def fit(self) -> Fit:
        """How images are brought to that size."""
        return fit_of(self.card())

    @property
    def device(self) -> torch.device:
        return next(self.networks.parameters()).device

    def predict(self, images: Any, batch_size: int = 256, abstain: bool = False) -> Prediction:
        """Classify one image or many.

        Args:
            images: a path, a Pillow image, encoded bytes, an array (H, W), (H, W, C) or (N, H, W, C), a tensor
                (C, H, W) or (N, C, H, W), or any iterable of these. Integers are 0..255, floats 0..1. Any size: the
                shorter side is brought to the model's resolution and the centre is taken.
            batch_size: images that pass through the network at a time.
            abstain: whether images whose best class is less probable than `Model.abstain` says are `unknown`.

        Raises:
            ValueError: an image cannot be read; the message names it.
            UserError: the model has no threshold to abstain by.
        """
        least = threshold_of(self.abstain, self.classes) if abstain else 0.0
        parts = [self.probabilities(pixels) for pixels in pixel_batches(images, self.fit, batch_size)]
        probabilities = torch.cat(parts).cpu().numpy() if parts else np.empty((0, len(self.classes)), np.float32)
        best = zip(probabilities.argmax(axis=1), probabilities.max(axis=1, initial=0), strict=True)
        names = [self.classes[number] if probability >= least else UNKNOWN for number, probability in best]
        return Prediction(names, probabilities)

    def top(self, path: str | Path, count: int) -> list[tuple[str, float]]:
        """The most probable classes of one image file, best first. Raises UserError: it cannot be read."""
        try:
            probabilities = self.predict(path).probabilities[0]
        except ValueError as error:
            raise UserError(str(error)) from error
        return [
            (self.classes[number], float(probabilities[number])) for number in probabilities.argsort()[::-1][:count]
        ]

    def probabilities(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 or float in 0..255 -> (B, K) calibrated probabilities on the model's device."""
        return torch.softmax(self.logits(pixels) / self.temperature, dim=1)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 or float in 0..255 -> (B, K), the mean over the networks (METHOD: section 3, step 6)."""
        inputs = pixels.to(self.device, memory_format=torch.channels_last)
        inputs = self.backbone(inputs) if self.backbone else inputs
        logits = [network.classify(inputs) for network in self.networks.values()]  # type: ignore[operator]
        return torch.stack(logits).mean(dim=0)


def model_folder(place: str | Path) -> Folder:
    """The folder of a model: a path, a URI, or on the Hugging Face Hub, from where its files are fetched.

    Raises:
        UserError: it cannot be reached.
    """
    return fetched(place, (CARD, WEIGHTS)) if is_on_hub(place) else Folder.at(place)


def read_card(folder: Folder) -> dict[str, Any]:
    """The content of `model.json`. Raises UserError: there is none, it is damaged, or of a newer format."""
    try:
        card = folder.read_json(CARD)
    except FileNotFoundError as error:
        inside = f"; did you mean {folder.path}/model?" if folder.exists(f"model/{CARD}") else ""
        raise UserError(f"{folder.path} holds no {CARD}, so it is no model{inside or '; give RUN/model'}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{folder.path}/{CARD} cannot be read ({_short(error)}); give the model/ folder of a run"
        ) from error
    if not isinstance(card, dict) or not isinstance(card.get("format"), int):
        raise UserError(f"{folder.path}/{CARD} names no format, so it is none of ours; give the model/ folder of a run")
    if card["format"] > FORMAT:
        raise UserError(
            f"{folder.path} has format {card['format']}, this version reads up to {FORMAT}; upgrade coreg-ray"
        )
    return card


def fit_of(card: dict[str, Any]) -> Fit:
    """How images are brought to the size that a model of this card takes."""
    backbone = card.get("backbone") or {}
    return Fit(**backbone["fit"]) if backbone.get("fit") else Fit.square(int(card["resolution"]))


def new_network(student: StudentConfig, num_classes: int, features: int | None = None) -> Student:
    """A network without its projection head, which only training needs; leaves torch's generator as it was.

    Args:
        features: F of a head.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_student(student.model_copy(update={"pretrained": None}), num_classes, features)
    network.projector = nn.Sequential()
    return network


def _network(student: StudentConfig, num_classes: int, weights: dict[str, Tensor], name: str) -> Student:
    own = _below(weights, name)
    network = new_network(student, num_classes, inputs_of(own))
    network.load_state_dict(own)
    return network


def inputs_of(weights: Mapping[str, Tensor]) -> int | None:
    """F of a head by its weights; None of a network that takes pixels."""
    return len(weights["feature_mean"]) if "feature_mean" in weights else None


def _below(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in weights.items() if key.startswith(f"{name}.")}


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
