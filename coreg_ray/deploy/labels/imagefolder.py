"""Labels as a folder of pictures for each class, as `torchvision.datasets.ImageFolder` and many others read it.

    <class>/<end of the image's id>-<its row number>.<ending>     a link or a copy
    classes.json                                                  {folder: class name}
    images.csv                                                    file, image_id, label, status, probability

Names of folders and files are made safe (names.py); a class without an image has no folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from coreg_ray.deploy.labels.base import Pictures, PoolLabels
from coreg_ray.deploy.labels.names import file_name, folder_names
from coreg_ray.deploy.labels.pixels import ENDINGS, Unreadable
from coreg_ray.errors import UserError
from coreg_ray.images import open_source
from coreg_ray.images.folder import ImageFolder
from coreg_ray.run.cells import neutral
from coreg_ray.run.storage import Folder

FILE: str | None = None
HAS_PICTURES = True
_TOLD = ("image_id", "label", "status", "probability")


def write(labels: PoolLabels, folder: Folder, name: str, pictures: Pictures) -> int:
    """Write the folders.

    Raises:
        UserError: a picture that should be linked has an ending that ImageFolder passes over.
    """
    folders, count = dict(zip(labels.class_names, folder_names(labels.class_names), strict=True)), 0
    used: set[str] = set()
    with folder.filesystem.open_output_stream(f"{folder.path}/images.csv") as stream:
        stream.write(_lines([("file", *_TOLD)]))
        placed = _linked if pictures.how == "link" else _copied
        for rows, files in placed(labels, folder, folders, pictures):
            columns = [rows[column].to_pylist() for column in _TOLD]
            stream.write(_lines([(file, *told) for file, *told in zip(files, *columns, strict=True)]))
            used.update(rows["label"].to_pylist())
            count += len(rows)
    folder.write_json("classes.json", {folders[entry]: entry for entry in labels.class_names if entry in used})
    return count


def _linked(
    labels: PoolLabels, folder: Folder, folders: dict[str, str], pictures: Pictures
) -> Iterator[tuple[pa.Table, list[str]]]:
    source = open_source(pictures.config, "pool")
    assert isinstance(source, ImageFolder)
    for rows, listing in pictures.beside(labels):
        files = []
        for label, image_id, name in zip(
            *(rows[column].to_pylist() for column in ("label", "image_id")), listing["file"].to_pylist(), strict=True
        ):
            ending = PurePosixPath(name).suffix
            if ending.lower() not in ENDINGS:
                raise UserError(
                    f"{name} ends in {ending}, which readers of class folders pass over ({', '.join(ENDINGS)} are "
                    "read); use --pictures copy, which converts such images to PNG"
                )
            files.append(f"{folders[label]}/{file_name(image_id, ending.lower())}")
            link = Path(folder.path, files[-1])
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(Path(source.folder.path, name))
        yield rows, files


def _copied(
    labels: PoolLabels, folder: Folder, folders: dict[str, str], pictures: Pictures
) -> Iterator[tuple[pa.Table, list[str]]]:
    source, unreadable = open_source(pictures.config, "pool"), Unreadable()
    made: set[str] = set()
    for rows, listing in pictures.beside(labels):
        names, ids = rows["label"].to_pylist(), rows["image_id"].to_pylist()
        kept, files = [], []
        for row, content, ending in unreadable.readable(rows, source.fetch(listing)):
            below = folders[names[row]]
            if below not in made:
                folder.filesystem.create_dir(f"{folder.path}/{below}")
                made.add(below)
            kept.append(row)
            files.append(f"{below}/{file_name(ids[row], ending)}")
            with folder.filesystem.open_output_stream(f"{folder.path}/{files[-1]}") as stream:
                stream.write(content)
        yield rows.take(pa.array(kept, pa.int64())), files
    unreadable.report()


def _lines(rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([neutral(f"{cell:.6g}" if isinstance(cell, float) else cell) for cell in row] for row in rows)
    return text.getvalue().encode()
