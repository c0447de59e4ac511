"""The embedded default: a real image set and a tiny vision-language model, so that everything runs offline."""

from __future__ import annotations

from pathlib import Path

MODEL_NAME = "coreg-tiny-clip"  # what open_clip calls the model once its configuration is added


def model_config_path() -> Path:
    """The open_clip model configuration, for `open_clip.add_model_config`."""
    return Path(__file__).with_name(f"{MODEL_NAME}.json")


def weights_path() -> Path:
    """The weights (safetensors, float16), for the `pretrained` argument of open_clip's factory."""
    return Path(__file__).with_name(f"{MODEL_NAME}.safetensors")
