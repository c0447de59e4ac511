"""From the bytes of any image file to RGB pixels of a fixed size, or a reason why not."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from coreg_ray.images.limits import MAX_PIXELS, TooLarge, check_inner, check_pixels, check_size, light_png

LONGEST_STRIP = 16  # only the centre of an image survives the crop, so the ends of a longer one do not matter
_FULL_16_BIT = 65535
_ORIENTATION = 0x0112  # the tag of EXIF that says which way is up
_BAND = 2**20  # pixels that are converted at a time, so that what lies between two modes stays small
_RUNS_A_PROGRAM = {"EPS"}  # Pillow hands these to Ghostscript, which nobody wants for files of unknown origin
_HAVE_NO_READER = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # which Pillow recognises, no more
_READ_BY_ANOTHER = {"MPO": "JPEG"}  # formats that Pillow opens under another's name


class Undecodable(ValueError):
    """An image that cannot be annotated; the message is the reason that goes to the rejects table."""


@dataclass(frozen=True)
class Fit:
    """How an image becomes a fixed size, in open_clip's terms.

    Attributes:
        height, width: the result in pixels.
        mode: `shortest` fills the size and crops the centre (nothing is cropped from a square), `longest` shows all
            and pads, `squash` shows all and distorts.
        interpolation: always antialiased.
        fill: grey level of padding.
    """

    height: int
    width: int
    mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0

    @classmethod
    def square(cls, side: int) -> Fit:
        """Bicubic to side x side; what sticks out of a square is cropped evenly."""
        return cls(side, side)

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image of any size -> (height, width, 3) uint8."""
        image = _within_aspect(image) if self.mode == "shortest" else image
        scaled = self._scaled(*image.size)
        if scaled != image.size:
            image = image.resize(scaled, Image.Resampling[self.interpolation.upper()])
        if image.size != (self.width, self.height):
            image = self._centre(image)
        return np.asarray(image)

    def _scaled(self, columns: int, rows: int) -> tuple[int, int]:
        """(width, height) before the crop or the padding, rounded as open_clip's transforms do."""
        if self.mode == "squash":
            return self.width, self.height
        if self.mode == "shortest" and self.height == self.width:
            short = min(columns, rows)
            return self.width * columns // short, self.width * rows // short
        ratios = (rows / self.height, columns / self.width)
        ratio = min(ratios) if self.mode == "shortest" else max(ratios)
        return max(1, round(columns / ratio)), max(1, round(rows / ratio))

    def _centre(self, image: Image.Image) -> Image.Image:
        """Crop or pad evenly around the centre."""
        left, top = ((have - want) / 2 for have, want in zip(image.size, (self.width, self.height), strict=True))
        if left >= 0 and top >= 0:
            corner = (round(left), round(top))
            return image.crop((*corner, corner[0] + self.width, corner[1] + self.height))
        canvas = Image.new("RGB", (self.width, self.height), (self.fill,) * 3)
        canvas.paste(image, (int(-left), int(-top)))
        return canvas


def decode(content: bytes) -> Image.Image:
    """Any image file that Pillow opens -> RGB, upright (EXIF), transparency on white, the first frame of several.

    Raises:
        Undecodable: empty, not an image, truncated, or above one of the limits of `limits`.
    """
    if not content:
        raise Undecodable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata; what matters raises
            check_inner(content)
            return upright_rgb(Image.open(BytesIO(light_png(content)), formats=_formats()))
    except Undecodable:
        raise
    except TooLarge as error:
        raise Undecodable(str(error)) from error
    except Image.DecompressionBombError as error:
        raise Undecodable(f"too many pixels; the limit is {MAX_PIXELS}") from error
    except Image.UnidentifiedImageError as error:
        raise Undecodable("not an image") from error
    except Exception as error:  # Pillow's plugins raise anything at all on broken files
        raise Undecodable(f"broken image: {type(error).__name__}: {error}"[:200]) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image of any mode -> RGB, upright (EXIF), transparency on white, 16 bits brought to 8.

    Raises:
        Undecodable: it would take more memory than an image may; before a pixel is decoded.
    """
    try:
        check_size(image)
        image.load()
        check_size(image)  # some formats tell only now
    except TooLarge as error:
        raise Undecodable(str(error)) from error
    return _rgb(_upright(image))


def from_array(array: NDArray[np.generic]) -> Image.Image:
    """A uint8 array (H, W), (H, W, 1) or (H, W, 3) -> RGB image.

    Raises:
        Undecodable: any other shape or type, or more than MAX_PIXELS.
    """
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise Undecodable(f"array of {array.dtype} {array.shape}; give uint8 (H, W), (H, W, 1) or (H, W, 3)")
    if not array.size:
        raise Undecodable("empty array")
    try:
        check_pixels(array.shape[1], array.shape[0])
    except TooLarge as error:
        raise Undecodable(str(error)) from error
    return Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array).convert("RGB")


@cache
def _formats() -> list[str]:
    """Names of the formats that are read here; HEIC is one where the extra `heic` is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    unread = _RUNS_A_PROGRAM | _HAVE_NO_READER | (set() if features.check("avif") else {"AVIF"})
    return [name for name in Image.ID if name not in unread]


@cache
def extensions() -> frozenset[str]:
    """File name endings, lower case with the dot, that say "image"."""
    formats = set(_formats())
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, name in known if _READ_BY_ANOTHER.get(name, name) in formats)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _in_bands(image, lambda band: _grey(np.asarray(band, dtype=np.float64) / _FULL_16_BIT))
    if image.mode == "F":
        brightest = max(_values(band).max(initial=0) for _, band in _bands(image))
        whole = 1 if brightest <= 1 else 255
        return _in_bands(image, lambda band: _grey(_values(band) / whole))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _in_bands(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _values(band: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band, dtype=np.float64))


def _on_white(band: Image.Image) -> Image.Image:
    clear = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", band.size, "white"), clear).convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image, whose every pixel becomes what it does whatever lies beside it, a few rows at a time."""
    canvas = Image.new("RGB", image.size)
    for top, band in _bands(image):
        canvas.paste(convert(band), (0, top))
    return canvas


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Parts of an image with the row that each begins with."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _within_aspect(image: Image.Image) -> Image.Image:
    """Cut the ends off a strip of more than LONGEST_STRIP : 1, which would grow beyond all memory when enlarged."""
    columns, rows = image.size
    reach = min(columns, rows) * LONGEST_STRIP
    left, top = max(0, columns - reach) // 2, max(0, rows - reach) // 2
    if not left and not top:
        return image
    return image.crop((left, top, columns - left, rows - top))


def _grey(shares: NDArray[np.float64]) -> Image.Image:
    """Grey levels 0..1 -> RGB."""
    return Image.fromarray(np.round(shares.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
