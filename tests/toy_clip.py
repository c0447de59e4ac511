"""A tiny open_clip model with random weights, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

DESIGN = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_toy_clip(folder: Path, seed: int = 0, **design: Any) -> dict[str, Any]:
    """Write the model's configuration and weights; returns the annotator settings that name them."""
    import open_clip

    name = folder / f"toy-{seed}.json"
    name.write_text(json.dumps({**DESIGN, **design}))
    open_clip.add_model_config(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(name.stem)
    save_file(model.state_dict(), name.with_suffix(".safetensors"))
    return {"kind": "clip", "model": str(name), "pretrained": str(name.with_suffix(".safetensors"))}
