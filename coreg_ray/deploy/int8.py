"""The ONNX model in eight bits, for small machines: a quarter of the size, kept only where it answers alike and faster.

Static quantization of onnxruntime (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html):
inputs and weights of convolutions and matrix products become integers (QDQ form), with ranges seen on images of the
pool; softmax, temperature and normalisation stay as they are. Weights use seven of the eight bits, without which older
processors overflow.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coreg_ray import metrics

log = logging.getLogger(__name__)

FILE = "model-int8.onnx"
LEAST_AGREEMENT = 0.98  # of the same answers as the float file
_CALIBRATED, _COMPARED = 256, 1024  # images of the pool
_BATCH, _TURNS = 32, 15
_KINDS = ["Conv", "Gemm", "MatMul"]


@dataclass(frozen=True)
class Int8:
    """What came of quantizing.

    Attributes:
        content: the file; None where it is not kept. figures: by name. reason: why it is not kept.
    """

    content: bytes | None
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def words(self) -> str:
        """What came of it, in a sentence."""
        if self.content is None:
            return f"No `{FILE}`: {self.reason}."
        f = self.figures
        right = f" It is right for {f[metrics.INT8_ACCURACY]:.3f} of the labelled test images, the float file for "
        right = f"{right}{f[metrics.FLOAT_ACCURACY]:.3f}." if metrics.INT8_ACCURACY in f else ""
        return (
            f"`{FILE}` has {f[metrics.INT8_SIZE]:.2f} of the size of `model.onnx`, names the same class for "
            f"{f[metrics.INT8_AGREEMENT]:.1%} of the pool's images, and was {f[metrics.INT8_SPEEDUP]:.2f} times "
            f"as fast where it was made.{right}"
        )


def quantized(content: bytes, pool: Tensor | None, test: tuple[Tensor, Tensor] | None = None) -> Int8:
    """An ONNX file in eight bits, compared with it.

    Args:
        content: of `model.onnx`. pool: (M, 3, S, S) uint8 images of the pool, calibrated with its first ones and
            compared on the others; None: they are not kept at the model's size. test: labelled images and their labels.
    """
    if pool is None:
        return Int8(None, reason="the run keeps its images at another size than the model's, so none is there to ask")
    if len(pool) < 2:
        return Int8(None, reason=f"{len(pool)} images of the pool are too few to calibrate and to compare on")
    share = min(_CALIBRATED, len(pool) // 2)
    try:
        small = quantize(content, pool[:share])
        before, after = session(content), session(small)
    except Exception as error:  # of protobuf, onnx or onnxruntime; a run that is finished does not fail for that
        log.debug("quantizing failed", exc_info=True)
        told = (str(error).strip() or repr(error)).splitlines()[0][:200]
        return Int8(None, reason=f"onnxruntime cannot make it ({told})")
    rest = pool[share : share + _COMPARED]
    plain, rounded = answers(before, rest), answers(after, rest)
    figures: dict[str, Any] = {
        metrics.INT8_SIZE: len(small) / len(content),
        metrics.INT8_AGREEMENT: float((plain == rounded).mean()),
        metrics.INT8_SPEEDUP: speedup([before, after], rest[:1]),
    }
    if test is not None and len(test[0]):
        labels = test[1].numpy()
        figures[metrics.FLOAT_ACCURACY] = float((answers(before, test[0]) == labels).mean())
        figures[metrics.INT8_ACCURACY] = float((answers(after, test[0]) == labels).mean())
    agreement, faster = figures[metrics.INT8_AGREEMENT], figures[metrics.INT8_SPEEDUP]
    reason = ""
    if agreement < LEAST_AGREEMENT:
        reason = f"it answers as the float file for {agreement:.1%} of the images ({LEAST_AGREEMENT:.0%} are the least)"
    elif faster <= 1:
        reason = f"it is not faster on this machine ({faster:.2f} times the float file's speed)"
    return Int8(None if reason else small, figures, reason)


def quantize(content: bytes, pixels: Tensor) -> bytes:
    """An ONNX file with eight-bit convolutions and matrix products; pixels: (M, 3, S, S) uint8 to calibrate on."""
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    with tempfile.TemporaryDirectory() as scratch, _Silence():
        given, whole, small = (Path(scratch) / f"{name}.onnx" for name in ("given", "whole", "small"))
        given.write_bytes(content)
        quant_pre_process(str(given), str(whole), skip_symbolic_shape=True)
        quantize_static(
            str(whole),
            str(small),
            _Calibration(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_KINDS,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return small.read_bytes()


def session(content: bytes, threads: int = 0) -> Any:
    """An ONNX file ready to run on the CPU; threads 0: as many as onnxruntime takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def answers(running: Any, pixels: Tensor) -> NDArray[np.int64]:
    """(M,) classes that a session names for images (M, 3, S, S) uint8."""
    parts = [running.run(None, {"images": batch})[0].argmax(axis=1) for batch in _batches(pixels)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def speedup(running: Sequence[Any], pixels: Tensor) -> float:
    """How many times faster the second of two sessions is, on one image: the median over turns that they take."""
    image = next(_batches(pixels))
    seconds: list[list[float]] = [[], []]
    for turn in range(_TURNS + 1):
        for place, one in enumerate(running):
            start = time.perf_counter()
            one.run(None, {"images": image})
            if turn:  # the first is slow
                seconds[place].append(time.perf_counter() - start)
    return statistics.median(before / after for before, after in zip(*seconds, strict=True))


def _batches(pixels: Tensor) -> Iterator[NDArray[np.float32]]:
    """uint8 images as the model takes them: float32 in 0..1."""
    for block in pixels.split(_BATCH):
        yield (block.float() / 255).contiguous().numpy()


class _Calibration:
    """What onnxruntime asks for images, one batch after the other."""

    def __init__(self, pixels: Tensor) -> None:
        self._batches = _batches(pixels)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """A batch by the name of the model's input; None when all have been seen."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}

    def __iter__(self) -> _Calibration:
        return self

    def __next__(self) -> dict[str, NDArray[np.float32]]:
        batch = self.get_next()
        if batch is None:
            raise StopIteration
        return batch


class _Silence:
    """onnxruntime's advice about preparing a model is followed already."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger()
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *exc: object) -> None:
        self._logger.setLevel(self._level)
