"""The 14 operations of a strong view (METHOD section 5): their ranges, and the eight that change colours.

Each equals Pillow's operation of that name, to the bit. They work in place on a *slice* of rows: `views` sorts the rows
by operation, so that a group is a slice and no row is copied to be grouped. Arrays (numpy) live on the host, tensors on
the device. PURE: torch and numpy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

GREY = (19595, 38470, 7471)  # red, green, blue: ITU-R 601 in 1/65536; 255 * 65536 is still exact in float32


class Operation(IntEnum):
    """In this order because neighbours share arithmetic: tables, blends (grey for two of them), nothing, maps."""

    AUTO_CONTRAST = 0
    EQUALIZE = 1
    POSTERIZE = 2
    SOLARIZE = 3
    BRIGHTNESS = 4
    CONTRAST = 5
    COLOR = 6
    SHARPNESS = 7
    IDENTITY = 8
    ROTATE = 9
    SHEAR_X = 10
    SHEAR_Y = 11
    TRANSLATE_X = 12
    TRANSLATE_Y = 13


_RANGES = {
    Operation.POSTERIZE: (4, 9),  # rounded down: 4 to 8 bits
    Operation.SOLARIZE: (0, 256),
    Operation.BRIGHTNESS: (0.05, 0.95),
    Operation.CONTRAST: (0.05, 0.95),
    Operation.COLOR: (0.05, 0.95),
    Operation.SHARPNESS: (0.05, 0.95),
    Operation.ROTATE: (-30, 30),
    Operation.SHEAR_X: (-0.3, 0.3),
    Operation.SHEAR_Y: (-0.3, 0.3),
    Operation.TRANSLATE_X: (-0.3, 0.3),
    Operation.TRANSLATE_Y: (-0.3, 0.3),
}
_LOW, _HIGH = np.array([_RANGES.get(operation, (0, 0)) for operation in Operation], dtype=np.float64).T


def magnitudes(operations: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Operations (B,), draws (B,) in [0, 1) -> magnitudes (B,) float64, sign included, uniform over the range.

    Units: bits kept (posterize), lowest level that is inverted (solarize), share of the picture kept (brightness,
    contrast, colour, sharpness), degrees anticlockwise (rotate), slope (shear), share of the side (translate).
    """
    values = _LOW[operations] + (_HIGH - _LOW)[operations] * draws
    return np.where(operations == Operation.POSTERIZE, np.floor(values), values)


def recolour(pixels: Tensor, operations: np.ndarray, magnitude: Tensor) -> None:
    """Apply the colour operations in place; rows of other operations stay as they are.

    pixels (R,H,W,C) uint8 contiguous, operations (R,) ascending, magnitude (R,) float32 on the device of the pixels.
    An operation costs the same few kernels however many rows it has.
    """
    bounds = np.searchsorted(operations, np.arange(len(Operation) + 1)).tolist()
    counts = np.diff(bounds).tolist()
    if tabled := bounds[Operation.POSTERIZE]:
        _through_tables(pixels[:tabled], counts[Operation.AUTO_CONTRAST])
    if counts[Operation.POSTERIZE]:
        rows = slice(bounds[Operation.POSTERIZE], bounds[Operation.SOLARIZE])
        _posterize(pixels[rows], magnitude[rows])
    if counts[Operation.SOLARIZE]:
        rows = slice(bounds[Operation.SOLARIZE], bounds[Operation.BRIGHTNESS])
        _solarize(pixels[rows], magnitude[rows])
    if any(blended := counts[Operation.BRIGHTNESS : Operation.IDENTITY]):
        rows = slice(bounds[Operation.BRIGHTNESS], bounds[Operation.IDENTITY])
        _blend(pixels[rows], magnitude[rows], blended)


def _posterize(pixels: Tensor, bits: Tensor) -> None:
    """Keep the highest `bits` (R,) of each byte."""
    mask = (255 << (8 - bits.to(torch.int32))).to(torch.uint8)
    pixels &= mask[:, None, None, None]


def _solarize(pixels: Tensor, level: Tensor) -> None:
    """Invert what is not below `level` (R,): 255 - v is v with every bit turned."""
    inverted = pixels >= level[:, None, None, None]
    pixels ^= inverted.to(torch.uint8) * 255


