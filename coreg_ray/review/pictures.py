"""The pictures of a review list, read from the run's source when they are asked for, and not kept.

Only images that the list names and that the source lists are read, so nothing else of a disk can be reached.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images import open_source
from coreg_ray.images.base import Content, Source
from coreg_ray.images.decode import Undecodable, decode, from_array

log = logging.getLogger(__name__)

LARGEST = 2048  # pixels a side of what is made anew; more than a screen shows
AS_STORED = 12_000_000  # bytes; a browser gets larger files made anew
_SMALL = 40_000  # bytes; a file as small as that is its own thumbnail
_PNG_SIDE = 128  # pixels; small pictures are handed on without loss
_QUALITY = 88


class Gone(LookupError):
    """A picture that cannot be shown; the message is a sentence for the page."""


@dataclass(frozen=True)
class Picture:
    """What a browser gets: encoded bytes, and their media type."""

    content: bytes
    kind: str


class Pictures:
    """The pictures of N images by their place in the list. The source is listed once, in a thread of its own."""

    def __init__(self, config: Config | None, ids: Sequence[str]) -> None:
        self._config = config
        self._ids = list(ids)
        self._places: dict[str, tuple[pa.Table, int]] = {}  # id -> block of the listing, row in it
        self._source: Source | None = None
        self._problem: str | None = None
        self._over = False
        self._news = threading.Condition()
        threading.Thread(target=self._list, daemon=True, name="listing of the source").start()

    def read(self, number: int, side: int | None = None) -> Picture:
        """One picture as it is stored, or made anew where browsers do not know its form or it is larger than `side`.

        Raises:
            Gone: it is not in the source any more, or cannot be read or decoded.
        """
        name = self._ids[number]
        row, source = self._find(name)
        try:
            content = next(iter(source.fetch(row)), None)
        except (UserError, OSError) as error:
            raise Gone(f"{name} cannot be read any more ({error}).") from error
        if content is None:
            raise Gone(f"{name} is no longer where it was when the run was made.")
        if isinstance(content, Exception):
            raise Gone(f"{name} cannot be read any more ({content}). It may have been moved or removed.")
        try:
            return _as_browsers_take_it(content, side)
        except Undecodable as error:
            raise Gone(f"{name} cannot be shown: {error}.") from error

    def close(self) -> None:
        """Let nobody wait for the listing any longer."""
        with self._news:
            self._over = True
            self._news.notify_all()

    def _find(self, name: str) -> tuple[pa.Table, Source]:
        """Where an image lies; waits for the listing to come to it."""
        with self._news:
            self._news.wait_for(lambda: self._over or name in self._places)
            place, source, problem = self._places.get(name), self._source, self._problem
        if place is None or source is None:
            reason = f": {problem}" if problem else ""
            raise Gone(f"{name} is no longer in the source that this run was made from{reason}.")
        block, row = place
        return block.slice(row, 1), source

    def _list(self) -> None:
        try:
            if self._config is None:
                raise UserError("the run has no config.yaml, so nobody knows where its images lie")
            source = open_source(self._config, "pool")
            wished = pa.array(self._ids, pa.string())
            for block in source.listing():
                part = block.filter(pc.is_in(block["image_id"], value_set=wished))
                places = {name: (part, row) for row, name in enumerate(part["image_id"].to_pylist())}
                with self._news:
                    self._source = source
                    self._places |= places
                    self._news.notify_all()
                if self._over or len(self._places) == len(self._ids):
                    break
            missing = len(self._ids) - len(self._places)
            if missing:
                log.warning("%d of %d images are no longer in the source", missing, len(self._ids))
        except Exception as error:  # readers raise anything; the page says it at each picture
            self._problem = str(error).rstrip(".")
            log.warning("the images cannot be read: %s", self._problem)
        finally:
            with self._news:
                self._over = True
                self._news.notify_all()


def _as_browsers_take_it(content: Content, side: int | None) -> Picture:
    """Encoded bytes for a browser. Raises Undecodable."""
    if isinstance(content, bytes):
        kind = _kind(content)
        if kind is not None and len(content) <= (AS_STORED if side is None else _SMALL):
            return Picture(content, kind)
        image = decode(content)
    else:
        assert isinstance(content, np.ndarray)
        image = from_array(content)
    small, most = max(image.size) <= _PNG_SIDE, min(side or LARGEST, LARGEST)
    if max(image.size) > most:
        image.thumbnail((most, most), Image.Resampling.BICUBIC, reducing_gap=2.0)
    stream = io.BytesIO()
    if small:
        image.save(stream, "PNG")
        return Picture(stream.getvalue(), "image/png")
    image.save(stream, "JPEG", quality=_QUALITY)
    return Picture(stream.getvalue(), "image/jpeg")


def _kind(content: bytes) -> str | None:
    """The media type of a form that all browsers show; None: another form."""
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return None
