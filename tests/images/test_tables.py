"""Tables from outside are refused by their schema where reading them would unpickle something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreg_ray.annotation.manual import read_manual
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.errors import UserError
from coreg_ray.images.huggingface import HuggingFaceSet
from coreg_ray.images.parquet import ParquetImages
from coreg_ray.images.tables import parquet_file

COLUMNS = ("image", "image_id", "label")
read_by_python: list[str] = []


class Pickled(pa.ExtensionType):
    """Stands for Ray's types: Arrow hands their parameters to Python as soon as it reads a schema."""

    def __arrow_ext_serialize__(self) -> bytes:
        return b"parameters"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Pickled:
        read_by_python.append(str(serialized))
        return cls(storage_type, "ray.data.arrow_pickled_test")


# Names beside those of Ray's own types, which it registers as soon as a process loads `ray.data`.
@pytest.fixture(params=["ray.data.arrow_pickled_test", "ray.data.arrow_tensor_test", "arrow.py_extension_type"])
def kind(request: Any) -> Iterator[Pickled]:
    kind, theirs = Pickled(pa.large_binary(), request.param), False
    try:
        pa.register_extension_type(kind)
    except pa.ArrowKeyError:  # pyarrow 17 has a type of its own by this name, and expects one at its end
        theirs = True
        pa.unregister_extension_type(request.param)
        pa.register_extension_type(kind)
    read_by_python.clear()
    yield kind
    if not theirs:
        pa.unregister_extension_type(request.param)


def column(kind: Pickled) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, pa.array([b"program"], pa.large_binary()))


@pytest.mark.parametrize("place", ["image", "label", "image_id", "other", "nested"])
def test_images_in_parquet_are_refused_before_python_reads_the_schema(
    tmp_path: Path, kind: Pickled, place: str
) -> None:
    columns: dict[str, Any] = {"image": [b"x"], "label": [1]}
    columns[place] = column(kind) if place != "nested" else pa.StructArray.from_arrays([column(kind)], ["deep"])
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet holds Python objects .* is not read; write images as encoded"):
        ParquetImages.at(str(tmp_path), {"cat": 0, "dog": 1}, COLUMNS)
    assert not read_by_python


def test_the_second_file_and_a_file_that_came_later_are_looked_at_too(tmp_path: Path, kind: Pickled) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"image": [b"x"]}), tmp_path / f"{name}.parquet")
    source = ParquetImages.at(str(tmp_path), None, COLUMNS)
    blocks = list(source.listing())
    pq.write_table(pa.table({"image": column(kind)}), tmp_path / "b.parquet")
    for read in (lambda: list(source.listing()), lambda: list(source.fetch(blocks[1]))):
        with pytest.raises(UserError, match=r"b\.parquet holds Python objects"):
            read()
    assert not read_by_python


def test_manual_labels_are_refused_alike(tmp_path: Path, kind: Pickled) -> None:
    pq.write_table(pa.table({"image_id": ["a"], "label": column(kind)}), tmp_path / "labels.PARQUET")
    with pytest.raises(UserError, match="holds Python objects"):
        read_manual(str(tmp_path / "labels.PARQUET"), Vocabulary((("cat",), ("dog",)), ("a {}",)))
    assert not read_by_python


def test_saved_hugging_face_sets_are_refused_alike(tmp_path: Path, kind: Pickled) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "dataset_info.json").write_text("{}")
    table = pa.table({"image": column(kind)})
    with pa.OSFile(str(tmp_path / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(UserError, match=r"data-0\.arrow holds Python objects"):
        HuggingFaceSet.at(str(tmp_path), "train", COLUMNS, None)
    assert not read_by_python


def test_types_that_are_described_by_text_are_read_and_unknown_ones_are_not(tmp_path: Path) -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3, 3), np.uint8))
    pq.write_table(pa.table({"image": tensor}), tmp_path / "a.parquet")
    assert len(list(ParquetImages.at(str(tmp_path), None).listing())) == 1
    other = Pickled(pa.large_binary(), "somebody.elses")
    pa.register_extension_type(other)
    try:
        pq.write_table(pa.table({"image": column(other)}), tmp_path / "a.parquet")
        with pytest.raises(UserError, match="values of the type"):
            ParquetImages.at(str(tmp_path), None)
    finally:
        pa.unregister_extension_type("somebody.elses")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"x" * 100])
def test_what_is_no_parquet_file_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="t cannot be read as Parquet"):
        parquet_file(pa.BufferReader(content), "t")
