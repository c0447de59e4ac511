"""Encoders of timm by name, with weights of the hub or of a local file that is read without unpickling anything."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from coreg_ray.errors import UserError
from coreg_ray.training.preact_resnets import PREACT_RESNETS

if TYPE_CHECKING:
    from coreg_ray.config import StudentConfig

log = logging.getLogger(__name__)

_WRAPPINGS = ("state_dict", "model")  # under which training programs put weights in their checkpoints


def timm_encoder(config: StudentConfig) -> tuple[nn.Module, int]:
    """A timm model without its classifier, and the number of its features.

    Raises:
        UserError: timm knows no model of that name, its weights cannot be had or are another model's, or it takes no
            RGB images of `student.resolution`.
    """
    import timm

    if not timm.is_model(config.name):
        close = get_close_matches(config.name, [*PREACT_RESNETS, "annotator", *timm.list_models()], n=5)
        raise UserError(
            f"student.name={config.name} is neither {' nor '.join(PREACT_RESNETS)} nor a timm model; "
            + (f"close names: {', '.join(close)}" if close else "see timm.list_models()")
        )
    settings: dict[str, Any] = {"num_classes": 0, "pretrained": config.pretrained == "hub"}
    try:
        try:
            encoder = timm.create_model(config.name, img_size=config.resolution, **settings)  # transformers need it
        except TypeError:
            encoder = timm.create_model(config.name, **settings)
    except Exception as error:  # timm and the hub's client fail in many ways
        if config.pretrained != "hub":
            raise _unfit(config, error) from error
        raise UserError(
            f"student.pretrained=hub: the weights of {config.name} cannot be had ({error}); "
            "give a local .safetensors or .pt file, or leave it empty"
        ) from error
    if config.batch_norm == "frozen" and not batch_norms(encoder):
        raise UserError(f"student.batch_norm=frozen: {config.name} has no batch norm; leave it out")
    channels = _trained_on(encoder).get("input_size", (3,))[0]
    if channels != 3:
        raise UserError(f"student.name={config.name} is for images of {channels} channels; name a model for RGB images")
    if config.pretrained not in (None, "hub"):
        load_weights(encoder, Path(config.pretrained))
    return encoder, _features_of(encoder, config)


def normalisation(encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation, (3,) each in 0..255, that a timm model's weights were trained with."""
    known = _trained_on(encoder)
    mean, deviation = known.get("mean", (0.5,) * 3), known.get("std", (0.5,) * 3)
    return 255 * torch.tensor(mean, dtype=torch.float32), 255 * torch.tensor(deviation, dtype=torch.float32)


def batch_norms(encoder: nn.Module) -> list[nn.Module]:
    """Its batch norms, timm's own kinds included."""
    return [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def load_weights(encoder: nn.Module, path: Path) -> None:
    """Local weights into an encoder without unpickling code; the file's classifier is left aside.

    Raises:
        UserError: they cannot be read, are those of another architecture, or are for images that are not RGB.
    """
    if not path.is_file():
        raise UserError(f"student.pretrained={path} is no file; give `hub` or a .safetensors or .pt file")
    try:
        weights = _read(path)
        _refuse_other_channels(encoder, weights, path)
        missing, extra = encoder.load_state_dict(weights, strict=False)
    except UserError:
        raise
    except Exception as error:  # either reader has its own words for a file that holds no weights, or others
        raise UserError(
            f"student.pretrained={path} cannot be loaded ({error}); give weights alone, "
            "of the same architecture at the same student.resolution"
        ) from error
    if missing:
        raise UserError(
            f"student.pretrained={path} lacks {len(missing)} tensors of the model ({missing[0]}, ...); "
            "give weights of the same architecture"
        )
    foreign = _foreign(encoder, extra)
    if foreign:
        raise UserError(
            f"student.pretrained={path} holds {len(foreign)} tensors that the model lacks ({foreign[0]}, ...), so they "
            "are those of a larger one; give weights of the same architecture"
        )
    log.info("weights from %s; not used: %s", path, ", ".join(extra) or "none")


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    for name in _WRAPPINGS:
        if isinstance(weights.get(name), dict):
            weights = weights[name]
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def _refuse_other_channels(encoder: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    for first in _names(_trained_on(encoder).get("first_conv")):
        tensor = weights.get(f"{first}.weight")
        if tensor is not None and tensor.dim() == 4 and tensor.shape[1] != 3:
            colours = "grey" if tensor.shape[1] == 1 else "multispectral"
            raise UserError(
                f"student.pretrained={path} is for {colours} images ({tensor.shape[1]} channels, in {first}.weight); "
                "images are RGB here, grey ones too: give weights for 3 channels"
            )


def _foreign(encoder: nn.Module, extra: list[str]) -> list[str]:
    """Of a file's superfluous tensors those that belong to the body of a model, not to its classifier."""
    body = {name for name, _ in encoder.named_children()}
    heads = tuple(f"{name}." for name in _names(_trained_on(encoder).get("classifier")))
    return [name for name in extra if name.split(".")[0] in body and not name.startswith(heads)]


def _features_of(encoder: nn.Module, config: StudentConfig) -> int:
    """F, seen from what it makes of an image."""
    was_training = encoder.training
    try:
        with torch.no_grad():
            probe = encoder.eval()(torch.zeros(1, 3, config.resolution, config.resolution))
    except Exception as error:  # each model has its own words
        raise _unfit(config, error) from error
    encoder.train(was_training)
    if probe.dim() != 2 or not probe.isfinite().all():
        raise UserError(
            f"student.name={config.name} makes {tuple(probe.shape)} numbers of an image of "
            f"{config.resolution} px, not one row of finite features; name another model or student.resolution"
        )
    return int(probe.shape[1])


def _unfit(config: StudentConfig, error: Exception) -> UserError:
    return UserError(
        f"student.name={config.name} cannot take images of student.resolution={config.resolution} ({error}); choose "
        "the resolution that it was trained with, or another model"
    )


def _trained_on(encoder: nn.Module) -> dict[str, Any]:
    known: Any = getattr(encoder, "pretrained_cfg", None) or {}
    return dict(known)


def _names(given: Any) -> tuple[str, ...]:
    """None, a name or several."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)
