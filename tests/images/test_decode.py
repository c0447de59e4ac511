"""Any image file becomes RGB of a fixed size, or a reason why not."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coreg_ray.images.decode import Fit, Undecodable, decode, from_array


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(columns: int = 40, rows: int = 30) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "F", "LAB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("RGB", (8, 6), (128, 128, 128))
    special = {
        "I;16": lambda: Image.fromarray(np.full((6, 8), 128 * 257, np.uint16)),
        "F": lambda: Image.fromarray(np.full((6, 8), 128 / 255, np.float32)),
        "LAB": lambda: Image.new("LAB", (8, 6), (128, 128, 128)),
        "P": lambda: grey.quantize(4),
    }
    image = special.get(mode, lambda: grey.convert(mode))()
    kind = {"F": "TIFF", "CMYK": "TIFF", "LAB": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    content = encoded(image, kind)
    decoded = decode(content)
    assert decoded.mode == "RGB"
    assert decoded.size == (8, 6)
    if mode not in ("1", "LAB"):
        assert np.abs(np.asarray(decoded).astype(int) - 128).max() <= 3


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(decode(encoded(clear))).min() == 255
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0] * 256)
    assert np.asarray(decode(encoded(palette, transparency=0))).min() == 255


def test_exif_rotation_is_respected() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the file's columns are the picture's rows
    assert decode(encoded(picture(40, 30), "JPEG", exif=exif)).size == (30, 40)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(content).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_files_are_refused(kind: str) -> None:
    content = encoded(picture(), kind)
    with pytest.raises(Undecodable):
        decode(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am text", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "broken|not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason):
        decode(content)


def bomb(side: int) -> bytes:
    """A PNG header that claims side x side pixels, with hardly any data behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_a_hundred_megapixels_are_refused_before_they_are_decoded(side: int) -> None:
    with pytest.raises(Undecodable, match="pixels; the limit is"):
        decode(bomb(side))


def test_programs_are_not_run() -> None:
    with pytest.raises(Undecodable, match="not an image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(40, 30), (30, 41), (64, 64), (17, 200)])
def test_fit_equals_open_clips_transform(mode: Any, size: tuple[int, int]) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = PreprocessCfg(size=24, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode)
    expected = (
        (image_transform_v2(settings, is_train=False)(picture(*size)) * 255).round().byte().permute(1, 2, 0).numpy()
    )
    fitted = Fit(24, 24, mode)(picture(*size))
    assert fitted.shape == (24, 24, 3)
    np.testing.assert_array_equal(fitted, expected)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 1)])
def test_strips_neither_fail_nor_fill_the_memory(size: tuple[int, int]) -> None:
    assert Fit.square(224)(Image.new("RGB", size, "red")).shape == (224, 224, 3)


def test_arrays_are_checked() -> None:
    assert from_array(np.zeros((4, 5), np.uint8)).size == (5, 4)
    assert from_array(np.zeros((4, 5, 1), np.uint8)).mode == "RGB"
    for wrong in (np.zeros((4, 5), np.float32), np.zeros((4, 5, 2), np.uint8), np.zeros((0, 5), np.uint8)):
        with pytest.raises(Undecodable):
            from_array(wrong)
