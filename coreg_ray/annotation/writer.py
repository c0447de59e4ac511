"""From annotators' answers to files, one part at a time: annotations, votes on new prompts, what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import matrix, read_table, write_table
from coreg_ray.annotation.card import MANIFEST, TEXT, Card
from coreg_ray.annotation.ledger import Usage, record
from coreg_ray.annotation.parts import Part, annotation_table, drop_outdated, keys_of, known_keys, parts
from coreg_ray.annotation.preparation import record_rejects
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.ids import images_hash
from coreg_ray.run.storage import Folder

if TYPE_CHECKING:
    from coreg_ray.annotation.chat import ChatAnswers
    from coreg_ray.annotation.clip import TextTable  # with torch, which tasks that only write start without


@dataclass(frozen=True)
class Place:
    """Where an annotator's answers about one split go: its folder, the number of the run, the split's rejects."""

    folder: Folder
    run: int
    rejects: Folder


def write_annotations(batch: dict[str, NDArray[Any]], *, places: dict[str, Place], card: Card) -> dict[str, Any]:
    """Write one part of the annotation table for each split in the batch.

    Returns:
        One line: `images`, and for each split `<split>/images`.
    """
    line = {f"{split}/images": [0] for split in places}
    for split, place in places.items():
        mine = batch["split"] == split
        if mine.any():
            _write_part({name: values[mine] for name, values in batch.items()}, place, card)
            line[f"{split}/images"] = [int(mine.sum())]
    return {"images": [len(batch["split"])], **line}


def write_answers(answers: ChatAnswers, *, split: str, places: dict[str, Place], card: Card) -> dict[str, Any]:
    """Write what came of a block of images that a chat model was asked about: costs, rejects, a part a split.

    Args:
        split: whose account the block is charged to; images of either split cost the same.

    Returns:
        One line: that of `write_annotations`, `<split>/refused`, and `<split>/requests` and tokens.
    """
    record(places[split].folder, places[split].run, answers.usage)
    line: dict[str, Any] = {}
    for name, place in places.items():
        mine = answers.refused["split"] == name
        ids, contents, reasons = (answers.refused[key][mine].tolist() for key in ("image_id", "content", "reason"))
        if ids:
            record_rejects(place.rejects, list(zip(ids, contents, reasons, strict=True)), place.run)
        line[f"{name}/refused"] = [len(ids)]
        costs = vars(answers.usage if name == split else Usage())
        line |= {f"{name}/{figure}": [amount] for figure, amount in costs.items()}
    return {**line, **write_annotations(answers.answered, places=places, card=card)}


def _write_part(batch: dict[str, NDArray[Any]], place: Place, card: Card) -> None:
    ids, contents = batch["image_id"].tolist(), batch["content"].tolist()
    table = annotation_table(ids, contents, card.folder, batch["votes"], batch.get("embedding"))
    if "answers" in batch:
        answers = [list(texts) for texts in batch["answers"]]
        table = table.append_column("answers", pa.array(answers, pa.list_(pa.string())))
    write_table(place.folder, Part(place.run, images_hash(ids, contents), card.text).name, table)


def settle_rows(pool: NDArray[np.int64], folder: Folder, *others: Folder) -> tuple[int, str]:
    """Keep one row for each image of the pool.

    Args:
        pool: (N,) sorted row numbers. others: tables whose later runs count against `folder` too: the rejects.

    Returns:
        The number of rows, and 16 hex digits over their ids and contents, in whatever parts they lie.
    """
    drop_outdated(pool, folder, *others)
    marks = [keys_of(folder, part) for part in parts(folder)]
    return sum(map(len, marks)), _digits(sum(int(part.sum(dtype="uint64")) for part in marks))


def images_in(*folders: Folder) -> str:
    """16 hex digits over the ids and contents of all images in some tables, as `settle_rows` gives them."""
    return _digits(int(known_keys(*folders).sum(dtype="uint64")))


def _digits(keys: int) -> str:
    return f"{keys % 2**64:016x}"


def vote_again(part: Part, folder: Folder, card: Card, text: TextTable) -> int:
    """Replace a part by one whose votes answer the card's prompts, from the stored embeddings; returns its rows."""
    import torch

    from coreg_ray.annotation.clip import votes

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
    from coreg_ray.annotation.clip import TextTable

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
