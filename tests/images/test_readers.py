"""Whatever lies in a person's files ends in an error that names it, a reject, or success: never in a traceback.

The first half names what was met; the second feeds every reader with broken variants of good input.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from coreg_ray.annotation.manual import read_manual
from coreg_ray.annotation.preparation import take_listing
from coreg_ray.annotation.vocabulary import Vocabulary, vocabulary
from coreg_ray.commands.base import Command, load
from coreg_ray.errors import UserError
from coreg_ray.images.decode import Undecodable, decode, from_array
from coreg_ray.images.folder import ImageFolder
from coreg_ray.images.huggingface import HuggingFaceSet
from coreg_ray.images.parquet import ParquetImages
from coreg_ray.images.webdataset import TarShards
from coreg_ray.run.strict_yaml import parsed_yaml

NAMES = {"cat": 0, "dog": 1}
WORDS = Vocabulary((("cat",), ("dog",)), ("a {}",))
COLUMNS = ("image", "image_id", "label")


def png(level: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def tar_of(*files: tuple[str | bytes, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files:
            entry = tarfile.TarInfo(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def read_all(source: Any) -> list[int | None]:
    """Read a source to its end as the pipeline does; the labels."""
    labels: list[int | None] = []
    for block in source.listing():
        labels += block["label"].to_pylist()
        for content in source.fetch(block):
            try:
                if not isinstance(content, Exception):
                    (decode if isinstance(content, bytes) else from_array)(content)
            except Undecodable:
                pass
    list(take_listing(source, None))
    return labels


# What was met.


def test_a_source_that_is_an_archive_or_one_image_is_a_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png())
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(UserError, match=r"a\.zip is a file, not a folder of images; unpack it and give the folder"):
        ImageFolder.at(str(tmp_path / "a.zip"), None)
    with pytest.raises(UserError, match=r"a\.png is a file, not a folder of images; give its folder"):
        ImageFolder.at(str(tmp_path / "a.png"), None)


@pytest.mark.parametrize("ending", ["yaml", "YAML", "yml", "Yml"])
def test_endings_of_yaml_are_read_in_whatever_case(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"classes.{ending}"
    file.write_text("- cat\n- dog\n")
    assert vocabulary("folder", str(file), None).shown == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- cat\n- [dog\n", r"is not valid YAML: .*\(line 3, column 1\)"),
        ("classes:\n\t- cat\n", r"is not valid YAML: .*line 2, column 1\); indent with spaces, not tabs"),
        ("classes: [a, b]\nclasses: [c, d]\n", r"the key 'classes' occurs twice, in lines 1 and 2; keep one"),
        ("- 2024-13-45\n", "is not valid YAML: month must be in 1..12"),
        ("{[a]: b}", "is not valid YAML"),
        ("[" * 600, "nested too deep"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML: expected a single document"),
        ("- \x00", "is not valid YAML"),
    ],
)
def test_broken_yaml_is_a_sentence_in_class_lists_and_settings(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    for read in (lambda: vocabulary("folder", str(file), None), lambda: load(["--config", str(file)], Command)):
        with pytest.raises(UserError, match=problem) as error:
            read()
        assert "\n" not in str(error.value)


def test_a_setting_that_is_written_twice_is_refused_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method:\n  epochs: 3\n  batch_size: 8\n  epochs: 4\n")
    with pytest.raises(UserError, match=r"--config .*run\.yaml .*the key 'epochs' occurs twice, in lines 2 and 4"):
        load(["--config", str(file)], Command)
    assert parsed_yaml(b"a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n", "t") == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 3},
    }
    with pytest.raises(UserError, match="cannot be read as text"):
        parsed_yaml(b"a: \xff", "t")


@pytest.mark.parametrize("name", ["names.txt", "names.csv"])
@pytest.mark.parametrize("header", ["id,name", "name", "Class", "label;id", "\tname"])
def test_headers_are_no_class_names(tmp_path: Path, name: str, header: str) -> None:
    (tmp_path / name).write_text(f"# of 2024\n{header}\ncat\ndog\n")
    with pytest.raises(UserError, match=r"begins with .* like a table; .* no header: remove it"):
        vocabulary("folder", str(tmp_path / name), None)


def test_remarks_are_no_class_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# my classes\ncat, tame\n#dog\ndog\n")
    assert vocabulary("folder", str(tmp_path / "names.txt"), None).shown == ["cat, tame", "dog"]


def test_every_parquet_file_is_looked_at(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png()]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"picture": [png()]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet has no column 'image'; .* or remove that file"):
        read_all(ParquetImages.at(str(tmp_path), None))
    pq.write_table(pa.table({"image": ["text"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet holds string in 'image'"):
        read_all(ParquetImages.at(str(tmp_path), None))
    pq.write_table(pa.Table.from_arrays([pa.array([png()]), pa.array([1]), pa.array([2])], ["image", "label", "label"]),
                   tmp_path / "b.parquet")  # fmt: skip
    with pytest.raises(UserError, match=r"b\.parquet has 2 columns 'label'; keep one"):
        read_all(ParquetImages.at(str(tmp_path), None))


@pytest.mark.parametrize(("column", "value"), [("image", [[1, 2]]), ("image", [3]), ("label", [[1]]), ("label", [0.5])])
def test_hugging_face_columns_of_other_things_are_a_sentence(tmp_path: Path, column: str, value: list[Any]) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [png()], "label": [1]} | {column: value}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match=r"images are the type Image or encoded bytes|neither text nor a whole number"):
        read_all(HuggingFaceSet.at(str(tmp_path / "set"), "train", COLUMNS, NAMES))


def test_hugging_face_paths_may_begin_at_home_and_subsets_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HOME", str(tmp_path))
    datasets.Dataset.from_dict({"image": [png()], "label": [1]}).save_to_disk(str(tmp_path / "set"))
    assert read_all(HuggingFaceSet.at("~/set", "train", COLUMNS, NAMES)) == [1]
    with pytest.raises(UserError, match=r"source\.subset=en: .* was saved to disk and holds one set alone"):
        HuggingFaceSet.at("~/set", "train", COLUMNS, NAMES, "en")
    for name, label in (("en", 0), ("de", 1)):
        (tmp_path / "both" / name).mkdir(parents=True)
        pq.write_table(pa.table({"image": [png()], "label": [label]}), tmp_path / "both" / name / "train.parquet")
    parts = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("en", "de")]
    (tmp_path / "both/README.md").write_text(f"---\nconfigs: {json.dumps(parts)}\n---\n")
    assert read_all(HuggingFaceSet.at("~/both", "train", COLUMNS, NAMES, "de")) == [1]
    with pytest.raises(UserError, match=r"Config name is missing.*; set source\.subset to one of them"):
        HuggingFaceSet.at("~/both", "train", COLUMNS, NAMES)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tar_files_are_a_sentence(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(("a.png", png()), mode=mode))
    with pytest.raises(UserError, match=r"a\.tar is compressed \((gzip|bzip2|xz)\), whatever its name; unpack it"):
        read_all(TarShards.at(str(tmp_path), NAMES))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([(b"\xe9.png", png())], r"holds the name b'\\xe9\.png', which is not UTF-8; rename"),
        ([("a.png", png()), ("a.cls", b"caf\xe9")], r"a\.cls is not UTF-8 but b'caf\\xe9'"),
        ([("a.png", png()), ("a.cls", b"emu")], "'emu' of a.tar/a.png is not among the 2 classes"),
    ],
)
def test_names_and_labels_in_tar_files_are_utf8(tmp_path: Path, files: Any, problem: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(*files))
    with pytest.raises(UserError, match=problem):
        read_all(TarShards.at(str(tmp_path), NAMES))


def test_a_tar_file_with_a_broken_header_in_its_middle_is_not_read_half(tmp_path: Path) -> None:
    content = bytearray(tar_of(*((f"{number}.png", png()) for number in range(4))))
    content[2 * 1024 + 150] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar (is cut off or broken after 2048|cannot be read as a tar file)"):
        read_all(TarShards.at(str(tmp_path), NAMES))


# Broken variants of good input.

QUICK = settings(
    max_examples=25, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
ODD = st.sampled_from(
    [None, True, 0, 1, -1, 7, 0.5, float("nan"), float("inf"), 2**40, "cat", "CAT", "bird", "", " ", "\0", "1", "-3",
     "1" * 5000, unicodedata.normalize("NFD", "café"), b"cat", b"\xff", [], [1], ["cat"], {"a": 1}]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Good bytes with a few of them changed, taken out, repeated, or cut off."""
    broken = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(broken) - 1)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["change", "cut", "remove", "insert", "repeat"])):
            case "change":
                broken[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del broken[place:]
            case "remove":
                del broken[place : place + length]
            case "insert":
                broken[place:place] = draw(st.binary(max_size=8))
            case "repeat":
                broken[place:place] = broken[place : place + length]
    return bytes(broken)


def ends_well(read: Callable[[], Any]) -> None:
    """Success and an error for a person are the only endings."""
    with contextlib.suppress(UserError):
        read()


def table(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


TABLE = table(image=[png(1), png(2)], image_id=["a", "b"], label=["cat", "dog"])
TAR = tar_of(("a.png", png(1)), ("a.cls", b"cat"), ("deep/b.png", png(2)), ("deep/b.cls", b"1"))
LIST = b"# pets\nautomobile|car\ncat\n\ndog\n"
TREE = b"classes:\n  - [cat, kitty]\n  - dog # tame\n  - 'no'\n"
SETTINGS = b"seed: 3\nmethod:\n  epochs: 4\nstudent.width: 16\nsource: {kind: digits}\n"
MANUAL = b'image_id,label\n"a,b.png",cat\nc,1\nd,\n'


@QUICK
@given(content=damaged(TABLE))
def test_any_parquet_file_ends_well(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    ends_well(lambda: read_all(ParquetImages.at(str(tmp_path), NAMES)))
    (tmp_path / "labels.parquet").write_bytes(content)
    ends_well(lambda: read_manual(str(tmp_path / "labels.parquet"), WORDS))
    (tmp_path / "labels.parquet").unlink()


@QUICK
@given(image=ODD, image_id=ODD, label=ODD)
def test_any_cell_of_a_table_ends_well(tmp_path: Path, image: Any, image_id: Any, label: Any) -> None:
    content = table(image=[image], image_id=[image_id], label=[label])
    (tmp_path / "a.parquet").write_bytes(content)
    ends_well(lambda: read_all(ParquetImages.at(str(tmp_path), NAMES)))
    ends_well(lambda: read_all(ParquetImages.at(str(tmp_path), {})))
    ends_well(lambda: read_manual(str(tmp_path / "a.parquet"), WORDS))


@QUICK
@given(content=damaged(TAR))
def test_any_tar_file_ends_well(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    ends_well(lambda: read_all(TarShards.at(str(tmp_path), NAMES)))


@QUICK
@given(data=st.data())
def test_any_image_file_ends_well(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "AVIF", "JPEG2000", "PPM"]))
    stream = io.BytesIO()
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(stream, kind)
    content = data.draw(damaged(stream.getvalue()))
    (tmp_path / "cat").mkdir(exist_ok=True)
    (tmp_path / f"cat/a.{data.draw(st.sampled_from(['png', 'JPG', 'mpo']))}").write_bytes(content)
    ends_well(lambda: read_all(ImageFolder.at(str(tmp_path), NAMES)))


@QUICK
@given(name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20))
def test_any_name_of_a_folder_ends_well(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.mktemp("pool")
    if name not in (".", ".."):
        (root / name).mkdir()
        (root / name / "a.png").write_bytes(png())
    ends_well(lambda: read_all(ImageFolder.at(str(root), NAMES)))


@QUICK
@given(content=damaged(LIST) | damaged(TREE), ending=st.sampled_from(["txt", "yaml", "YML", "csv"]))
def test_any_class_list_ends_well(tmp_path: Path, content: bytes, ending: str) -> None:
    (tmp_path / f"names.{ending}").write_bytes(content)
    ends_well(lambda: vocabulary("folder", str(tmp_path / f"names.{ending}"), None))
    ends_well(lambda: vocabulary("folder", ["a", "b"], str(tmp_path / f"names.{ending}")))


@QUICK
@given(content=damaged(SETTINGS))
def test_any_settings_file_ends_well(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    ends_well(lambda: load(["--config", str(tmp_path / "run.yaml")], Command))


@QUICK
@given(content=damaged(MANUAL))
def test_any_file_of_manual_labels_ends_well(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    ends_well(lambda: read_manual(str(tmp_path / "labels.csv"), WORDS))


@settings(QUICK, max_examples=8)
@given(image=ODD, label=ODD, key=ODD)
def test_any_cell_of_a_hugging_face_set_ends_well(
    tmp_path_factory: pytest.TempPathFactory, image: Any, label: Any, key: Any
) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("set")
    rows = {"image": [image], "image_id": [key], "label": [label]}
    datasets.Dataset(pa.table(rows)).save_to_disk(str(folder))
    ends_well(lambda: read_all(HuggingFaceSet.at(str(folder), "train", COLUMNS, NAMES)))


@settings(QUICK, max_examples=10)
@given(data=st.data())
def test_any_saved_hugging_face_set_ends_well(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("set")
    datasets.Dataset.from_dict({"image": [png(), png(1)], "label": [0, 1]}).save_to_disk(str(folder))
    file = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    (folder / file).write_bytes(data.draw(damaged((folder / file).read_bytes())))
    ends_well(lambda: read_all(HuggingFaceSet.at(str(folder), "train", COLUMNS, NAMES)))
