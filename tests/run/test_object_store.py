"""Images and runs on an object store: a real S3 server on loopback, from listing to rows."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from s3_server import s3_server
from toy_clip import write_toy_clip

from coreg_ray.cluster import train
from coreg_ray.cluster.annotate import annotate_splits
from coreg_ray.cluster.candidates import build_candidates
from coreg_ray.config import Config, MethodConfig
from coreg_ray.errors import UserError
from coreg_ray.images import open_source
from coreg_ray.images.base import Source
from coreg_ray.images.folder import split_glob
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

NAMES = {"cat": 0, "dog": 1}


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), level).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def s3() -> Iterator[Callable[[str], str]]:
    """A bucket with a folder of pictures, a Parquet file and a tar file."""
    with s3_server("pool") as uri:
        folder = Folder.at(uri("images"))
        for number in range(12):
            folder.write(f"{'dog' if number % 2 else 'cat'}/{number:02d} ä.png", png(20 * number))
        folder.write("dog/broken.png", b"no image")
        table = io.BytesIO()
        pq.write_table(pa.table({"image": [png(1), png(2)], "image_id": ["a", "b"], "label": [0, 1]}), table)
        Folder.at(uri("tables")).write("a.parquet", table.getvalue())
        shard = io.BytesIO()
        with tarfile.open(fileobj=shard, mode="w") as tar:
            entry = tarfile.TarInfo("01.png")
            entry.size = len(png(7))
            tar.addfile(entry, io.BytesIO(png(7)))
        Folder.at(uri("shards")).write("s.tar", shard.getvalue())
        yield uri


def opened(kind: str, path: str) -> Source:
    return open_source(Config(source={"kind": kind, "path": path, "classes": ["cat", "dog"]}), "pool", NAMES)


def contents(source: Source) -> dict[str, Any]:
    return {
        i: c
        for block in source.listing()
        for i, c in zip(block["image_id"].to_pylist(), source.fetch(block), strict=True)
    }


def test_every_kind_of_file_is_read(s3: Callable[[str], str]) -> None:
    pictures = contents(opened("folder", s3("images")))
    assert len(pictures) == 13
    assert pictures["cat/02 ä.png"] == png(40)
    assert sorted(contents(opened("folder", s3("images/*/0[01]*")))) == ["cat/00 ä.png", "dog/01 ä.png"]
    assert contents(opened("parquet", s3("tables/*.parquet"))) == {"a": png(1), "b": png(2)}
    assert contents(opened("webdataset", s3("shards"))) == {"s.tar/01.png": png(7)}
    with pytest.raises(UserError, match="does not exist"):
        opened("folder", s3("nowhere"))


def test_options_of_the_store_are_no_wildcards() -> None:
    assert split_glob("s3://b/x/*.png?region=eu&scheme=http") == ("s3://b/x?region=eu&scheme=http", "*.png")
    assert split_glob("s3://b/x?scheme=http") == ("s3://b/x?scheme=http", None)
    assert split_glob("s3://b/x/?.png") == ("s3://b/x", "?.png")
    assert split_glob("/b/x?a=b.png") == ("/b", "x?a=b.png")


@pytest.mark.cluster
def test_a_run_lies_on_the_store_and_goes_on(s3: Callable[[str], str], tmp_path: Path, ray_cluster: None) -> None:
    source = {"kind": "folder", "path": s3("images"), "classes": ["cat", "dog"], "prompts": ["a {}", "the {}"]}
    student = {"resolution": 8, "width": 4, "projection": 8}
    method = MethodConfig(epochs=2, warmup_epochs=1, batch_size=8, warmup_batch_size=8, queue_size=8)
    config = Config(
        output=s3("run"), source=source, annotator=write_toy_clip(tmp_path), student=student,
        method=method.model_dump(),
        cluster={"resources_per_worker": {"CPU": 1}},
    )  # fmt: skip
    output = RunFolder.at(config.output)
    figures = annotate_splits(config, ["pool"], output, rows=True)["pool"]
    assert (figures.images, figures.encoded_images, figures.rejected_images) == (13, 12, 1)
    votes, rows = table(output / "annotations"), table(output / "rows")
    assert build_candidates(config, output).quality.rows == 12
    for part in (output / "annotations").files(".parquet") + (output / "rows").files(".parquet"):
        output.filesystem.delete_file(part)  # as if the run had been killed before they were written
    again = annotate_splits(config, ["pool"], output, rows=True)["pool"]
    assert again.encoded_images == 12
    assert table(output / "annotations") == votes
    assert table(output / "rows") == rows
    assert np.frombuffer(rows[0]["image"], np.uint8).size == 8 * 8 * 3
    assert train.fit(config).figures["epoch"] == 1
    assert [row["epoch"] for row in output.read_history()] == [0, 1]
    assert {name for name in output.entries() if "?" in name or "=" in name} == set()


def table(folder: Folder) -> list[dict[str, Any]]:
    parts = [pq.read_table(path, filesystem=folder.filesystem) for path in folder.files(".parquet")]
    return sorted(pa.concat_tables(parts).to_pylist(), key=lambda row: row.get("image_id", row.get("row")))
