"""Views of large images on a processor, one image at a time: an image alone fills the cache. PURE: torch and numpy.

To the bit what `geometry` and `operations` make of a batch. What differs, and why:
1. An image is read once from memory, then treated in the cache, with memory that is used again for the next image.
2. Three bytes are an awkward size to move, so that pixels are moved as words of four bytes: the fourth belongs to the
   next pixel and is overwritten when that one is written, since copies run from the first to the last pixel.
3. What a rotation reads from outside the picture lies on a border of zeros, as wide as it needs it: no masks.
4. Sheared pictures are copied in blocks that slide alike. Levels are stretched by arithmetic, not by tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from coreg_ray.pure.views.operations import GREY, Operation

_PIXELS = 90 * 90  # from here on an image at a time is faster; at 80 px both take about as long
_FRACTION = 16  # bits behind the point of a map


def fits(pixels: torch.Tensor) -> bool:
    """Whether images (B,H,W,C) are large and on a processor, and hence this file's."""
    return not pixels.is_cuda and pixels.shape[1] * pixels.shape[2] >= _PIXELS


def render(
    images: np.ndarray,
    shifts: np.ndarray,
    mirrored: np.ndarray,
    operations: np.ndarray,
    magnitude: np.ndarray,
    affine: np.ndarray,
) -> np.ndarray:
    """Crop, mirror and change each image.

    images (B,H,W,C) uint8 contiguous; shifts (B,2) down and across, in pixels, of the window on the mirrored image;
    mirrored (B,) bool; operations (B,) with magnitude (B,) as of `magnitudes`; affine (6,B) as of `maps`
    -> (B,H,W,C) uint8.
    """
    views, words = _empty(*images.shape)
    easel = _Easel(*images.shape[1:])
    strengths = magnitude.astype(np.float32)
    places = [*shifts.T.tolist(), mirrored.tolist()]
    for row, (operation, down, across, turned) in enumerate(zip(operations.tolist(), *places, strict=True)):
        easel.paint(
            images[row], views[row], words[row], (down, across, turned), operation, strengths[row], affine[:, row]
        )
    return views


def fill(views: np.ndarray, sides: np.ndarray, centres: np.ndarray, colour: tuple[int, ...]) -> None:
    """What `geometry.cut` does, on views (B,H,W,C)."""
    _, height, width, channels = views.shape
    line = np.tile(np.array(colour, np.uint8), width)
    first = (centres * (height, width)).astype(np.int64) - sides[:, None] // 2
    last = (first + sides[:, None]).clip(min=0).tolist()
    lines = views.reshape(-1, height, width * channels)
    for view, (top, left), (bottom, right) in zip(lines, first.clip(min=0).tolist(), last, strict=True):
        view[top:bottom, left * channels : right * channels] = line[: (min(right, width) - left) * channels]


