"""Where a view reads its pixels: mirroring, padding, crops, the five geometric operations, the hole.

Everything is a nearest-neighbour read of one zero-padded batch. A crop is a block of it that begins at some pixel, so
all crops are one `index_select` of overlapping blocks. A geometric operation is a 16.16 fixed-point affine map, as in
Pillow: whole numbers, which every device computes alike. It is composed with the crop: what lies outside the crop is
read from pixel 0, which is border, hence zero. Arrays (numpy) live on the host, tensors on the device; nothing here
waits for the device. PURE: torch and numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coreg_ray.pure.views import large
from coreg_ray.pure.views.operations import Operation

_CACHED_BYTES = 1 << 19  # of pixels; of 2**16 to 2**20 this was the fastest at 32 and 64 px
_FRACTION = 16  # bits behind the point


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """A host array on the device, without waiting for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def parts(pixels: Tensor) -> Iterator[slice]:
    """Cut rows (R,H,W,C) into slices that a processor's cache can hold; a GPU takes all rows at once."""
    rows, size = len(pixels), max(pixels.shape[1:].numel(), 1)
    step = max(rows if pixels.is_cuda else _CACHED_BYTES // size, 1)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


@dataclass(frozen=True)
class Padded:
    """A batch with a zero border of at least one pixel, its mirrored rows mirrored and standing last.

    pixels (B, H + 2 border, W + 2 border, C) uint8; place (B,) says where each row of the batch stands.
    """

    pixels: Tensor
    place: np.ndarray
    border: int

    @classmethod
    def of(cls, images: Tensor, mirrored: np.ndarray, padding: int) -> Padded:
        """images (B,H,W,C) uint8 contiguous, mirrored (B,) bool. Raises ValueError for 2**31 padded pixels or more."""
        rows, height, width, channels = images.shape
        border = max(padding, 1)
        tall, wide = height + 2 * border, width + 2 * border
        if rows * tall * wide + 2 * width >= 2**31:
            raise ValueError(f"{rows} padded images have {rows * tall * wide} pixels, 2**31 or more; pass fewer images")
        order = np.argsort(mirrored, kind="stable")
        upright = rows - int(np.count_nonzero(mirrored))
        source = sent(order.astype(np.int32), images.device)
        slack = width * channels  # before the first row and after the last, where a line that slides may begin or end
        memory = images.new_zeros(rows * tall * wide * channels + 2 * slack)
        pixels = memory[slack:-slack].view(rows, tall, wide, channels)
        inner = pixels[:, border:-border, border:-border]
        inner[:upright] = images.index_select(0, source[:upright])
        inner[upright:] = images.index_select(0, source[upright:]).flip(2)
        return cls(pixels, np.argsort(order), border)

    def starts(self, rows: np.ndarray, offsets: np.ndarray, padding: int) -> np.ndarray:
        """The first pixel (R,), counted through the batch, of crops of rows (R,) at offsets (R,2) up to 2 padding."""
        top, left = (offsets + (self.border - padding)).T
        _, tall, wide, _ = self.pixels.shape
        return ((self.place[rows] * tall + top) * wide + left).astype(np.int32)

    def crop(self, starts: Tensor, out: Tensor) -> None:
        """Write the blocks that begin at starts (R,) to out (R,H,W,C)."""
        count, height, width, channels = out.shape
        rows, tall, wide, _ = self.pixels.shape
        beginnings = rows * tall * wide - (height - 1) * wide - width + 1
        blocks = self.pixels.as_strided((beginnings, height, width * channels), (channels, wide * channels, 1))
        torch.index_select(blocks, 0, starts, out=out.view(count, height, width * channels))

    def slide(self, starts: Tensor, affine: Tensor, out: Tensor) -> None:
        """The same as `warp`, for maps that leave lines whole (xx and yy 1, yx 0): one read a line, not one a pixel."""
        count, height, width, channels = out.shape
        rows, tall, wide, _ = self.pixels.shape
        y = torch.arange(height, dtype=torch.int32, device=out.device)
        _, xy, x0, _, _, y0 = affine[:, :, None]
        line = y + (y0 >> _FRACTION)
        shift = ((xy * y + x0) >> _FRACTION).clamp(-width, width)
        shift = torch.where((line >= 0) & (line < height), shift, width)  # a whole line outside
        first = starts[:, None] + line.clamp(0, height - 1) * wide + shift
        lines = out.view(count * height, width * channels)
        beginnings = rows * tall * wide + width + 1
        read = self.pixels.as_strided(
            (beginnings, width * channels), (channels, 1), self.pixels.storage_offset() - width * channels
        )
        torch.index_select(read, 0, (first + width).view(-1), out=lines)
        # what a line reads beyond the crop's sides is zero: a window on zeros, a line of ones, zeros
        inside = torch.zeros(3, width * channels, dtype=torch.uint8, device=out.device)
        inside[1] = 255
        windows = inside.as_strided((2 * width + 1, width * channels), (channels, 1))
        lines &= windows.index_select(0, (shift + width).view(-1))

    def warp(self, starts: Tensor, affine: Tensor, out: Tensor) -> None:
        """Write the blocks that begin at starts (R,), seen through the maps affine (6,R) int32, to out (R,H,W,C)."""
        for part in parts(out):
            self._warp(starts[part], affine[:, part], out[part])

    def _warp(self, starts: Tensor, affine: Tensor, out: Tensor) -> None:
        _, height, width, channels = out.shape
        x = torch.arange(width, dtype=torch.int32, device=out.device)
        y = torch.arange(height, dtype=torch.int32, device=out.device)[:, None]
        xx, xy, x0, yx, yy, y0 = affine[:, :, None, None]
        column = (xx * x + (xy * y + x0)) >> _FRACTION
        line = (yx * x + (yy * y + y0)) >> _FRACTION
        # a number below zero has its sign bit set: all ones after the shift where any of the four is, else all zeros
        outside = (column | line | (width - 1 - column) | (height - 1 - line)) >> 31
        index = line * self.pixels.shape[2] + (column + starts[:, None, None])
        index &= ~outside
        torch.index_select(self.pixels.view(-1, channels), 0, index.view(-1), out=out.view(-1, channels))


def maps(operations: np.ndarray, magnitude: np.ndarray, height: int, width: int) -> np.ndarray:
    """Geometric operations (R,) with magnitudes (R,) -> (6,R) int32: xx, xy, x0, yx, yy, y0 in 16.16 fixed point.

    Pixel (x, y) of the result is pixel ((xx x + xy y + x0) >> 16, (yx x + yy y + y0) >> 16) of the source, and zero
    outside it. Rotation is about the middle, shear from the upper left corner; x0 and y0 include the half pixel to the
    pixels' centres.
    """

    def only(operation: Operation, value: np.ndarray) -> np.ndarray:
        return np.where(operations == operation, value, 0.0)

    angle = np.radians(only(Operation.ROTATE, magnitude))
    cosine, sine = np.cos(angle), np.sin(angle)
    xy = only(Operation.SHEAR_X, magnitude) - sine
    yx = only(Operation.SHEAR_Y, magnitude) + sine
    x0 = ((1 - cosine) * width + sine * height) / 2 + only(Operation.TRANSLATE_X, magnitude) * width
    y0 = ((1 - cosine) * height - sine * width) / 2 + only(Operation.TRANSLATE_Y, magnitude) * height
    table = np.stack([cosine, xy, x0 + (cosine + xy) / 2, yx, cosine, y0 + (yx + cosine) / 2])
    return np.floor(table * 2.0**_FRACTION + 0.5).astype(np.int32)


def cut(pixels: Tensor, sides: np.ndarray, centres: np.ndarray, colour: tuple[int, ...]) -> None:
    """Fill a square in place: sides (B,) in pixels, centres (B,2) in [0, 1) of the image, clipped at its border.

    pixels (B,H,W,C) uint8 contiguous, colour C levels. Masks are bytes of 0 or 255 along a line and a column; large
    images on a processor are filled one by one instead.
    """
    _, height, width, channels = pixels.shape
    if large.fits(pixels):
        large.fill(pixels.numpy(), sides, centres, colour)
        return
    down = _span(sides, centres[:, 0], height)
    across = _span(sides, centres[:, 1], width).repeat(channels, axis=1)
    fill = across & np.tile(np.array(colour, np.uint8), width)
    masks = sent(np.concatenate([down, ~down, ~across, fill], axis=1), pixels.device)
    lengths = [height, height, width * channels, width * channels]
    for part in parts(pixels):
        inside, above, beside, fill = masks[part, None].split(lengths, dim=2)
        lines = pixels[part].view(-1, height, width * channels)
        lines &= above.mT | beside
        lines |= inside.mT & fill


def _span(sides: np.ndarray, centres: np.ndarray, length: int) -> np.ndarray:
    """Bytes (B, length): 255 within `sides` pixels around the centre, else 0."""
    first = (centres * length).astype(np.int32) - sides // 2
    distance = np.arange(length, dtype=np.int32) - first[:, None]
    return np.where((distance >= 0) & (distance < sides[:, None]), 255, 0).astype(np.uint8)
