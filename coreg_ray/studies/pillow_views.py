"""Weak and strong views with Pillow, one image at a time (METHOD section 5): the batched ones are compared with it."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

FILL = (125, 123, 114)


def weak_view(pixels: np.ndarray, draws: random.Random, padding: int = 4) -> Image.Image:
    """A random crop after zero padding, mirrored half the time: (S, S, 3) uint8 -> image of the same size."""
    image = ImageOps.expand(Image.fromarray(pixels), padding)
    left, top = draws.randint(0, 2 * padding), draws.randint(0, 2 * padding)
    image = image.crop((left, top, left + pixels.shape[1], top + pixels.shape[0]))
    return ImageOps.mirror(image) if draws.random() < 0.5 else image


def strong_view(pixels: np.ndarray, draws: random.Random) -> Image.Image:
    """The weak view, one of 14 operations, and a hole of up to half the side."""
    image = weak_view(pixels, draws)
    image = draws.choice(_OPERATIONS)(image, draws)
    side = draws.uniform(0, 0.5) * image.width
    x, y = draws.uniform(0, image.width), draws.uniform(0, image.height)
    ImageDraw.Draw(image).rectangle((x - side / 2, y - side / 2, x + side / 2, y + side / 2), FILL)
    return image


Change = Callable[[Image.Image, random.Random], Image.Image]


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
    return lambda image, draws: kind(image).enhance(draws.uniform(0.05, 0.95))


def _mapped(image: Image.Image, xy: float = 0, x0: float = 0, yx: float = 0, y0: float = 0) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (1, xy, x0, yx, 1, y0))


_OPERATIONS: list[Change] = [
    lambda image, draws: image,
    lambda image, draws: ImageOps.autocontrast(image),
    lambda image, draws: ImageOps.equalize(image),
    lambda image, draws: ImageOps.posterize(image, draws.randint(4, 8)),
    lambda image, draws: ImageOps.solarize(image, draws.randint(0, 256)),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, draws: image.rotate(draws.uniform(-30, 30)),
    lambda image, draws: _mapped(image, xy=draws.uniform(-0.3, 0.3)),
    lambda image, draws: _mapped(image, yx=draws.uniform(-0.3, 0.3)),
    lambda image, draws: _mapped(image, x0=draws.uniform(-0.3, 0.3) * image.width),
    lambda image, draws: _mapped(image, y0=draws.uniform(-0.3, 0.3) * image.height),
]
