"""What cannot be read at the moment is tried again, then given up by its name; what is broken is told at once."""

from __future__ import annotations

import errno
import io
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError
from pyarrow import fs

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images import open_source, reading, torchvision
from coreg_ray.images.folder import ImageFolder
from coreg_ray.images.huggingface import HuggingFaceSet
from coreg_ray.images.labels import LabelReader
from coreg_ray.images.parquet import ParquetImages
from coreg_ray.images.reading import PAUSES_S, Attempts, Unreadable, of_reading
from coreg_ray.images.torchvision import TorchvisionSet
from coreg_ray.images.webdataset import TarShards
from coreg_ray.run.storage import Folder

BUSY = OSError(errno.EMFILE, "too many")
SLOW = OSError("When reading 'a.png' in bucket 'b': AWS Error SLOW_DOWN during GetObject operation: (HTTP status 503)")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are made, which take no time."""
    made: list[float] = []
    monkeypatch.setattr(reading, "pause", made.append)
    return made


def failing(times: int, error: OSError = BUSY, answer: Any = b"bytes") -> Callable[[], Any]:
    left = [error] * times

    def read() -> Any:
        if left:
            raise left.pop()
        return answer

    return read


def test_pauses_grow_and_end_within_a_minute() -> None:
    assert list(PAUSES_S) == sorted(set(PAUSES_S))
    assert 20 < sum(PAUSES_S) < 60


@pytest.mark.parametrize("error", [BUSY, SLOW, PermissionError(13, ""), TimeoutError(), ConnectionResetError(104, "")])
def test_a_read_that_fails_at_first_is_tried_again(error: OSError, pauses: list[float], caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        attempts = Attempts("fail")
        assert attempts.one(failing(2, error), "a.png") == attempts.one(failing(1, error), "b.png") == b"bytes"
    assert pauses == [*PAUSES_S[:2], PAUSES_S[0]]
    assert len(caplog.messages) == 1  # once for all that a block holds
    assert caplog.messages[0].startswith("a.png cannot be read (")


def test_after_all_attempts_the_command_ends_with_file_reason_and_remedy(pauses: list[float]) -> None:
    with pytest.raises(UserError) as refusal:
        Attempts("fail").one(failing(99), "pool/a.png")
    said = str(refusal.value)
    assert "pool/a.png cannot be read (Too many open files), tried 7 times" in said
    assert "--source.unreadable reject" in said
    assert pauses == list(PAUSES_S)
    with pytest.raises(UserError, match=r"HTTP status 503") as listed:
        Attempts().one(failing(99, SLOW), "pool")
    assert "unreadable" not in str(listed.value)  # a listing cannot do without


def test_rejects_are_waited_for_once_and_not_each(pauses: list[float]) -> None:
    attempts = Attempts("reject")
    for name in ("a", "b", "c"):
        with pytest.raises(Unreadable, match=r"^cannot be read: Too many open files$"):
            attempts.one(failing(99), name)
    assert pauses == list(PAUSES_S)


@pytest.mark.parametrize(
    "error", [OSError("Couldn't deserialize thrift: TProtocolException"), UnidentifiedImageError("cannot identify")]
)
def test_what_a_library_says_of_broken_bytes_is_no_error_of_reading(error: OSError, pauses: list[float]) -> None:
    assert not of_reading(error)
    with pytest.raises(OSError, match=str(error)):
        Attempts("fail").one(failing(1, error), "a")
    assert not pauses
    assert Attempts("fail").one(failing(1, error), "a", raw=True) == b"bytes"  # bytes as they lie cannot be broken


def test_a_stream_goes_on_where_it_was_cut(pauses: list[float]) -> None:
    begun: list[int] = []

    def read(start: int) -> Iterator[int]:
        begun.append(start)
        yield from range(start, 4 if len(begun) < 3 else 10)
        if len(begun) < 3:
            raise BUSY

    assert list(Attempts("fail").stream(read, "a")) == list(range(10))
    assert begun == [0, 4, 4]
    assert pauses == list(PAUSES_S[:2])


# The sources.


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


class Flaky:
    """A file whose n-th read fails, for each n of a schedule that all files of a store share."""

    def __init__(self, path: str, schedule: dict[str, int]) -> None:
        self._file, self._schedule = io.BytesIO(Path(path).read_bytes()), schedule

    def read(self, size: int | None = -1) -> bytes:
        self._schedule["reads"] += 1
        if self._schedule["first"] <= self._schedule["reads"] < self._schedule["first"] + self._schedule["failures"]:
            raise OSError(errno.EIO, "Input/output error")
        return self._file.read(-1 if size is None else size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Store:
    """Pyarrow's local disk, but for files that fail."""

    def __init__(self, first: int = 1, failures: int = 0) -> None:
        self.schedule = {"reads": 0, "first": first, "failures": failures}
        self._disk = fs.LocalFileSystem()

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(Flaky(path, self.schedule), mode="r")

    open_input_stream = open_input_file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)


