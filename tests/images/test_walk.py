"""What lies below a folder: each file once, hidden and tool-made ones apart, and the rest told in a few lines."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from coreg_ray.annotation.preparation import take_listing
from coreg_ray.errors import UserError
from coreg_ray.images.decode import Undecodable, decode, extensions
from coreg_ray.images.folder import ImageFolder, is_image_name
from coreg_ray.images.notes import ListingNotes, is_tool_made
from coreg_ray.images.parquet import ParquetImages
from coreg_ray.images.walk import Walk, walk
from coreg_ray.images.webdataset import TarShards
from coreg_ray.run.storage import Folder

NAMES = {"cat": 0, "dog": 1}


def png(level: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())


def listed(source: Any) -> tuple[list[str], ListingNotes]:
    """Ids, and what a listing has to tell."""
    listing, ids = take_listing(source, None), []
    while True:
        try:
            ids += next(listing)["image_id"].to_pylist()
        except StopIteration as end:
            return ids, end.value


def test_links_that_lead_in_circles_list_each_image_once(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "cat/up").symlink_to(tmp_path)
    (tmp_path / "dog/across").symlink_to(tmp_path / "cat")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "hole").symlink_to(tmp_path / "no folder")
    ids, notes = listed(ImageFolder.at(str(tmp_path)))
    assert ids == ["cat/a.png", "dog/b.png"]
    assert (notes.dangling, notes.again) == (3, 2)
    assert "3 links lead nowhere and are left out" in notes.lines()[0]
    assert "2 links lead to folders that are listed already" in notes.lines()[1]


def test_linked_folders_and_files_are_listed_under_the_names_they_have_here(tmp_path: Path) -> None:
    outside, pool = tmp_path / "outside", tmp_path / "pool"
    put(outside, "a.png", "deep/b.png")
    put(pool, "z/own.png")
    (outside / "back").symlink_to(pool)
    for name in ("x", "y"):
        (pool / name).symlink_to(outside)
    (pool / "one.png").symlink_to(outside / "a.png")
    (pool / "two.png").symlink_to(pool / "z/own.png")
    ids, notes = listed(ImageFolder.at(str(pool)))
    assert ids == ["one.png", "two.png", "x/a.png", "x/deep/b.png", "z/own.png"]
    assert notes.again == 2
    assert listed(ImageFolder.at(str(pool)))[0] == ids


def test_tables_behind_circles_are_listed_once_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": [png()]}), tmp_path / "data/a.parquet")
    (tmp_path / "data/up").symlink_to(tmp_path)
    (tmp_path / "b.parquet").symlink_to(tmp_path / "nowhere.parquet")
    ids, notes = listed(ParquetImages.at(str(tmp_path), None))
    assert (ids, notes) == (["data/a.parquet:0"], ListingNotes(dangling=1, again=1))


def test_a_folder_that_must_not_be_read_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    put(tmp_path, "shut/a.png")
    scan = os.scandir

    def shut(path: str) -> Any:
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", shut)
    with pytest.raises(UserError, match=r"shut cannot be read \(Permission denied\); allow it or move it"):
        walk(Folder.at(tmp_path))


def test_nothing_lies_where_no_folder_is(tmp_path: Path) -> None:
    assert walk(Folder.at(tmp_path / "nowhere")) == Walk()


TOOLS = (
    ".ipynb_checkpoints/a-checkpoint.png", "cat/@eaDir/a.png/SYNOFILE_THUMB_M.png", "__MACOSX/cat/._a.png",
    ".Trash-1000/files/b.png", "cat/._a.png", ".hidden.png", "Thumbs.db", "cat/.DS_Store", "$RECYCLE.BIN/c.png",
    "lost+found/d.png", "#recycle/e.png", "Desktop.ini",
)  # fmt: skip


@pytest.mark.parametrize("labelled", [True, False])
def test_hidden_and_tool_made_files_are_neither_images_nor_classes(tmp_path: Path, labelled: bool) -> None:
    put(tmp_path, "cat/a.png", "dog/b.png", *TOOLS)
    ids, notes = listed(ImageFolder.at(str(tmp_path), NAMES if labelled else None))
    assert ids == ["cat/a.png", "dog/b.png"]
    assert notes.lines() == ["12 hidden or tool-made files (.ipynb_checkpoints, Thumbs.db, ...) are left out"]
    assert all(map(is_tool_made, TOOLS))
    assert not any(map(is_tool_made, ("./cat/a.png", "../b.png", "a..b.png", "_cat/c.png", "macosx/d.png")))


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    put(tmp_path, ".cache/pool/a.png")
    assert listed(ImageFolder.at(str(tmp_path / ".cache/pool")))[0] == ["a.png"]
    assert listed(ImageFolder.at(f"{tmp_path}/.cache/pool/*.png"))[0] == ["a.png"]


def test_what_writers_put_beside_tables_is_left_out(tmp_path: Path) -> None:
    for name in ("a.parquet", "B.PARQUET"):
        pq.write_table(pa.table({"image": [png()]}), tmp_path / name)
    for name in (
        "._a.parquet",
        "_metadata",
        "_common_metadata",
        "_SUCCESS",
        ".a.parquet.crc",
        "_temporary/0/c.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no table")
    assert listed(ParquetImages.at(str(tmp_path), None))[0] == ["B.PARQUET:0", "a.parquet:0"]
    with tarfile.open(tmp_path / "A.TAR", "w") as tar:
        for name in ("x.png", "._x.png", "__MACOSX/x.png", "y.cr2", "x.json"):
            entry = tarfile.TarInfo(name)
            entry.size = len(png())
            tar.addfile(entry, io.BytesIO(png()))
    (tmp_path / "._A.TAR").write_bytes(b"no tar")
    ids, notes = listed(TarShards.at(str(tmp_path), None))
    assert ids == ["A.TAR/x.png"]
    assert (notes.tool_made, notes.left_out) == (2 + 7, {".cr2": 1})


def test_files_left_out_are_counted_by_ending_with_the_remedy(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.CR2", "c.cr2", "d.jxl", "e.svg", "f.pdf", "g", "h.txt", "i.txt", "j.eps")
    (line,) = listed(ImageFolder.at(str(tmp_path)))[1].lines()
    assert line.startswith("9 files do not have the name of an image and are left out: 2 .cr2 (a camera's raw form:")
    assert "1 .svg (no picture of pixels: export it as PNG)" in line
    assert "1 without an ending (give it an ending such as .jpg)" in line
    assert "2 .txt" in line
    many = ListingNotes({f".x{number}": 1 for number in range(20)} | {".heic": 1})
    assert many.lines()[0].startswith(
        "21 files do not have the name of an image and are left out: 1 .heic (pip install"
    )
    assert many.lines()[0].endswith(", 13 of 13 other kinds")


def test_a_folder_of_nothing_but_such_files_says_what_they_are(tmp_path: Path) -> None:
    put(tmp_path, "a.cr2", "b.cr2", ".DS_Store")
    with pytest.raises(UserError, match=r"holds no image \(2 files .* 2 \.cr2 \(a camera's raw form: export it"):
        listed(ImageFolder.at(str(tmp_path)))


@pytest.mark.parametrize("name", ["a.mpo", "a.JPG", "a.jfif", "a.webp", "a.bmp"])
def test_names_that_pillow_can_read_are_images(name: str) -> None:
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["a.eps", "a.pdf", "a.h5", "a.grib", "a.mpg", "a.wmf", "a.palm", "a", "png"])
def test_names_of_what_nobody_reads_are_none(name: str) -> None:
    assert not is_image_name(name)


def test_two_pictures_in_one_file_of_a_camera_are_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    assert listed(ImageFolder.at(str(tmp_path)))[0] == ["a.mpo"]
    red, _, blue = decode((tmp_path / "a.mpo").read_bytes()).getpixel((4, 3))  # type: ignore[misc]
    assert red > 200 > 50 > blue


def test_avif_is_read_where_pillow_can(tmp_path: Path) -> None:
    assert (".avif" in extensions()) == features.check("avif")
    if features.check("avif"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / "a.avif")
        assert decode((tmp_path / "a.avif").read_bytes()).size == (8, 6)


def test_heic_is_read_where_its_plugin_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (8, 6), "red")).save(tmp_path / "a.heic")
    assert listed(ImageFolder.at(str(tmp_path)))[0] == ["a.heic"]
    assert decode((tmp_path / "a.heic").read_bytes()).size == (8, 6)
    with pytest.raises(Undecodable):
        decode((tmp_path / "a.heic").read_bytes()[:200])


@pytest.mark.cluster
def test_what_a_listing_leaves_out_reaches_the_terminal_once(
    tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    from coreg_ray.cluster.listing import Listing

    put(tmp_path, "a.png", "b.png", "c.heic.cr2", ".DS_Store")
    with caplog.at_level(logging.INFO):
        listing = Listing(ImageFolder.at(str(tmp_path)), None)
        assert listing.images == 2
        assert len(listing.blocks) == 1
    lines = [record.message for record in caplog.records if "left out" in record.message]
    assert len(lines) == 2
    assert "1 .cr2 (a camera's raw form" in lines[0]
