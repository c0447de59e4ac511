"""What one image may take in memory, known from its header before a pixel is decoded.

A file of some kilobytes can claim gigabytes: in pixels, in bytes for each of them, in further frames, in compressed
texts. So the first frame alone is decoded, at its largest moment within MAX_BYTES, and of a PNG's texts only those stay
that may say which way is up.
"""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import Image

MAX_PIXELS = 80_000_000  # files that claim more are taken for decompression bombs
# Of all that decoding holds at once: 80 megapixels of RGB or 16-bit grey, 65 of RGBA. Turning one takes a copy more.
MAX_BYTES = 520_000_000

_RESULT = 4  # bytes a pixel of an RGB image: Pillow keeps four, as in all modes but those below
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_BESIDE = {  # bytes a pixel that a format's decoder holds beside the image
    "WEBP": 12,  # two canvases of four channels, and the frame
    "AVIF": 6,  # planes with colours at half the resolution, and the frame
    "HEIF": 6,
    "JPEG2000": 16,  # 32 bits for each of up to four channels
    "ICNS": 16,  # which holds such images
    "DDS": 4,
    "PSD": 4,
    "TGA": 4,
}
_PNG, _JP2 = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x0cjP  "
_ICONS = (b"\0\0\1\0", b"\0\0\2\0", b"icns")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTING = (b"XML:com.adobe.xmp\x00", b"Raw profile type exif\x00")  # texts that may turn a picture
_UNUSED = (b"iCCP", b"acTL", b"fcTL", b"fdAT")  # colour profiles, which nothing here applies, and further frames
_TILE_WIDTH, _TILE_HEIGHT, _BITS = 322, 323, 258  # tags of TIFF


class TooLarge(ValueError):
    """An image that would take more memory than one may; the message says how much, and the limit."""


def check_size(image: Image.Image) -> None:
    """Raises TooLarge where decoding an opened image would take more than MAX_PIXELS or MAX_BYTES."""
    check_pixels(*image.size)
    tags = getattr(image, "tag_v2", None) or {} if image.format == "TIFF" else {}
    pixels = max(image.width * image.height, _number(tags.get(_TILE_WIDTH)) * _number(tags.get(_TILE_HEIGHT)))
    cost = pixels * _bytes_a_pixel(image, tags)
    if cost > MAX_BYTES:
        raise TooLarge(
            f"{image.width} x {image.height} pixels in the form {image.format or 'array'} {image.mode} take "
            f"{cost / 1e6:.0f} MB to decode; the limit is {MAX_BYTES / 1e6:.0f} MB, so make it smaller"
        )


def check_pixels(columns: int, rows: int) -> None:
    """Raises TooLarge for an image of more than MAX_PIXELS."""
    if columns * rows > MAX_PIXELS:
        raise TooLarge(f"{columns} x {rows} pixels; the limit is {MAX_PIXELS}, so make it smaller")


def _bytes_a_pixel(image: Image.Image, tags: dict[int, object]) -> int:
    held = _STORED.get(image.mode, 4) + (_RESULT if image.mode != "RGB" else 0)
    if image.format == "TIFF":
        bits = tags.get(_BITS, 8)
        samples = bits if isinstance(bits, tuple) else (bits,)
        return held + max(1, sum(map(_number, samples)) // 8)
    if image.format in ("JPEG", "MPO") and (image.info.get("progressive") or image.info.get("progression")):
        return held + _coefficients(image)
    return held + _BESIDE.get(image.format or "", 0)


def _coefficients(image: Image.Image) -> int:
    """Bytes a pixel of what a progressive JPEG keeps until its last scan: 16 bits for each sample."""
    factors = [(layer[1], layer[2]) for layer in getattr(image, "layer", ())] or [(1, 1)] * 3
    largest = max(across for across, _ in factors) * max(down for _, down in factors)
    return -(-2 * sum(across * down for across, down in factors) // max(1, largest))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def check_inner(content: bytes) -> None:
    """Raises TooLarge where an icon holds an image that is: Pillow decodes that one as soon as it opens the icon."""
    if not content.startswith(_ICONS):
        return
    for mark in (_PNG, _JP2):
        place = content.find(mark)
        while place >= 0:
            with Image.open(BytesIO(content[place:]), formats=["PNG", "JPEG2000"]) as inner:
                check_size(inner)
            place = content.find(mark, place + 1)


def light_png(content: bytes) -> bytes:
    """A PNG without what may grow when it is opened and is not needed: texts, colour profiles, further frames.

    Anything else, and a PNG that is not well formed, stays as it is.
    """
    if not content.startswith(_PNG):
        return content
    view, kept, place = memoryview(content), [], len(_PNG)
    once: set[bytes] = set()
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind, end = content[place + 4 : place + 8], place + 12 + length
        if end > len(content):
            break
        keep = kind not in _UNUSED
        if kind in _TEXTS:
            name = next((name for name in _ORIENTING if view[place + 8 : place + 8 + len(name)] == name), b"")
            keep = bool(name) and name not in once
            once.add(name)
        if keep:
            kept.append(view[place:end])
        place = end
        if kind == b"IEND":
            break
    if sum(map(len, kept)) == place - len(_PNG):
        return content
    return b"".join((_PNG, *kept, view[place:]))