class _Easel:
    """Treats one image (H,W,C) after the other."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.height, self.width, self.channels = height, width, channels
        pictures, words = _empty(1, height, width, channels)
        self.picture, self.picture_words = pictures[0], words[0]
        self.floats = np.empty((height, width * channels), np.float32)
        self.plain = np.empty_like(self.floats)
        self.levels = np.empty((3, height, width), np.uint32)
        self.doubles = np.empty(self.floats.shape)
        self.recolours: dict[int, Callable[[np.ndarray, np.float32], object]] = {
            Operation.AUTO_CONTRAST: self._stretch,
            Operation.EQUALIZE: self._equalise,
            Operation.POSTERIZE: lambda lines, bits: np.bitwise_and(lines, np.uint8(256 - 2 ** (8 - int(bits))), lines),
            Operation.SOLARIZE: self._solarise,
            Operation.BRIGHTNESS: self._darken,
            Operation.CONTRAST: lambda lines, share: self._blend(lines, share, self._mean(lines)),
            Operation.COLOR: lambda lines, share: self._blend(lines, share, self._greys(lines)),
            Operation.SHARPNESS: lambda lines, share: self._blend(lines, share, self._smooth(lines)),
            Operation.IDENTITY: lambda lines, _: lines,
        }

    def paint(
        self,
        image: np.ndarray,
        view: np.ndarray,
        words: np.ndarray,
        place: tuple[int, int, bool],
        operation: int,
        magnitude: np.float32,
        affine: np.ndarray,
    ) -> None:
        """Write the view of an image; place: down, across, mirrored."""
        if recolour := self.recolours.get(operation):
            _crop(image, view, *place)
            self.words = words
            recolour(view.reshape(self.height, -1), magnitude)
            return
        _crop(image, self.picture, *place)
        xx, xy, x0, yx, yy, y0 = affine.tolist()
        if xx == yy == 1 << _FRACTION and not yx:
            if xy:
                _slide(self.picture.swapaxes(0, 1), view.swapaxes(0, 1), xy, x0)
            else:
                _crop(self.picture, view, y0 >> _FRACTION, x0 >> _FRACTION, mirrored=False)
        elif xx == yy == 1 << _FRACTION and not xy:
            _slide(self.picture, view, yx, y0)
        else:
            self._warp(words, xx, xy, x0, yx, yy, y0)

    # ---- geometry ----

    def _warp(self, words: np.ndarray, xx: int, xy: int, x0: int, yx: int, yy: int, y0: int) -> None:
        right, low = self.width - 1, self.height - 1
        columns = [(xx * x + xy * y + x0) >> _FRACTION for x in (0, right) for y in (0, low)]
        lines = [(yx * x + yy * y + y0) >> _FRACTION for x in (0, right) for y in (0, low)]
        left, above = max(-min(columns), 0), max(-min(lines), 0)
        wide = left + max(max(columns), right) + 1
        tall = above + max(max(lines), low) + 1
        bordered = np.zeros((tall, wide), np.uint32 if self.channels == 3 else np.uint8)
        bordered[above : above + self.height, left : left + self.width] = self.picture_words
        x, y = np.arange(self.width, dtype=np.int32), np.arange(self.height, dtype=np.int32)[:, None]
        index = yx * x + (yy * y + (y0 + (above << _FRACTION)))
        index >>= _FRACTION
        index *= wide
        column = xx * x + (xy * y + (x0 + (left << _FRACTION)))
        column >>= _FRACTION
        index += column
        signed = bordered.reshape(-1).view(np.int32 if self.channels == 3 else np.uint8)  # as torch knows it
        read = torch.from_numpy(signed).index_select(0, torch.from_numpy(index.reshape(-1)))
        np.copyto(words, read.numpy().view(bordered.dtype).reshape(self.height, self.width))

    # ---- colours: all of them in place, on lines (H, W C) ----

    def _solarise(self, lines: np.ndarray, level: np.float32) -> None:
        """Invert what is not below `level`: 255 - v is v with every bit turned."""
        inverted = (lines >= level if level > 255 else lines >= np.uint8(np.ceil(level))).view(np.uint8)
        np.negative(inverted, out=inverted)
        lines ^= inverted

    def _stretch(self, lines: np.ndarray, _: np.float32) -> None:
        """In float64, as Pillow makes its table: a level that ought to be whole may be a hair below it."""
        low = lines.min(axis=0).reshape(-1, self.channels).min(axis=0).astype(np.float64)
        high = lines.max(axis=0).reshape(-1, self.channels).max(axis=0)
        if low.max() == 0 and high.min() == 255:
            return
        flat = high <= low
        scale = np.where(flat, 1, 255 / np.where(flat, 255, high - low))
        scales, offsets = np.tile([scale, np.where(flat, 0, -low * scale)], self.width)
        levels = self.doubles
        np.copyto(levels, lines)
        levels *= scales
        levels += offsets
        np.copyto(lines, levels, casting="unsafe")

    def _equalise(self, lines: np.ndarray, _: np.float32) -> None:
        entries = self._entries(lines)
        histogram = np.bincount(entries.reshape(-1), minlength=self.channels * 256).reshape(self.channels, 256)
        last = histogram[np.arange(self.channels), 255 - (histogram[:, ::-1] > 0).argmax(axis=1)]
        step = ((self.height * self.width - last) // 255)[:, None]
        below = histogram.cumsum(axis=1)
        below -= histogram
        below += step // 2
        tables = np.where(step > 0, below // np.maximum(step, 1), np.arange(256)).clip(max=255).astype(np.uint8)
        np.take(tables.reshape(-1), entries, out=lines, mode="clip")

    def _entries(self, lines: np.ndarray) -> np.ndarray:
        """Which entry of the channels' tables, one after the other, each level is: (H, W C)."""
        first = np.tile(np.arange(self.channels, dtype=np.uint16) * 256, self.width)
        return (lines.astype(np.uint16) + first).astype(np.intp)

    def _darken(self, lines: np.ndarray, share: np.float32) -> None:
        np.copyto(self.floats, lines)
        self.floats *= share
        np.copyto(lines, self.floats, casting="unsafe")

    def _blend(self, lines: np.ndarray, share: np.float32, plain: np.float32 | np.ndarray) -> None:
        """Move levels towards `plain`: one level for all, or (H, W C) uint8."""
        levels = self.floats
        np.copyto(levels, lines)
        if isinstance(plain, np.ndarray):
            np.copyto(self.plain, plain)
            plain = self.plain
        levels -= plain
        levels *= share
        levels += plain
        np.copyto(lines, levels, casting="unsafe")

    def _grey(self, lines: np.ndarray) -> np.ndarray:
        """Grey levels (H,W) uint32, rounded."""
        if self.channels == 1:
            return lines.astype(np.uint32)
        grey, level, pixels = self.levels
        np.copyto(pixels, self.words)
        if not np.little_endian:
            pixels.byteswap(inplace=True)
        np.bitwise_and(pixels, 255, out=grey)
        grey *= GREY[0]
        for channel in (1, 2):
            pixels >>= 8
            np.bitwise_and(pixels, 255, out=level)
            level *= GREY[channel]
            grey += level
        grey += 32768
        grey >>= 16
        return grey

    def _mean(self, lines: np.ndarray) -> np.float32:
        grey = self._grey(lines)
        total = int(grey.sum(axis=0, dtype=np.uint32).sum())
        return np.float32((2 * total + grey.size) // (2 * grey.size))

    def _greys(self, lines: np.ndarray) -> np.ndarray:
        if self.channels == 1:
            return lines
        grey = self._grey(lines)
        grey *= 0x010101 if np.little_endian else 0x01010100
        np.copyto(self.picture_words, grey)
        return self.picture.reshape(self.height, -1)

    def _smooth(self, lines: np.ndarray) -> np.ndarray:
        """3x3 mean whose centre counts five times, rounded; the outermost pixels keep their level."""
        smooth, step = self.picture.reshape(self.height, -1), self.channels
        np.copyto(smooth, lines)
        if min(self.height, self.width) < 3:
            return smooth
        levels = lines.astype(np.uint16)
        across = levels[:, : -2 * step] + levels[:, step:-step]
        across += levels[:, 2 * step :]
        total = across[:-2] + across[1:-1]
        total += across[2:]
        levels <<= 2
        total += levels[1:-1, step:-step]
        total += 6
        total //= 13
        np.copyto(smooth[1:-1, step:-step], total, casting="unsafe")
        return smooth


def _crop(image: np.ndarray, view: np.ndarray, down: int, across: int, mirrored: bool) -> None:
    """view[y, x] = image[y + down, x + across], of the mirrored image where told; zero outside. Both (H,W,C).

    All pixels move by one distance in memory: what comes around from the neighbouring lines is overwritten with zeros.
    """
    height, width, channels = image.shape
    if mirrored:
        image = torch.from_numpy(image).flip(1).numpy()
    distance = (down * width + across) * channels
    kept = max(image.size - abs(distance), 0)
    first, source = max(-distance, 0), max(distance, 0)
    view.reshape(-1)[first : first + kept] = image.reshape(-1)[source : source + kept]
    lines = view.reshape(height, -1)
    lines[: max(-down, 0)] = 0
    lines[max(height - down, 0) :] = 0
    lines[:, : max(-across, 0) * channels] = 0
    lines[:, max(width - across, 0) * channels :] = 0


def _slide(image: np.ndarray, view: np.ndarray, slope: int, start: int) -> None:
    """view[y, x] = image[y + t(x), x], t(x) = (slope x + start) >> 16; zero outside.

    Neighbouring columns that slide alike go at once.
    """
    height, width, _ = image.shape
    distances = (slope * np.arange(width) + start) >> _FRACTION
    last = np.append(np.flatnonzero(np.diff(distances)) + 1, width).tolist()
    view[:] = 0
    for begin, end in zip([0, *last], last, strict=False):
        down = int(distances[begin])
        top, bottom = max(-down, 0), max(height - max(down, 0), 0)
        view[top:bottom, begin:end] = image[top + down : bottom + down, begin:end]


def _empty(count: int, height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory for images (B,H,W,C) uint8, and the same memory as one number a pixel (B,H,W).

    Of three channels the number is a word with the byte that follows: write images and their pixels in ascending order.
    """
    shape = (count, height, width, channels)
    memory = np.empty(math.prod(shape) + 1, np.uint8)
    images = memory[:-1].reshape(shape)
    if channels == 1:
        return images, images[..., 0]
    return images, np.ndarray(shape[:3], np.uint32, memory.data, strides=images.strides[:3])