def shards(root: Path) -> None:
    with tarfile.open(root / "a.tar", "w") as tar:
        for number in range(5):
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = len(png(number))
            tar.addfile(entry, io.BytesIO(png(number)))


def table(root: Path) -> None:
    noise = np.random.default_rng(0).bytes
    images = [png(number) + noise(200_000) for number in range(5)]
    pq.write_table(pa.table({"image": images}), root / "a.parquet", compression="none", data_page_size=1000)


def pictures(root: Path) -> None:
    for number in range(5):
        (root / f"{number}.png").write_bytes(png(number))


def of_kind(kind: str, root: Path, store: Any, unreadable: Any = "fail") -> Any:
    folder = Folder(store, str(root))
    if kind == "folder":
        return ImageFolder(folder, unreadable=unreadable)
    if kind == "webdataset":
        return TarShards(folder, ("a.tar",), LabelReader(None), unreadable=unreadable)
    return ParquetImages(folder, ("a.parquet",), LabelReader(None), unreadable=unreadable)


KINDS = {"folder": pictures, "webdataset": shards, "parquet": table}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [1, 3, 4])
def test_every_kind_reads_on_after_failures(kind: str, first: int, tmp_path: Path, pauses: list[float]) -> None:
    KINDS[kind](tmp_path)
    (block,) = of_kind(kind, tmp_path, fs.LocalFileSystem()).listing()
    whole = list(of_kind(kind, tmp_path, fs.LocalFileSystem()).fetch(block))
    assert len(whole) == 5
    store = Store(first, failures=2)
    assert list(of_kind(kind, tmp_path, store).fetch(block)) == whole
    assert store.schedule["reads"] >= first + 2
    assert pauses
    store = Store(first, failures=2)
    (again,) = of_kind(kind, tmp_path, store).listing()
    assert again == block


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_unreadable_ends_the_command_or_is_a_reject(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    (block,) = of_kind(kind, tmp_path, fs.LocalFileSystem()).listing()
    with pytest.raises(UserError, match=r"cannot be read \(Input/output error\), tried 7 times .* --source.unreadable"):
        list(of_kind(kind, tmp_path, Store(failures=999)).fetch(block))
    rejects = list(of_kind(kind, tmp_path, Store(failures=999), "reject").fetch(block))
    assert [(type(reason), str(reason)) for reason in rejects] == [
        (Unreadable, "cannot be read: Input/output error")
    ] * 5


def test_one_file_that_nobody_may_read_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path)
    read = Folder.read

    def guarded(folder: Folder, name: str = "") -> bytes:
        if name == "2.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(folder, name)

    monkeypatch.setattr(Folder, "read", guarded)
    (block,) = ImageFolder.at(str(tmp_path)).listing()
    with pytest.raises(UserError, match=r"2\.png cannot be read \(Permission denied\)"):
        list(ImageFolder.at(str(tmp_path)).fetch(block))
    contents = list(of_kind("folder", tmp_path, fs.LocalFileSystem(), "reject").fetch(block))
    assert [isinstance(content, bytes) for content in contents] == [True, True, False, True, True]


