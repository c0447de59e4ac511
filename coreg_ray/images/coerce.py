"""Whatever a person calls an image -> batches of pixels at the model's resolution."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from coreg_ray.images.decode import Fit, Undecodable, decode, upright_rgb
from coreg_ray.images.limits import MAX_PIXELS


def pixel_batches(images: Any, fit: Fit, batch_size: int) -> Iterator[Tensor]:
    """(B, 3, S, S) uint8 batches of at most `batch_size` images.

    Args:
        images: as `Model.predict` takes them. fit: brings them to S x S pixels; those that have the size stay.

    Raises:
        ValueError: an image cannot be read, or is of a kind or shape that is none; the message names it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is below 1; give the number of images per batch")
    if isinstance(images, Tensor | np.ndarray) and _is_fitting_batch(images, fit.height):
        yield from _as_tensor(images).split(batch_size)
        return
    numbered = iter(enumerate(_each(images)))
    while block := [_read(image, number, fit) for number, image in islice(numbered, batch_size)]:
        yield torch.from_numpy(np.stack(block)).permute(0, 3, 1, 2)


def _each(images: Any) -> Iterable[Any]:
    """One image or a batch of any kind -> an iterable of single images."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if isinstance(images, Tensor | np.ndarray):
        return images if images.ndim == 4 else [images]
    if isinstance(images, Iterable):
        return images
    raise ValueError(f"images of type {type(images).__name__}; give paths, Pillow images, bytes, arrays or tensors")


def _read(image: Any, number: int, fit: Fit) -> NDArray[np.uint8]:
    name = f"image {number} ({image})" if isinstance(image, str | os.PathLike) else f"image {number}"
    try:
        return fit(_opened(image))
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error}); give an existing image file") from error
    except Undecodable as error:
        raise ValueError(f"{name}: {error}") from error


def _opened(image: Any) -> Image.Image:
    match image:
        case str() | os.PathLike():
            return decode(Path(image).read_bytes())
        case bytes():
            return decode(image)
        case Image.Image():
            return upright_rgb(image)
        case Tensor():
            shown = image.detach().cpu()
            return _from_array(shown.numpy() if shown.ndim == 2 else shown.movedim(0, -1).contiguous().numpy())
        case np.ndarray():
            return _from_array(image)
    raise Undecodable(f"of type {type(image).__name__}; give a path, a Pillow image, bytes, an array or a tensor")


def _from_array(array: NDArray[Any]) -> Image.Image:
    """(H, W) or (H, W, 1 to 4) of integers in 0..255 or floats in 0..1."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise Undecodable(f"shape {array.shape}; arrays are (H, W) or (H, W, C), tensors (C, H, W), C from 1 to 4")
    if not array.size:
        raise Undecodable(f"shape {array.shape} holds no pixel")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise Undecodable(f"shape {array.shape}; the limit is {MAX_PIXELS} pixels, so make it smaller")
    array = _to_uint8(array)
    return upright_rgb(Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array))


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = float(array.min()), float(array.max())
    limit = 1.0 if np.issubdtype(array.dtype, np.floating) else 255.0
    if not (low >= 0 and high <= limit):  # also refuses NaN
        raise Undecodable(f"{array.dtype} values from {low:g} to {high:g}; give integers in 0..255 or floats in 0..1")
    return np.round(array * (255.0 / limit)).astype(np.uint8)


def _is_fitting_batch(images: Tensor | NDArray[Any], side: int) -> bool:
    """A uint8 RGB batch that already has the right size needs no Pillow."""
    if isinstance(images, Tensor):
        return images.dtype == torch.uint8 and images.shape[1:] == (3, side, side)
    return images.dtype == np.uint8 and images.shape[1:] == (side, side, 3)


def _as_tensor(images: Tensor | NDArray[np.uint8]) -> Tensor:
    return images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
