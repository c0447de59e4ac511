"""Sources list what there is without reading pixels, and read any block alone."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs

from coreg_ray.annotation.labels import read_labels
from coreg_ray.annotation.preparation import sorted_rows, take_listing
from coreg_ray.config import Config
from coreg_ray.embedded.digits import digits
from coreg_ray.errors import UserError
from coreg_ray.ids import held_out, row_number, row_numbers
from coreg_ray.images import open_source
from coreg_ray.images.base import Source
from coreg_ray.images.folder import ImageFolder
from coreg_ray.images.huggingface import HuggingFaceSet
from coreg_ray.images.torchvision import in_test
from coreg_ray.images.webdataset import TarShards
from coreg_ray.run.storage import Folder

NAMES = {"cat": 0, "kitty": 0, "dog": 1}
COLUMNS = ("image", "image_id", "label")


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def opened(kind: str, path: Path | str, split: Any = "pool", **source: Any) -> Source:
    section = {"kind": kind, "path": str(path), "classes": ["cat", "dog"], **source}
    test = {"kind": kind, "path": str(path)}
    return open_source(Config(source=section, test=test), split, NAMES)


def contents(source: Source) -> dict[str, Any]:
    return {
        i: c
        for block in source.listing()
        for i, c in zip(block["image_id"].to_pylist(), source.fetch(block), strict=True)
    }


def labels(source: Source) -> dict[str, Any]:
    return {
        i: c
        for block in source.listing()
        for i, c in zip(block["image_id"].to_pylist(), block["label"].to_pylist(), strict=True)
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, level in (("cat/a.png", 1), ("cat/deep/b.PNG", 2), ("dog/ä ö.png", 3), ("dog/" + "x" * 250 + ".png", 4)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(level))
    (tmp_path / "dog/notes.txt").write_text("not an image")
    (tmp_path / "dog/.hidden.png").write_bytes(png(9))
    return tmp_path


def test_folder_ids_are_relative_paths_and_labels_only_where_asked_for(tree: Path) -> None:
    listed = contents(opened("folder", tree))
    assert sorted(listed) == sorted(["cat/a.png", "cat/deep/b.PNG", "dog/ä ö.png", "dog/" + "x" * 250 + ".png"])
    assert listed["dog/ä ö.png"] == png(3)
    assert set(labels(opened("folder", tree)).values()) == {None}
    assert labels(opened("folder", tree, folder_labels=True))["cat/deep/b.PNG"] == 0
    assert labels(opened("folder", tree, "test"))["dog/ä ö.png"] == 1


def test_globs_choose_files(tree: Path) -> None:
    assert sorted(contents(opened("folder", f"{tree}/*/a.*"))) == ["cat/a.png"]


def test_a_name_that_looks_like_a_glob_is_taken_as_it_stands_where_it_exists(tree: Path) -> None:
    odd = tree / "birds [2020]?"
    (tree / "dog").rename(odd)
    assert "ä ö.png" in contents(opened("folder", odd))
    assert list(contents(opened("folder", f"{odd}/[ä]*.png"))) == ["ä ö.png"]
    assert list(contents(opened("folder", f"{tree}/[c]at/*.png"))) == ["cat/a.png"]
    pq.write_table(pa.table({"image": [png(1)]}), odd / "a[1].parquet")
    assert list(contents(opened("parquet", odd / "a[1].parquet"))) == ["a[1].parquet:0"]


@pytest.mark.parametrize(("local", "most"), [(True, 4), (False, 4 + 2 * 8)])
def test_reading_stays_a_few_files_ahead(tmp_path: Path, monkeypatch: Any, local: bool, most: int) -> None:
    for number in range(60):
        (tmp_path / f"{number:02d}.png").write_bytes(png(number))
    read: list[str] = []

    def counted(folder: Folder, name: str) -> bytes:
        read.append(name)
        return (tmp_path / name).read_bytes()

    monkeypatch.setattr(Folder, "read", counted)
    disk = fs.LocalFileSystem()
    source = ImageFolder(
        Folder(disk, str(tmp_path)) if local else Folder(fs.SubTreeFileSystem(str(tmp_path), disk), "")
    )
    content = source.fetch(next(iter(source.listing())))
    assert [next(content) for _ in range(4)] == [png(number) for number in range(4)]
    time.sleep(0.2)
    assert 4 <= len(read) <= most
    assert list(content) == [png(number) for number in range(4, 60)]


def test_a_file_url_is_a_path(tree: Path) -> None:
    assert contents(opened("folder", f"file://{tree}")) == contents(opened("folder", tree))


def test_a_vanished_file_is_an_answer_not_a_crash(tree: Path) -> None:
    source = opened("folder", tree)
    blocks = list(source.listing())
    (tree / "cat/a.png").unlink()
    assert isinstance(next(iter(source.fetch(blocks[0]))), OSError)


def test_folders_without_images_or_with_strange_labels_are_refused(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        list(opened("folder", tmp_path / "empty").listing())
    with pytest.raises(UserError, match="does not exist"):
        opened("folder", tmp_path / "nowhere")
    (tree / "bird").mkdir()
    (tree / "bird/c.png").write_bytes(png(5))
    with pytest.raises(UserError, match=r"'bird' of bird/c\.png is not among the 2 classes"):
        list(opened("folder", tree, "test").listing())


def test_a_name_that_is_no_text_is_refused_and_shown(tree: Path) -> None:
    try:
        (Path(os.fsdecode(os.fsencode(tree) + b"/\xe9.png"))).write_bytes(png(1))
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(UserError, match=r"xe9\.png.* is not UTF-8; rename that file"):
        list(opened("folder", tree).listing())


@pytest.mark.parametrize("form", ["bytes", "struct", "tensor", "lists"])
def test_parquet_images_in_every_form(tmp_path: Path, form: str) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (700, 3, 2, 3), dtype=np.uint8)
    column: Any = [png(i % 256) for i in range(700)]
    if form == "struct":
        column = pa.array([{"bytes": value, "path": None} for value in column])
    if form == "tensor":
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(arrays)
    if form == "lists":
        column = pa.array(arrays.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    pq.write_table(pa.table({"image": column, "label": ["dog"] * 700}), tmp_path / "a.parquet", row_group_size=300)
    listed = contents(opened("parquet", tmp_path))
    assert len(listed) == 700
    expected = png(650 % 256) if form in ("bytes", "struct") else arrays[650]
    np.testing.assert_array_equal(listed["a.parquet:650"], expected)
    assert set(labels(opened("parquet", tmp_path / "a.parquet")).values()) == {1}


def test_odd_cells_are_answers_and_columns_of_other_things_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    cells = [[[1, 2], [3, 4]], [[1, 2], [3, 300]], [[1, 2], [3]], None, [[5, 6], [7, 8]]]
    pq.write_table(pa.table({"image": pa.array(cells, pa.list_(pa.list_(pa.int64())))}), file)
    first, beyond, ragged, missing, last = contents(opened("parquet", tmp_path)).values()
    np.testing.assert_array_equal([first, last], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    assert first.dtype == np.uint8
    assert "pixels from 1 to 300; they must lie in 0 to 255" in str(beyond)
    assert all(isinstance(cell, ValueError) for cell in (beyond, ragged, missing))
    for column in (["a.png"], [[[0.5, 1.0]]], [3]):
        pq.write_table(pa.table({"image": pa.array(column)}), file)
        with pytest.raises(UserError, match=r"a.parquet holds .* in 'image'; images are encoded bytes, .* convert it"):
            opened("parquet", tmp_path)


def test_labels_are_not_looked_at_where_nobody_has_named_the_classes(tmp_path: Path, tree: Path) -> None:
    pq.write_table(pa.table({"image": [png(1)], "label": ["unicorn"]}), tmp_path / "a.parquet")
    for kind, path in (("parquet", tmp_path / "a.parquet"), ("folder", tree)):
        section = {"kind": kind, "path": str(path), "classes": ["cat", "dog"], "folder_labels": True}
        unnamed = open_source(Config(source=section), "pool")
        assert set(labels(unnamed).values()) == {None}


def test_parquet_blocks_are_read_sparsely(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [png(i) for i in range(9)], "image_id": list("abcdefghi")}), tmp_path / "a.parquet"
    )
    source = opened("parquet", tmp_path)
    block = next(iter(source.listing())).take([1, 5])
    assert list(source.fetch(block)) == [png(1), png(5)]


@pytest.mark.parametrize("label", [2, -1, "bird"])
def test_labels_outside_the_class_list_are_refused(tmp_path: Path, label: Any) -> None:
    pq.write_table(pa.table({"image": [png(1)], "label": [label]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"is not among the 2 classes"):
        list(opened("parquet", tmp_path).listing())


def test_parquet_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no Parquet file"):
        opened("parquet", tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        opened("parquet", tmp_path)
    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"no column 'image'.*picture"):
        opened("parquet", tmp_path)


def test_repeated_ids_are_refused_and_named(tmp_path: Path) -> None:
    labels = Folder.at(tmp_path / "labels")
    labels.write("labels.parquet", "of an earlier listing")
    (tmp_path / "pool").mkdir()
    for name in ("a", "b"):
        table = pa.table({"image": [png(1), png(2)], "image_id": ["same", name]})
        pq.write_table(table, tmp_path / f"pool/{name}.parquet")
    with pytest.raises(UserError, match="1 image_ids occur more than once, for example 'same'"):
        list(take_listing(opened("parquet", tmp_path / "pool"), labels))
    assert labels.read("labels.parquet") == b"of an earlier listing"


def test_a_listing_leaves_its_labels_behind(tmp_path: Path) -> None:
    table = pa.table({"image": [png(1), png(2), png(3)], "image_id": ["a", "b", "c"], "label": [1, None, 0]})
    file, folder = tmp_path / "a.parquet", Folder.at(tmp_path / "labels")
    pq.write_table(table, file)
    blocks = list(take_listing(opened("parquet", file), folder))
    assert all("label" not in block.column_names for block in blocks)
    assert sorted_rows(blocks).tolist() == sorted(row_numbers(["a", "b", "c"]).tolist())
    assert read_labels(folder).of(row_numbers(["a", "b", "c"])).tolist() == [1, -1, 0]
    pq.write_table(table.drop_columns(["label"]), file)
    list(take_listing(opened("parquet", file), folder))
    assert not folder.exists()  # those of an earlier listing do not stay


def test_webdataset_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        for name, content in (
            ("01.png", png(7)),
            ("01.cls", b"dog"),
            ("02.png", png(8)),
            ("02.cls", b"0"),
            ("03.png", png(9)),
            ("03.json", b"{}"),
            ("./v1.0/04.png", png(10)),
            ("./v1.0/04.cls", b"cat"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    source = opened("webdataset", f"{tmp_path}/s-*.tar")
    images = ("01.png", "02.png", "03.png", "./v1.0/04.png")
    assert contents(source) == {f"s-0.tar/{name}": png(7 + number) for number, name in enumerate(images)}
    truth = (1, 0, None, 0)
    assert labels(source) == {f"s-0.tar/{name}": label for name, label in zip(images, truth, strict=True)}
    (tmp_path / "s-1.tar").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="cannot be read as a tar file"):
        list(opened("webdataset", tmp_path).listing())


def test_class_numbers_in_shards_may_be_names(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("1.png", png(1)), ("1.cls", b"3\n"), ("2.png", png(2)), ("2.cls", b"0")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    named = {"1": 0, "2": 1, "3": 2}
    assert list(labels(TarShards.at(str(tmp_path), named)).values()) == [2, 0]
    assert list(labels(TarShards.at(str(tmp_path), None)).values()) == [None, None]
    with pytest.raises(UserError, match=r"label 3 of a.tar/1\.png is not among the 2 classes"):
        labels(TarShards.at(str(tmp_path), NAMES))


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in (1, 2)], "label": [1, 0]}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "set"))
    source = opened("huggingface", tmp_path / "set", classes=None)
    assert source.known_classes == ("cat", "dog")
    assert contents(source) == {"train/00000000": png(1), "train/00000001": png(2)}
    assert labels(source) == {"train/00000000": 1, "train/00000001": 0}
    turned = HuggingFaceSet.at(str(tmp_path / "set"), "train", COLUMNS, {"dog": 0, "puppy": 0, "cat": 1})
    assert labels(turned) == {"train/00000000": 0, "train/00000001": 1}
    renamed = HuggingFaceSet.at(str(tmp_path / "set"), "train", COLUMNS, {"felis catus": 0, "canis familiaris": 1})
    assert labels(renamed) == {"train/00000000": 1, "train/00000001": 0}
    with pytest.raises(UserError, match=r"classes cat, dog, ... of which 'cat' and 0 more are not among"):
        HuggingFaceSet.at(str(tmp_path / "set"), "train", COLUMNS, {"dog": 0, "felis catus": 1})
    with pytest.raises(UserError, match=r"has no split 'dev'; set source.name to one of train, test"):
        opened("huggingface", tmp_path / "set", name="dev")


def test_torchvision_sets_have_the_papers_names(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        folder = tmp_path / "gtsrb/GTSRB" / ("Training/00001" if split == "train" else "Final_Test/Images")
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 7), "blue").save(folder / f"{number}.ppm")
    (tmp_path / "gtsrb/GTSRB/Training/00000").mkdir()
    Image.new("RGB", (9, 7), "red").save(tmp_path / "gtsrb/GTSRB/Training/00000/0.ppm")
    (tmp_path / "gtsrb/GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;5\n1.ppm;6\n")
    source = opened("torchvision", tmp_path, name="gtsrb", classes=None)
    assert source.known_classes[5] == "German Traffic Sign: Speed limit 80"
    assert sorted(labels(source).values()) == [0, 1, 1, 1]
    assert contents(source)["gtsrb/train/000000"].shape == (7, 9, 3)
    with pytest.raises(UserError, match="use one of cifar10"):
        opened("torchvision", tmp_path, name="imagenet")
    with pytest.raises(UserError, match="SVHN cannot be read below"):
        opened("torchvision", tmp_path, name="svhn")


def test_sets_without_a_split_are_divided_by_a_rule_and_grey_ones_become_rgb(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "eurosat/2750" / ("Forest" if number % 2 else "River")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.jpg")
    train = contents(opened("torchvision", tmp_path, name="eurosat", classes=None))
    test = open_source(
        Config(
            source={"kind": "torchvision", "path": str(tmp_path), "name": "eurosat"},
            test={"kind": "torchvision", "path": str(tmp_path), "name": "eurosat"},
        ),
        "test",
    )
    assert sorted([*train, *contents(test)]) == [f"eurosat/{number:06d}" for number in range(40)]
    assert set(contents(test)) == {image_id for image_id in (*train, *contents(test)) if in_test(image_id)}
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 2)):
        pixels = np.full((count, 28, 28), 7, np.uint8).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + bytes(range(count)))
    fashion = {"kind": "torchvision", "path": str(tmp_path), "name": "fashion_mnist"}
    source = open_source(Config(source=fashion), "pool")
    assert labels(source) == {f"fashion_mnist/train/00000{number}": number for number in range(3)}
    assert contents(source)["fashion_mnist/train/000000"].shape == (28, 28, 3)
    assert len(source.known_classes) == 10


def test_digits_are_a_source() -> None:
    source = open_source(Config(test={"kind": "digits"}), "test")
    image_ids, images, truth = digits("test")
    assert labels(source) == dict(zip(image_ids, truth.tolist(), strict=True))
    np.testing.assert_array_equal(contents(source)[image_ids[7]], images[7])


def test_row_numbers_are_fixed_for_ever() -> None:
    assert row_number("cat/a.png") == 7468273022372850630
    ids = [f"image-{number}" for number in range(20_000)]
    rows = row_numbers(ids)
    assert len(set(rows.tolist())) == 20_000
    assert (rows >= 0).all()
    assert held_out(rows, 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert (rows % 2).mean() == pytest.approx(0.5, abs=0.02)
    assert np.mean([in_test(image_id) for image_id in ids]) == pytest.approx(0.2, abs=0.02)
