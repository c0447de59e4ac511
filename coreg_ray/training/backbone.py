"""The frozen network behind small students: a timm model, or the image encoder of the annotator itself.

Its weights lie beside the features that it made, in the run folder and in the model that is taken home, so that nobody
fetches them twice or finds others there.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from coreg_ray.config.student import ANNOTATOR
from coreg_ray.errors import UserError
from coreg_ray.images.decode import Fit
from coreg_ray.pure.rng import stream
from coreg_ray.run.features import BackboneCard
from coreg_ray.training.timm_models import normalisation, timm_encoder

if TYPE_CHECKING:
    from coreg_ray.config import AnnotatorConfig, StudentConfig
    from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

WEIGHTS = "backbone.safetensors"
_REMEDY = "remove that folder, and the same command makes its features anew"


class Backbone(nn.Module):
    """A network that stays as it is, with its own normalisation inside; always in evaluation mode.

    Attributes:
        card: what it is. pixel_mean, pixel_std: (3,), in 0..255.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, encoder: nn.Module, card: BackboneCard) -> None:
        super().__init__()
        self.encoder, self.card = encoder, card
        self.register_buffer("pixel_mean", 255 * torch.tensor(card.mean), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(card.std), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Backbone:
        """Nothing: it never trains."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 or float in 0..255 -> features (B, F) float32; unit vectors of the annotator's encoder."""
        features = self.encoder((pixels.float() - self.pixel_mean.view(3, 1, 1)) / self.pixel_std.view(3, 1, 1))
        features = features[0] if isinstance(features, tuple) else features  # some of open_clip's say more
        return F.normalize(features.float(), dim=-1) if self.card.name == ANNOTATOR else features.float()

    def weights(self) -> dict[str, Tensor]:
        """Its weights and buffers, on the host."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.encoder.state_dict().items()}


def timm_backbone(config: StudentConfig, seed: int) -> Backbone:
    """The timm model that a student section names, with its weights; without any they are random, drawn by the seed.

    Raises:
        UserError: as `timm_encoder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "backbone"))
        encoder, features = timm_encoder(config)
    if not config.pretrained:
        log.warning(
            "student.frozen without student.pretrained: the features are those of a random %s; give `hub` or a file",
            config.name,
        )
    mean, deviation = (values / 255 for values in normalisation(encoder))
    card = BackboneCard(config.name, config.resolution, features, mean.tolist(), deviation.tolist(), digest_of(encoder))
    return Backbone(encoder, card)


def annotator_backbone(config: AnnotatorConfig) -> Backbone:
    """The image encoder of a CLIP annotator; loads the whole model.

    Raises:
        UserError: it cannot be loaded, or its images are not square.
    """
    import open_clip

    from coreg_ray import embedded
    from coreg_ray.annotation.clip import load_model

    model = load_model(config.model, config.pretrained)
    if model.fit.height != model.fit.width:
        raise UserError(
            f"student.name=annotator: the images of {config.model} are {model.fit.width} x {model.fit.height} pixels, "
            "those of students are square; name a timm model with student.frozen true"
        )
    known_as = embedded.MODEL_NAME if config.model == "embedded" else config.model
    architecture = open_clip.get_model_config(Path(known_as).stem if known_as.endswith(".json") else known_as)
    encoder: Any = model.network.visual
    tower = {
        "embed_dim": architecture["embed_dim"],
        "vision_cfg": {**architecture["vision_cfg"], "timm_model_pretrained": False},
        "quick_gelu": any(type(module).__name__ == "QuickGELU" for module in encoder.modules()),
    }
    fit = None if model.fit == Fit.square(model.fit.height) else asdict(model.fit)
    card = BackboneCard(
        ANNOTATOR, model.fit.height, int(architecture["embed_dim"]), list(model.mean), list(model.std),
        digest_of(encoder), tower, fit,
    )  # fmt: skip
    return Backbone(encoder, card)


def built(card: BackboneCard, weights: dict[str, Tensor]) -> Backbone:
    """The backbone of a card with these weights; nothing is fetched.

    Raises:
        UserError: it is an annotator's, and open_clip is not installed, or none that knows it.
        RuntimeError: the weights do not fit.
    """
    encoder = _tower(card.tower or {}) if card.name == ANNOTATOR else _timm(card)
    encoder.load_state_dict(weights)
    return Backbone(encoder, card)


def write_backbone(folder: Folder, backbone: Backbone) -> None:
    """Put its weights into a run's `features/`."""
    folder.write(WEIGHTS, save_tensors(backbone.weights()))


def read_backbone(folder: Folder, card: BackboneCard) -> Backbone:
    """The backbone whose weights lie in a run's `features/`.

    Raises:
        UserError: they do not lie there, or others than its card says.
    """
    try:
        backbone = built(card, load_tensors(folder.read(WEIGHTS)))
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder.path}/{WEIGHTS} cannot be read ({error}); {_REMEDY}") from error
    if digest_of(backbone.encoder) != card.weights:
        raise UserError(f"{folder.path}/{WEIGHTS} holds other weights than the features were made with; {_REMEDY}")
    return backbone


def digest_of(encoder: nn.Module) -> str:
    """32 hex digits over names and values of all weights and buffers."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def given_by(config: StudentConfig, seed: int) -> str:
    """What names a timm backbone's weights without loading them; a local file is known by its content.

    Raises:
        UserError: there is no such file.
    """
    if not config.pretrained:
        return f"{config.name} {config.resolution} random {seed}"
    if config.pretrained == "hub":
        return f"{config.name} {config.resolution} hub"
    try:
        content = Path(config.pretrained).read_bytes()
    except OSError as error:
        raise UserError(
            f"student.pretrained={config.pretrained} is no file; give `hub` or a .safetensors or .pt file"
        ) from error
    return f"{config.name} {config.resolution} {blake2b(content, digest_size=16).hexdigest()}"


def _timm(card: BackboneCard) -> nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        try:
            return timm.create_model(card.name, img_size=card.resolution, num_classes=0)
        except TypeError:
            return timm.create_model(card.name, num_classes=0)


def _tower(tower: dict[str, Any]) -> nn.Module:
    try:
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
    except ImportError as error:
        raise UserError(
            f"this model's backbone is its annotator's image encoder, which open_clip builds ({error}); "
            "pip install open_clip_torch"
        ) from error
    known = CLIPVisionCfg.__dataclass_fields__
    settings = {name: value for name, value in tower["vision_cfg"].items() if name in known}
    with torch.random.fork_rng(devices=[]):
        return _build_vision_tower(int(tower["embed_dim"]), CLIPVisionCfg(**settings), bool(tower["quick_gelu"]))
