"""From annotators' answers to files, one part at a time: annotations, votes on new prompts, what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreg_ray.annotation.arrow import matrix, read_table, write_table
from coreg_ray.annotation.card import MANIFEST, TEXT, Card
from coreg_ray.annotation.ledger import Usage, record
from coreg_ray.annotation.parts import Entries, Part, annotation_table, drop_outdated, keys_of, known_keys, parts, thin
from coreg_ray.annotation.rejects import NOT_FINITE, finite_rows, read_rejected, record_rejects
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.ids import contains, images_hash
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
    """Write one part of the annotation table for each split in the batch; answers that are not finite are rejects.

    Returns:
        One line: `images`, and for each split `<split>/images` that are answered and `<split>/not_finite`.
    """
    line: dict[str, Any] = {}
    finite = finite_rows(batch)
    for split, place in places.items():
        good, bad = ((batch["split"] == split) & which for which in (finite, ~finite))
        if good.any():
            _write_part({name: values[good] for name, values in batch.items()}, place, card)
        if bad.any():
            known = zip(batch["image_id"][bad].tolist(), batch["content"][bad].tolist(), strict=True)
            record_rejects(place.rejects, [(*entry, NOT_FINITE) for entry in known], place.run)
        line |= {f"{split}/images": [int(good.sum())], f"{split}/not_finite": [int(bad.sum())]}
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


def settle_rows(
    pool: NDArray[np.int64],
    folder: Folder,
    rejects: Folder | None = None,
    answered: Sequence[Folder] = (),
    own: bool = True,
) -> tuple[int, str]:
    """Keep one row for each image of the pool, none where it is rejected and nobody has answered for it as it is.

    Args:
        pool: (N,) sorted row numbers. answered: tables of annotators. own: rows and rejects are of one run folder, so
            that it is known which of them came later; else only rejects of the very same content count.

    Returns:
        The number of rows, and 16 hex digits over their ids and contents, in whatever parts they lie.
    """
    drop_outdated(pool, folder)
    if rejects is not None:
        rows, refused = Entries.of(folder), Entries.of(rejects)
        as_it_is = contains(np.sort(refused.keys()), rows.keys())
        later = refused.run_of(rows.rows, np.ones(len(refused.rows), dtype=bool)) >= rows.runs
        hit = later if own else as_it_is
        if hit.any():
            rows.keep(~hit | as_it_is & contains(known_keys(*answered), rows.keys()))
    marks = [keys_of(folder, part) for part in parts(folder)]
    return sum(map(len, marks)), _digits(sum(int(part.sum(dtype="uint64")) for part in marks))


def images_in(folders: Sequence[Folder], rejects: Folder) -> str:
    """16 hex digits over the ids and contents of all images in some tables, as `settle_rows` gives them.

    Args:
        rejects: of the same split; answers about what a file no longer holds do not count.
    """
    rejected, marks = read_rejected(rejects), [np.zeros(0, np.uint64)]
    for entries in map(Entries.of, folders):
        own = entries.keys()
        marks.append(own[~rejected.sets_aside(entries.rows, own)])
    return _digits(int(np.unique(np.concatenate(marks)).sum(dtype="uint64")))


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


def drop_not_finite(part: Part, folder: Folder) -> int:
    """Take stored embeddings that are not finite out of a part, to be asked for again; returns how many."""
    embedding = matrix(read_table(folder, part.name, ["embedding"])["embedding"], np.float16)
    finite = np.isfinite(embedding).all(axis=1)
    thin(folder, part, finite)
    return int((~finite).sum())


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
