"""The model in forms that need neither this package nor, for ONNX, torch.

Both take `images`, float32 (B, 3, S, S) in 0..1 with any B, and give `probabilities` (B, K): normalisation, temperature
and, for an ensemble, both networks are inside.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from coreg_ray.errors import UserError
from coreg_ray.pure.rng import generator

if TYPE_CHECKING:
    from coreg_ray.deploy.model import Model

M = TypeVar("M", bound=nn.Module)
_MOST = 2**31 - 1  # images in a batch; torch 2.6 and 2.7 object to a size without a limit
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # largest difference of a probability between PyTorch and the exported model
_CHECKED_IMAGES = 5  # another number than the model is traced with, so a fixed batch size would show


class Deployed(nn.Module):
    """The whole way from images in 0..1 to probabilities as one module on the CPU."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.backbone = _plain(model.backbone) if model.backbone else None
        self.networks = _plain(model.networks)
        self.temperature = model.temperature

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) float32 in 0..1 -> probabilities (B, K)."""
        inputs = images * 255
        inputs = self.backbone(inputs) if self.backbone is not None else inputs
        logits = [network.classify(inputs) for network in self.networks.values()]  # type: ignore[operator]
        return torch.softmax(torch.stack(logits).mean(dim=0) / self.temperature, dim=1)


def _plain(module: M) -> M:
    """A copy on the CPU, in float32 and torch's usual layout."""
    return copy.deepcopy(module).cpu().float().to(memory_format=torch.contiguous_format).eval()


def onnx_is_installed() -> bool:
    """Whether all packages of the extra `onnx` are there."""
    return all(importlib.util.find_spec(name) for name in ONNX_PACKAGES)


def to_onnx(model: Model) -> bytes:
    """The model as an ONNX file that onnxruntime has been seen to run as PyTorch does.

    Raises:
        UserError: the extra `onnx` is not installed.
        RuntimeError: onnxruntime's probabilities differ by more than TOLERANCE.
    """
    if not onnx_is_installed():
        raise UserError('export.onnx needs onnx, onnxscript and onnxruntime; pip install "coreg-ray[onnx]"')
    deployed = Deployed(model)
    with tempfile.TemporaryDirectory() as scratch, _quietly(), torch.no_grad():
        path = Path(scratch) / "model.onnx"
        torch.onnx.export(
            deployed,
            (_images(model, 2),),
            path,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", max=_MOST)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        content = path.read_bytes()
    _check_onnx(content, deployed, _images(model, _CHECKED_IMAGES))
    return content


def opset_of(content: bytes) -> int:
    """The version of ONNX's own operators that a file needs of its runtime."""
    import onnx

    known = {entry.domain: entry.version for entry in onnx.load_from_string(content).opset_import}
    return int(known.get("", 0))


def to_program(model: Model) -> bytes:
    """The model as a `torch.export` program; read it with `torch.export.load`, only from a source that you trust."""
    buffer = io.BytesIO()
    with torch.no_grad(), _quietly():
        batch = torch.export.Dim("batch", max=_MOST)
        program = torch.export.export(Deployed(model), (_images(model, 2),), dynamic_shapes={"images": {0: batch}})
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _check_onnx(content: bytes, deployed: Deployed, images: Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    probabilities = torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0])
    with torch.no_grad():
        difference = float((probabilities - deployed(images)).abs().max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"ONNX and PyTorch differ by {difference:.2g} in a probability; the limit is {TOLERANCE:g}")


def _images(model: Model, count: int) -> Tensor:
    side = model.resolution
    return torch.rand(count, 3, side, side, generator=generator(0))


class _quietly(warnings.catch_warnings):
    """The exporter speaks about its own future; nothing of it is news to a user."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        self._loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *exc: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
        super().__exit__(*exc)  # type: ignore[arg-type]
