"""Labels: whole numbers or names, however these are typed; sets with numbers of their own follow the user's order."""

from __future__ import annotations

import io
import math
import struct
import tarfile
import unicodedata
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coreg_ray.annotation.manual import read_manual
from coreg_ray.annotation.vocabulary import Vocabulary, vocabulary
from coreg_ray.config import Config
from coreg_ray.embedded.digits import CLASS_NAMES, digits
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.images.digits import open_split as open_digits
from coreg_ray.images.folder import ImageFolder
from coreg_ray.images.labels import LabelReader, code_points, own_numbers, plain_name
from coreg_ray.images.parquet import ParquetImages, partitions
from coreg_ray.images.torchvision import TorchvisionSet
from coreg_ray.images.webdataset import TarShards

NAMES = {"café": 0, "hot dog": 1, "straße": 2}
CAFE = unicodedata.normalize("NFD", "café")


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def listed(source: Any) -> dict[str, Any]:
    return {
        i: label
        for block in source.listing()
        for i, label in zip(block["image_id"].to_pylist(), block["label"].to_pylist(), strict=True)
    }


def packed(path: Path, *files: tuple[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize(
    "label", [0.7, 1.7, -0.5, math.nan, math.inf, 2.0**40, 2**40, b"cat", [1], {"a": 1}, date(2024, 1, 1)]
)
@pytest.mark.parametrize("names", [NAMES, {}])
def test_labels_that_are_neither_text_nor_whole_numbers_are_refused(
    tmp_path: Path, names: dict[str, int], label: Any
) -> None:
    with pytest.raises(UserError, match=r"label .* of a\.png is a .*, neither text nor a whole number from 0"):
        LabelReader(names)(label, "a.png")
    pq.write_table(pa.table({"image": [png()], "label": [label]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"label .* of a\.parquet:0 is a .*, neither"):
        listed(ParquetImages.at(str(tmp_path), names))
    pq.write_table(pa.table({"image_id": ["a"], "label": [label]}), tmp_path / "labels.parquet")
    with pytest.raises(UserError, match="neither text nor a whole number"):
        read_manual(str(tmp_path / "labels.parquet"), Vocabulary((("cat",), ("dog",)), ("a {}",)))


def test_whole_numbers_are_labels_however_they_are_stored() -> None:
    assert [LabelReader(NAMES)(label, "a") for label in (1, 1.0, True, None)] == [1, 1, 1, None]


@pytest.mark.parametrize("written", [CAFE, "CAFÉ", "Café ", unicodedata.normalize("NFD", "CAFÉ")])
def test_unicode_form_and_case_do_not_matter(written: str) -> None:
    assert LabelReader(NAMES)(written, "a") == 0


@pytest.mark.parametrize("written", ["hot_dog", "Hot_Dog", " hot  dog"])
def test_underscores_are_spaces(written: str) -> None:
    reader = LabelReader(NAMES)
    assert reader(written, "a") == 1
    assert reader.matched == {written.strip(): "hot dog"}
    assert LabelReader({"hot_dog": 0, "x": 1})("hot dog", "a") == 0


def test_exact_names_win_and_what_could_be_two_is_neither() -> None:
    reader = LabelReader({"hot dog": 0, "hot_dog": 1})
    assert [reader("hot dog", "a"), reader("hot_dog", "a")] == [0, 1]
    with pytest.raises(UserError, match="is not among the 2 classes"):
        reader("hot__dog", "a")


def test_folders_named_in_another_form_are_classes_and_that_is_told(tmp_path: Path) -> None:
    for name in (CAFE, "Hot_Dog", "STRASSE"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    listing = ImageFolder.at(str(tmp_path), NAMES).listing()
    assert sorted(next(listing)["label"].to_pylist()) == [0, 1, 2]
    with pytest.raises(StopIteration) as end:
        next(listing)
    (line,) = end.value.value.lines()
    assert "'Hot_Dog' as 'hot dog'" in line
    assert "'STRASSE' as 'straße'" in line
    assert f"{CAFE!r} as 'café'" in line


def test_names_that_only_look_alike_are_shown_by_their_code_points() -> None:
    cat = "\u0441\u0430t"  # two letters are Cyrillic
    with pytest.raises(UserError, match=r"looks like 'cat': U\+0441 U\+0430 U\+0074 is not U\+0063 U\+0061 U\+0074"):
        LabelReader({"cat": 0, "dog": 1})(cat, "a")
    with pytest.raises(UserError, match=r"U\+200B"):
        LabelReader({"cat": 0, "dog": 1})("ca\u200bt", "a")
    with pytest.raises(UserError) as error:
        LabelReader({"cat": 0, "dog": 1})("bird", "a")
    assert "U+" not in str(error.value)
    assert code_points("x" * 99).endswith("U+0078 ...")


@pytest.mark.parametrize("twins", [("café", CAFE), ("hot dog", "Hot_dog"), ("straße", "STRASSE")])
def test_a_class_list_that_holds_a_name_twice_in_two_forms_is_refused(twins: tuple[str, str]) -> None:
    assert plain_name(twins[0]) == plain_name(twins[1])
    with pytest.raises(UserError, match=r"classes 0 and 2, .* same name but for Unicode form.*U\+.* and U\+"):
        vocabulary("folder", [twins[0], "x", twins[1]], ["a {}"])
    one_class: Any = [list(twins), "x"]  # in two ways of writing it
    assert len(vocabulary("folder", one_class, ["a {}"]).names) == 2


def test_own_numbers_follow_names_where_they_are_known_and_positions_where_all_are_renamed() -> None:
    known = [("cat",), ("dog", "puppy"), ("emu",)]
    assert own_numbers(known, None, "x") == (0, 1, 2)
    assert own_numbers(known, {"emu": 0, "puppy": 1, "cat": 2}, "x") == (2, 1, 0)
    assert own_numbers(known, {"katze": 0, "hund": 1, "strauss": 2}, "x") == (0, 1, 2)
    with pytest.raises(UserError, match=r"of which 'dog' and 1 more are not among source\.classes"):
        own_numbers(known, {"cat": 0, "hund": 1, "strauss": 2}, "x")


def test_the_digits_follow_the_order_of_the_class_list() -> None:
    turned = {name: 9 - number for number, name in enumerate(CLASS_NAMES)}
    image_ids, _, truth = digits("test")
    assert listed(open_digits(Config(), "test", turned)) == dict(zip(image_ids, (9 - truth).tolist(), strict=True))
    assert listed(open_digits(Config(), "test", None)) == dict(zip(image_ids, truth.tolist(), strict=True))
    with pytest.raises(UserError, match=r"the set of digits has the classes .* are not among source\.classes"):
        open_digits(Config(), "pool", {"zero": 0, "one": 1})
    with pytest.raises(UserError, match=r"label \d of digits/.* is not among the 2 classes"):
        listed(open_digits(Config(), "test", {"round": 0, "straight": 1}))


def test_torchvisions_sets_follow_the_order_of_the_class_list(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 3, 28, 28) + bytes(3 * 784))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 3) + bytes([0, 1, 9]))
    own = TorchvisionSet.at("fashion_mnist", str(tmp_path), "train")
    assert list(listed(own).values()) == [0, 1, 9]
    turned = {name.lower(): 9 - number for number, name in enumerate(own.known_classes)}
    assert list(listed(TorchvisionSet.at("fashion_mnist", str(tmp_path), "test", turned)).values()) == [9, 8, 0]
    some = {**dict(list(turned.items())[:9]), "something": 0}
    with pytest.raises(UserError, match=r"fashion_mnist \(torchvision\) has the classes"):
        TorchvisionSet.at("fashion_mnist", str(tmp_path), "test", some)


@pytest.mark.parametrize("ending", ["cls", "CLS", "Cls", "label"])
def test_labels_in_tar_files_are_read_in_whatever_case(tmp_path: Path, ending: str) -> None:
    path = packed(tmp_path / "a.TAR", ("1.png", png()), (f"1.{ending}", b"hot dog"))
    assert listed(TarShards.at(path, NAMES)) == {"a.TAR/1.png": 1}
    assert listed(TarShards.at(str(tmp_path), NAMES)) == {"a.TAR/1.png": 1}


def test_labels_in_tar_files_belong_to_the_whole_name_and_else_to_the_example(tmp_path: Path) -> None:
    files = [
        ("v1.0/1.5.png", png()), ("v1.0/1.5.cls", b"0"), ("v1.0/1.7.png", png()), ("v1.0/1.7.cls", b"1"),
        ("a.png", png()), ("a.b.cls", b"2"), ("c.left.png", png()), ("c.right.png", png()), ("c.cls", b"1"),
        ("d.png", png()), ("d.x.cls", b"0"), ("d.y.cls", b"1"), ("other/a.png", png()),
    ]  # fmt: skip
    truth = {"v1.0/1.5": 0, "v1.0/1.7": 1, "a": 2, "c.left": 1, "c.right": 1, "d": None, "other/a": None}
    source = TarShards.at(packed(tmp_path / "a.tar", *files), NAMES)
    assert listed(source) == {f"a.tar/{name}.png": label for name, label in truth.items()}


def test_partitions_of_hive_are_columns(tmp_path: Path) -> None:
    for folder in ("label=hot%20dog/year=2024", "label=0", "label=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"image": [png(), png()]}), tmp_path / folder / "part-0.parquet")
    source = ParquetImages.at(str(tmp_path), NAMES)
    assert sorted(map(str, listed(source).values())) == ["0", "0", "1", "1", "None", "None"]
    assert listed(source)["label=hot%20dog/year=2024/part-0.parquet:1"] == 1
    assert partitions("year=2024/label=a%3Db/x=y.parquet") == {"year": "2024", "label": "a=b"}
    assert set(listed(ParquetImages.at(str(tmp_path), None)).values()) == {None}
    pq.write_table(pa.table({"image": [png()], "label": [2]}), tmp_path / "label=0/part-0.parquet")
    assert listed(ParquetImages.at(str(tmp_path), NAMES))["label=0/part-0.parquet:0"] == 2  # what the file says counts
    pq.write_table(pa.table({"image": [png()]}), tmp_path / "label=0/part-0.parquet")
    (tmp_path / "label=0").rename(tmp_path / "label=bird")
    with pytest.raises(UserError, match=r"'bird' of label=bird/part-0\.parquet is not among"):
        listed(ParquetImages.at(str(tmp_path), NAMES))


def test_manual_labels_are_matched_alike(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"image_id,label\na,{CAFE}\nb,Hot_Dog\n", encoding="utf-8")
    words = Vocabulary((("café",), ("hot dog",)), ("a {}",))
    assert read_manual(str(tmp_path / "labels.csv"), words)[1].of(row_numbers(["a", "b"])).tolist() == [0, 1]
