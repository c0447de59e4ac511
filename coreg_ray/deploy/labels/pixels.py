"""An image of the pool as the bytes of a file that other tools open."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pyarrow as pa
from PIL import Image

from coreg_ray.images.base import Content
from coreg_ray.images.decode import Undecodable, decode, from_array

log = logging.getLogger(__name__)

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # that torchvision looks for
_ENDING_OF = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
_NAMED = 5


def encoded(content: Content) -> tuple[bytes, str]:
    """The bytes of an image file and its ending: as it is where other tools know the format, else as PNG.

    Raises:
        Undecodable: it cannot be read.
    """
    if isinstance(content, Exception):
        raise Undecodable(str(content)) from content
    if isinstance(content, bytes):
        ending = _ENDING_OF.get(_format(content))
        if ending is not None:
            return content, ending
    stream = io.BytesIO()
    (decode(content) if isinstance(content, bytes) else from_array(content)).save(stream, "PNG")
    return stream.getvalue(), ".png"


def _format(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format or ""
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


class Unreadable:
    """Images that could not be read, counted and named."""

    def __init__(self) -> None:
        self._count, self._named = 0, list[str]()

    def readable(self, labels: pa.Table, contents: Iterator[Content]) -> Iterator[tuple[int, bytes, str]]:
        """(row of `labels`, bytes, ending) for each image that can be read."""
        for row, content in enumerate(contents):
            try:
                yield row, *encoded(content)
            except Undecodable as error:
                self._count += 1
                if len(self._named) < _NAMED:
                    self._named.append(f"{labels['image_id'][row].as_py()} ({error})")

    def report(self) -> None:
        """Say which they are, if there are any."""
        if self._count:
            log.warning("%d images cannot be read now and are left out: %s", self._count, "; ".join(self._named))
