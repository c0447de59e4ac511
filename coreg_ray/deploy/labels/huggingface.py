"""Labels and pictures as a data set that `datasets.load_dataset(PATH)` reads, and that can be put on the Hub as it is.

    data/train-00000.parquet ...     image, label (a ClassLabel), and the other columns of `purified/`
    README.md                        its card

The features are written into the files as `datasets` writes them, so that neither side needs to be told anything;
`datasets` itself is not needed to write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from coreg_ray.deploy.labels.base import Pictures, PoolLabels
from coreg_ray.deploy.labels.names import file_name
from coreg_ray.deploy.labels.pixels import Unreadable
from coreg_ray.deploy.purified import SCHEMA
from coreg_ray.images import open_source
from coreg_ray.images.folder import ImageFolder
from coreg_ray.run.storage import Folder

FILE: str | None = None
HAS_PICTURES = True
_AT_ONCE = 64 * 2**20  # bytes of pictures in a row group
_A_FILE = 2**29  # bytes of pictures in a file
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
WORDS = """\
Labels made without manual work from the votes of vision-language models and two networks trained on them with Co-Reg.

`status` says how far to trust a label: `trusted` was given by a person, `clean` is one whose candidate classes both
networks find sound, `doubtful` any other, `outlier` may belong to no class. `probability` is that of the label.
"""


def card(files: str, **head: Any) -> str:
    """`README.md` of a data set: what `datasets` and the Hub read, and a few words.

    Args:
        files: pattern of the data files. head: what else its head says.
    """
    split = {"config_name": "default", "data_files": [{"split": "train", "path": files}]}
    return f"---\n{yaml.safe_dump({**head, 'configs': [split]}, sort_keys=False)}---\n{WORDS}"


def write(labels: PoolLabels, folder: Folder, name: str, pictures: Pictures) -> int:
    """Write the data set."""
    schema, count, number, size = _schema(labels.class_names), 0, 0, 0
    folder.write("README.md", card("data/train-*"))
    folder.filesystem.create_dir(f"{folder.path}/data")
    writer: pq.ParquetWriter | None = None
    try:
        for rows, images, held in _pictured(labels, pictures):
            if writer is None or size > _A_FILE:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(
                    f"{folder.path}/data/train-{number:05d}.parquet", schema, filesystem=folder.filesystem
                )
                number, size = number + 1, 0
            label = pc.index_in(rows["label"], pa.array(labels.class_names, pa.string())).cast(pa.int64())
            columns = [rows[column] for column in SCHEMA.names if column != "label"]
            writer.write_table(pa.table([pa.array(images, _IMAGE), label, *columns], schema))
            count, size = count + len(rows), size + held
    finally:
        if writer is not None:
            writer.close()
    return count


def _pictured(labels: PoolLabels, pictures: Pictures) -> Iterator[tuple[pa.Table, list[dict[str, Any]], int]]:
    """Labels, their images in the form of `datasets`, and the bytes of these; a row group at a time."""
    source, unreadable = open_source(pictures.config, "pool"), Unreadable()
    for rows, listing in pictures.beside(labels):
        if pictures.how == "link":
            assert isinstance(source, ImageFolder)
            paths = [str(Path(source.folder.path, name)) for name in listing["file"].to_pylist()]
            yield rows, [{"bytes": None, "path": path} for path in paths], 0
            continue
        ids, kept = rows["image_id"].to_pylist(), list[int]()
        images: list[dict[str, Any]] = []
        held = 0
        for row, content, ending in unreadable.readable(rows, source.fetch(listing)):
            kept.append(row)
            images.append({"bytes": content, "path": file_name(ids[row], ending)})
            held += len(content)
            if held > _AT_ONCE:
                yield rows.take(pa.array(kept)), images, held
                kept, images, held = [], [], 0
        if kept:
            yield rows.take(pa.array(kept)), images, held
    unreadable.report()


def _schema(class_names: list[str]) -> pa.Schema:
    """The columns, with what `datasets` wants to know about them."""
    others = [field for field in SCHEMA if field.name != "label"]
    features = {"image": {"_type": "Image"}, "label": {"names": class_names, "_type": "ClassLabel"}}
    features |= {field.name: _feature(field.type) for field in others}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([pa.field("image", _IMAGE), pa.field("label", pa.int64()), *others], metadata=told)


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    names = {pa.string(): "string", pa.float32(): "float32", pa.bool_(): "bool"}
    return {"dtype": names[kind], "_type": "Value"}
