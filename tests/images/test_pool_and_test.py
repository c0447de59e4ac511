"""Test images that are the pool itself are refused by where they lie, before any image is read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.images import open_source
from coreg_ray.images.pool_and_test import refuse_pool_as_test


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 2), grey).save(buffer, "PNG")
    return buffer.getvalue()


def config(source: dict[str, Any], test: dict[str, Any]) -> Config:
    return Config(source={"classes": ["cat", "dog"], **source}, test=test)


def refused(source: dict[str, Any], test: dict[str, Any]) -> bool:
    said = ""
    try:
        refuse_pool_as_test(config(source, test))
    except UserError as error:
        said = str(error)
    assert not said or "so accuracy would say nothing about new images; give other labelled images with" in said
    return bool(said)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("pool/cat/1.png", "pool/val/cat/2.png", "pool/.hidden/cat/3.png", "poolside/cat/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(len(name)))
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "test", "same"),
    [
        ("pool", "pool", True),
        ("pool", "link", True),
        ("pool/", "./pool", True),
        ("pool", "pool/val", True),
        ("pool", "pool/*/*.png", True),
        ("pool/*/*.png", "pool/*/*.png", True),
        ("pool/*/*.png", "pool/val/*/*.png", False),
        ("pool/*/*.png", "pool", False),
        ("pool/val", "pool", False),
        ("pool", "pool/.hidden", False),  # which a listing of the pool leaves out
        ("pool", "poolside", False),
    ],
)
def test_folders(tree: Path, source: str, test: str, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert refused({"kind": "folder", "path": source}, {"kind": "folder", "path": test}) is same


def test_files_of_tables_and_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"image": [png(1)]}), tmp_path / f"{name}.parquet")
    whole, one = str(tmp_path), str(tmp_path / "a.parquet")
    assert refused({"kind": "parquet", "path": whole}, {"kind": "parquet", "path": one})
    assert refused({"kind": "parquet", "path": one}, {"kind": "parquet", "path": one})
    assert not refused({"kind": "parquet", "path": one}, {"kind": "parquet", "path": whole})
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"\0" * 1024)
    assert refused({"kind": "webdataset", "path": whole}, {"kind": "webdataset", "path": str(tmp_path / "b.tar")})
    assert not refused({"kind": "webdataset", "path": one}, {"kind": "parquet", "path": one})


def test_sets_with_splits_of_their_own_are_never_the_same() -> None:
    refuse_pool_as_test(Config(test={"kind": "digits"}))
    refuse_pool_as_test(Config(test={"kind": None}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """`split`: train and test; `whole`: no splits; `train`: a set that remembers which split it was."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in (1, 2)], "label": [1, 0]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(str(tmp_path / "whole"))
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(str(tmp_path / "split"))
    datasets.Dataset.from_dict(rows, features=features, split="train").save_to_disk(str(tmp_path / "train"))
    return tmp_path


def hub(path: Path, **settings: str) -> dict[str, Any]:
    return {"kind": "huggingface", "path": str(path), **settings}


def test_hugging_face_sets(saved: Path) -> None:
    assert refused(hub(saved / "whole"), hub(saved / "whole"))  # without splits it is used for both
    assert refused(hub(saved / "train"), hub(saved / "train"))
    assert not refused(hub(saved / "split"), hub(saved / "split"))
    assert refused(hub(saved / "split"), hub(saved / "split", name="train"))
    assert refused(hub(saved / "split", name="test"), hub(saved / "split"))
    assert not refused(hub(saved / "train"), hub(saved / "whole"))


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [
        ("split", "dev", r"split has no split 'dev'; set test\.name to one of train, test"),
        ("whole", "dev", r"whole has no splits, so test\.name=dev names nothing in it; leave test\.name out"),
        ("whole", "test", r"whole has no splits, so test\.name=test names nothing"),
        ("train", "test", r"train has the split train alone, so test\.name=test names nothing"),
    ],
)
def test_a_split_that_does_not_exist_is_refused(saved: Path, folder: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(config(hub(saved / "split"), hub(saved / folder, name=name)), "test")


def test_a_split_that_a_set_remembers_may_be_named(saved: Path) -> None:
    source = open_source(config(hub(saved / "train", name="train"), hub(saved / "split")), "pool")
    assert [block["image_id"].to_pylist() for block in source.listing()] == [["train/00000000", "train/00000001"]]


def test_a_paper_set_that_there_is_not_is_named_by_its_own_setting() -> None:
    section = {"kind": "torchvision", "path": "nowhere", "name": "cifar11"}
    with pytest.raises(UserError, match=r"^test\.name=cifar11 is no set that is known here"):
        open_source(Config(test=section), "test")