@pytest.mark.parametrize("local", [True, False])
def test_a_file_that_is_gone_is_a_reject_and_a_disk_that_is_gone_is_none(local: bool, tmp_path: Path) -> None:
    disk = fs.LocalFileSystem()
    pictures(tmp_path)
    source = ImageFolder(Folder(disk if local else fs.SubTreeFileSystem("/", disk), str(tmp_path)))
    (block,) = source.listing()
    (tmp_path / "2.png").unlink()
    (reason,) = [content for content in source.fetch(block) if isinstance(content, Exception)]
    assert isinstance(reason, Unreadable)
    assert str(reason) == "gone since the source was listed"
    if local:  # a store has answered; a folder is empty where a disk was taken away
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(UserError, match=r"0\.png cannot be read \(No such file or directory\)"):
            list(source.fetch(block))


def test_a_broken_table_is_told_at_once(tmp_path: Path, pauses: list[float]) -> None:
    table(tmp_path)
    source = ParquetImages.at(str(tmp_path), None)
    (block,) = source.listing()
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:40] = os.urandom(36)  # the first page's header
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet .*; replace or remove it"):
        list(source.fetch(block))
    (tmp_path / "a.parquet").write_bytes(content[:-9] + b"\xff" * 9)  # and the footer
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        ParquetImages.at(str(tmp_path), None)
    assert not pauses


def test_stores_that_do_not_answer_a_listing_are_asked_again(pauses: list[float]) -> None:
    class Silent(Store):
        def get_file_info(self, what: Any) -> Any:
            raise SLOW

    folder = Folder(Silent(), "bucket/images")
    with pytest.raises(UserError, match=r"bucket/images cannot be read .*HTTP status 503"):
        list(ImageFolder(folder).listing())
    assert pauses == list(PAUSES_S)


class Set(list[Any]):
    """A data set of a library, whose entry 1 cannot be opened twice."""

    failures = 2

    def __getitem__(self, index: Any) -> Any:
        if index == 1 and self.failures:
            self.failures -= 1
            raise BUSY
        if index == 2:
            raise OSError("image file is truncated")
        return super().__getitem__(index)

    def select_columns(self, names: list[str]) -> Set:
        return self

    def cast_column(self, name: str, kind: Any) -> Set:
        return self


BLOCK = pa.table({"start": [0, 1, 2]})


def test_sets_of_torchvision_tell_reading_from_decoding(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    data = Set([(Image.new("RGB", (2, 2)), 0)] * 3)
    monkeypatch.setattr(torchvision, "_torchvision", lambda *_: data)
    contents = list(TorchvisionSet("cifar10", "x", "train").fetch(BLOCK))
    assert [type(content) for content in contents] == [np.ndarray, np.ndarray, OSError]
    assert pauses == list(PAUSES_S[:2])


def test_sets_of_hugging_face_do_so_too(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    pytest.importorskip("datasets")
    data = Set([{"image": {"bytes": b"x", "path": None}}] * 3)
    monkeypatch.setattr(HuggingFaceSet, "_data", lambda self: data)
    source = HuggingFaceSet("x", "train", ("image", "image_id", "label"), LabelReader(None))
    assert [type(content) for content in source.fetch(BLOCK)] == [bytes, bytes, OSError]
    assert pauses == list(PAUSES_S[:2])


@pytest.mark.parametrize("split", ["pool", "test"])
def test_the_setting_reaches_either_split(split: Any, tmp_path: Path) -> None:
    pictures(tmp_path)
    section = {"kind": "folder", "path": str(tmp_path)}
    for given in ("fail", "reject"):
        config = Config.model_validate(
            {"source": {**section, "classes": ["a", "b"], "unreadable": given}, "test": section}
        )
        source: Any = open_source(config, split)
        assert source.unreadable == given
