"""A small file does not take a machine's memory: limits hold before a pixel is decoded, at every door."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from coreg_ray.images import limits
from coreg_ray.images.coerce import pixel_batches
from coreg_ray.images.decode import Fit, Undecodable, decode, from_array, upright_rgb
from coreg_ray.images.limits import MAX_BYTES, MAX_PIXELS, light_png

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(columns: int, rows: int, bits: int, colour: int, samples: int, *extra: bytes) -> bytes:
    """A PNG of zeros, whole and well compressed."""
    row = b"\0" * (1 + columns * samples * bits // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, colour, 0, 0, 0))
    return PNG + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def refusal(content: bytes) -> str:
    with pytest.raises(Undecodable) as error:
        decode(content)
    return str(error.value)


@pytest.mark.parametrize("door", ["bytes", "path", "image"])
def test_every_door_refuses_what_would_take_too_much(tmp_path: Path, monkeypatch: Any, door: str) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 4 * 50 * 50)
    content = encoded(Image.new("RGBA", (50, 50)), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    given = {"bytes": content, "path": tmp_path / "a.png", "image": Image.open(io.BytesIO(content))}[door]
    with pytest.raises(ValueError, match=r"50 x 50 pixels in the form PNG RGBA take .* make it smaller"):
        list(pixel_batches([given], Fit.square(8), 1))
    assert len(list(pixel_batches([encoded(Image.new("RGB", (50, 50)), "PNG")], Fit.square(8), 1))) == 1


def test_arrays_have_the_limit_of_files(monkeypatch: Any) -> None:
    wide = np.broadcast_to(np.uint8(0), (MAX_PIXELS // 1000 + 1, 1000))
    with pytest.raises(Undecodable, match="the limit is 80000000"):
        from_array(wide)
    with pytest.raises(ValueError, match="the limit is 80000000"):
        list(pixel_batches(wide, Fit.square(8), 1))


@pytest.mark.parametrize(
    ("kind", "mode", "bytes_a_pixel"),
    [
        ("PNG", "RGB", 4), ("PNG", "L", 5), ("PNG", "RGBA", 8), ("PNG", "I;16", 6), ("JPEG", "RGB", 4),
        ("progressive", "RGB", 7), ("WEBP", "RGB", 16), ("TIFF", "RGB", 7), ("TIFF", "F", 12), ("GIF", "P", 5),
    ],
)  # fmt: skip
def test_what_decoding_takes_is_known_from_the_header(
    monkeypatch: Any, kind: str, mode: str, bytes_a_pixel: int
) -> None:
    options = {"progressive": True} if kind == "progressive" else {}
    content = encoded(Image.new(mode, (40, 40)), "JPEG" if options else kind, **options)
    monkeypatch.setattr(limits, "MAX_BYTES", 1600 * bytes_a_pixel)
    decode(content)
    monkeypatch.setattr(limits, "MAX_BYTES", 1600 * bytes_a_pixel - 1)
    assert "take 0 MB to decode; the limit is" in refusal(content)


def test_a_tiff_of_few_pixels_in_a_large_tile_is_refused() -> None:
    tile = zlib.compress(b"\0" * 1000)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 8, 325: len(tile)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    place = 8 + len(tile)
    content = b"II*\0" + struct.pack("<I", place) + tile + struct.pack("<H", len(tags)) + directory + b"\0" * 4
    assert "MB to decode; the limit is" in refusal(content)


def test_an_icon_is_as_large_as_the_image_in_it() -> None:
    inner = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 6, 0, 0, 0))
    inner += chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22) + inner
    assert "12000 x 12000 pixels; the limit is" in refusal(icon)


def test_texts_profiles_and_frames_of_a_png_are_left_out_and_what_turns_it_is_not() -> None:
    large = zlib.compress(b"x" * 1_000_000)
    texts = [chunk(b"zTXt", b"note%d\0\0" % n + large) for n in range(60)]
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(b"y" * 5_000_000))
    content = png(6, 4, 8, 2, 3, profile, *texts)
    assert len(light_png(content)) < 200
    assert decode(content).size == (6, 4)
    info = PngImagePlugin.PngInfo()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", xmp)
    info.add_text("note", "x")
    turned = encoded(Image.new("RGB", (6, 4)), "PNG", pnginfo=info)
    assert b"note" not in light_png(turned)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).size == (4, 6)
    assert decode(turned).size == (4, 6)


def test_only_the_first_frame_of_a_png_is_kept() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert b"fdAT" not in light_png(content)
    assert decode(content).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("content", [PNG, PNG + b"\0\0", PNG + b"\xff\xff\xff\xffIHDR", b"GIF89a"])
def test_what_is_no_whole_png_stays_as_it_is(content: bytes) -> None:
    assert light_png(content) == content
    refusal(content)


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA", "PA", "P"])
def test_images_of_many_bands_become_what_they_did_in_one(monkeypatch: Any, mode: str) -> None:
    noise = np.random.default_rng(0)
    image: Image.Image
    if mode == "I;16":
        image = Image.fromarray(noise.integers(0, 65536, (37, 23), dtype=np.uint16))
    elif mode in ("I", "F"):
        image = Image.fromarray((noise.standard_normal((37, 23)) * 60000).astype(np.int32 if mode == "I" else "f4"))
    else:
        image = Image.fromarray(noise.integers(0, 256, (37, 23, 4), dtype=np.uint8), "RGBA")
        image = image.convert("LA").convert(mode) if mode != "P" else image.convert("RGB").quantize(9)
    if mode == "P":
        image.info["transparency"] = 3
    whole = np.asarray(upright_rgb(image))
    monkeypatch.setattr("coreg_ray.images.decode._BAND", 100)
    np.testing.assert_array_equal(np.asarray(upright_rgb(image)), whole)
    if mode in ("I;16", "I"):
        grey = (np.asarray(image, np.float64) / 65535).clip(0, 1)
        np.testing.assert_array_equal(whole[..., 0], np.round(grey * 255).astype(np.uint8))


MEASURE = """
import resource, sys
from coreg_ray.images.decode import Undecodable, decode
content = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(content)
except Undecodable as reason:
    pass
sys.stdout.write(str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone")
@pytest.mark.parametrize(("bits", "colour", "samples"), [(16, 0, 1), (16, 6, 4), (16, 4, 2), (8, 2, 3)])
def test_eighty_megapixels_in_a_small_file_take_no_gigabytes(
    tmp_path: Path, bits: int, colour: int, samples: int
) -> None:
    content = png(8_900, 8_900, bits, colour, samples)
    assert len(content) < 1_000_000
    (tmp_path / "a.png").write_bytes(content)
    words = [sys.executable, "-c", MEASURE, str(tmp_path / "a.png")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=True)
    assert int(done.stdout) < 1.3 * MAX_BYTES / 2**20