def _through_tables(pixels: Tensor, stretched: int) -> None:
    """Autocontrast on the first `stretched` rows, equalize on the rest: a table of levels for each row and channel."""
    count, height, width, channels = pixels.shape
    first = torch.arange(0, count * channels * 256, 256, device=pixels.device).view(count, 1, 1, channels)
    # the same entry for a whole line, so that the addition runs along lines and not along three channels
    entries = pixels.view(count, height, -1) + first.expand(-1, 1, width, -1).reshape(count, 1, -1)
    entries = entries.view(-1)
    histogram = torch.zeros(count * channels * 256, dtype=torch.int32, device=pixels.device)
    histogram.scatter_add_(0, entries, torch.ones_like(entries, dtype=torch.int32))
    histogram = histogram.view(count, channels, 256)
    levels = torch.arange(256, device=pixels.device)
    used = histogram[:stretched] > 0
    low = torch.where(used, levels, 255).amin(-1, keepdim=True)
    high = torch.where(used, levels, 0).amax(-1, keepdim=True)
    tables = torch.cat([stretching(low, high), equalising(histogram[stretched:], height * width)])
    torch.index_select(tables.view(-1), 0, entries, out=pixels.view(-1))


def stretching(low: Tensor, high: Tensor) -> Tensor:
    """Lowest and highest level in use (..., 1) -> table (..., 256) uint8 that stretches them to 0..255, as Pillow does.

    In float64, where a level that ought to be whole may be a hair below it and is rounded down: Pillow's quirk.
    """
    levels = torch.arange(256, dtype=torch.float64, device=low.device)
    low, high = low.double(), high.double()
    flat = high <= low
    scale = levels[255] / torch.where(flat, 255, high - low)  # a true division: torch takes 255 / x as 255 * (1 / x)
    offset = torch.where(flat, 0, -low * scale)
    return (levels * scale + offset).clamp(0, 255).to(torch.uint8)


def equalising(histogram: Tensor, total: int) -> Tensor:
    """Histogram (R,C,256) of `total` pixels -> table (R,C,256) uint8 that makes the levels equally frequent."""
    levels = torch.arange(256, dtype=torch.int32, device=histogram.device)
    highest = torch.where(histogram > 0, levels, 0).amax(-1, keepdim=True)
    step = (total - histogram.gather(-1, highest.long())) // 255
    below = histogram.cumsum(-1, dtype=torch.int32) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, levels).to(torch.uint8)


def _blend(pixels: Tensor, factor: Tensor, counts: list[int]) -> None:
    """Move rows towards a plainer picture (`counts` rows each): black, their mean grey, their greys, smoothed."""
    image = pixels.float()
    plain = torch.zeros_like(image)
    _, contrast, color, sharpness = image.split(counts)
    _, plain_contrast, plain_color, plain_sharpness = plain.split(counts)
    if contrast.numel():
        grey = _grey(contrast)
        total = grey.flatten(1).to(torch.int32).sum(1)
        pixels_each = grey[0].numel()
        plain_contrast += ((2 * total + pixels_each) // (2 * pixels_each))[:, None, None, None]
    if color.numel():
        plain_color += _grey(color)
    if sharpness.numel():
        plain_sharpness.copy_(_smooth(sharpness))
    image.sub_(plain).mul_(factor[:, None, None, None]).add_(plain)
    pixels.copy_(image.to(torch.int16))  # by way of int16: processors have no fast conversion from float to bytes


def _grey(image: Tensor) -> Tensor:
    """Float image (R,H,W,C) of whole levels -> its grey levels (R,H,W,1), rounded."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = image.unbind(-1)
    grey = red * GREY[0] + green * GREY[1] + blue * GREY[2]
    return grey.add_(32768).div_(65536).floor_()[..., None]


def _smooth(image: Tensor) -> Tensor:
    """3x3 mean of (R,H,W,C) whose centre counts five times, rounded; the outermost pixels keep their value."""
    result = image.clone()
    if min(image.shape[1:3]) < 3:
        return result
    across = image[:, :, :-2] + image[:, :, 1:-1] + image[:, :, 2:]
    total = across[:, :-2] + across[:, 1:-1] + across[:, 2:] + 4 * image[:, 1:-1, 1:-1]
    result[:, 1:-1, 1:-1] = total.div_(13).add_(0.5).floor_()
    return result
