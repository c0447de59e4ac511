"""From annotators' answers to files, one part at a time: annotations, votes on new prompts, rows to train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from coreg_ray.annotations import (
    MANIFEST,
    TEXT,
    Card,
    Part,
    annotation_table,
    images_hash,
    matrix,
    read_table,
    write_table,
)
from coreg_ray.annotators.clip import TextTable, votes
from coreg_ray.sources import row_numbers
from coreg_ray.storage import Folder
from coreg_ray.vocabulary import Vocabulary

USED = "annotators.json"  # the folders of the annotators whose votes count
_SPENT = ("requests", "input_tokens", "output_tokens")


def write_annotations(batch: dict[str, NDArray[Any]], *, folder: Folder, run: int, card: Card) -> dict[str, Any]:
    """Write one part of the annotation table; answer with its number of images and what they cost."""
    ids, contents = batch["image_id"].tolist(), batch["content"].tolist()
    if not ids:
        return {"images": [0], **{name: [0] for name in _SPENT if name in batch}}
    table = annotation_table(ids, contents, card.folder, batch["votes"], batch.get("embedding"))
    if "answers" in batch:
        answers = [list(texts) for texts in batch["answers"]]
        table = table.append_column("answers", pa.array(answers, pa.list_(pa.string())))
    spent = {name: [int(batch[name].sum())] for name in _SPENT if name in batch}
    write_table(folder, Part(run, images_hash(ids, contents), card.text).name, table)
    return {"images": [len(ids)], **spent}


def write_rows(batch: dict[str, NDArray[Any]], *, folder: Folder, side: int) -> dict[str, Any]:
    """Write one part of the rows to train on; answer with its number of images."""
    ids, contents = batch["image_id"].tolist(), batch["content"].tolist()
    if ids:
        pixels = pa.py_buffer(np.ascontiguousarray(batch["image"]))
        images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(side * side * 3), len(ids), [None, pixels])
        table = pa.table({"row": row_numbers(ids), "image": images})
        write_table(folder, f"{images_hash(ids, contents)}.parquet", table)
    return {"images": [len(ids)]}


def vote_again(part: Part, folder: Folder, card: Card, text: TextTable) -> int:
    """Replace a part by one whose votes answer the card's prompts, from the stored embeddings; returns its rows."""
    table = read_table(folder, part.name)
    embedding = matrix(table["embedding"], np.float16)
    again = annotation_table(
        table["image_id"].to_pylist(),
        table["content"].to_pylist(),
        card.folder,
        votes(torch.from_numpy(embedding), text).numpy(),
        embedding,
    )
    write_table(folder, Part(part.run, part.images, card.text).name, again)
    folder.delete(part.name)
    return len(table)


def read_text(folder: Folder, card: Card) -> TextTable:
    """The text embeddings of an annotator's folder, whose manifest is `card`."""
    return TextTable.from_bytes(folder.read(TEXT), card.details["scale"], card.details["bias"])


def read_card(folder: Folder) -> Card:
    """The manifest of an annotator's folder."""
    return Card.from_manifest(folder.read_json(MANIFEST))


def known_card(table: Folder, identity: str, words: Vocabulary, background: list[str]) -> tuple[Card, bytes] | None:
    """The card and text file of an annotator that was asked the same before, for any split; None if there is none."""
    for split in table.entries():
        for name in (table / split).entries():
            folder = table / split / name
            if not folder.exists(MANIFEST):
                continue
            card = read_card(folder)
            same = card.details.get("identity") == identity and card.details.get("background", []) == background
            if same and (card.prompts, card.names) == (words.prompts, words.names):
                return card, folder.read(TEXT) if card.dim else b""
    return None


def count_rows(part: Part, folder: Folder) -> int:
    """How many rows a part has."""
    return read_table(folder, part.name, ["image_id"]).num_rows
