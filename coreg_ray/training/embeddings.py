"""What annotators have stored of the rows that are trained on: their embeddings, and what one prompt says of each.

Both are read from `annotations/`, whatever candidate sets were made of it: runs that share annotations and sets may
learn from different prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coreg_ray.annotation import writer
from coreg_ray.annotation.arrow import matrix, read_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.clip import probabilities
from coreg_ray.annotation.parts import parts
from coreg_ray.errors import UserError
from coreg_ray.ids import contains, row_numbers
from coreg_ray.pure.soft_labels import MOST_SHARES, largest_shares
from coreg_ray.training.read_sets import certain
from coreg_ray.training.rows import Rows
from coreg_ray.training.soft import Soft

if TYPE_CHECKING:
    from coreg_ray.config import Config
    from coreg_ray.run.folder import RunFolder, Split
    from coreg_ray.run.storage import Folder

_SHOWN = 5  # prompts that an error names


def embedding_tables(run: RunFolder, split: Split) -> list[tuple[Folder, Card]]:
    """The tables of a split that hold embeddings, each with its annotator's card, in the annotators' order."""
    tables = [(folder, writer.read_card(folder)) for folder in run.read_used(split)]
    return [(folder, card) for folder, card in tables if card.dim]


def refuse_lacking(config: Config, run: RunFolder) -> None:
    """Refuse a method that looks at what the annotators of a run have not stored, before anything is trained.

    Raises:
        UserError: there are no embeddings, or the prompt that is to be learnt was not asked.
    """
    method = config.method
    if method.distil.prompt is not None:
        _table_of_prompt(run, method.distil.prompt)
    if method.neighbours and not config.student.on_features:
        _first_table(run)


def refuse_unasked(prompt: str | None, asked: Sequence[str], where: str) -> None:
    """Raises UserError where a prompt is none of those that are asked; `where`: of whom, in words."""
    if prompt is None or prompt.strip() in asked:
        return
    more = f" and {len(asked) - _SHOWN} more" if len(asked) > _SHOWN else ""
    raise UserError(
        f"method.distil.prompt={prompt!r} is none of the prompts of {where} ({', '.join(map(repr, asked[:_SHOWN]))}"
        f"{more}); name one of these, or annotate with it first (source.prompts; no image is encoded again)"
    )


def space_of(config: Config, run: RunFolder, rows: Rows) -> Tensor | None:
    """Where neighbours are looked for: (N, D) float16 of this replica's rows; None where nobody asks for any.

    Raises:
        UserError: no annotator has stored embeddings, and there are no features of a frozen student.
    """
    if not config.method.neighbours:
        return None
    return stored_embeddings(run, rows.numbers) if rows.features is None else rows.features[:, 0]


def stored_embeddings(run: RunFolder, numbers: Tensor) -> Tensor:
    """Embeddings (N, D) float16 of the rows with these numbers (N,), ascending, by the first annotator that has some.

    Raises:
        UserError: no annotator has stored any, or none of some row.
    """
    folder, card = _first_table(run)
    embeddings = torch.empty(len(numbers), card.dim, dtype=torch.float16)
    for place, embedding in _read(folder, numbers):
        embeddings[place] = embedding
    return embeddings


def labels_of_prompt(run: RunFolder, prompt: str, rows: Rows) -> Soft:
    """What one prompt says of every row: the largest of its probabilities; trusted rows keep their label.

    Raises:
        UserError: it was not asked, or about some row not.
    """
    folder, card = _table_of_prompt(run, prompt)
    text = writer.read_text(folder, card)
    alone = replace(text, embeddings=text.embeddings[[card.prompts.index(prompt.strip())]])
    kept = min(MOST_SHARES, rows.num_classes)
    classes, shares = torch.empty(len(rows), kept).int(), torch.empty(len(rows), kept).half()
    for place, embedding in _read(folder, rows.numbers):
        blocks = [largest_shares(block[:, 0]) for block in probabilities(embedding, alone)]
        classes[place], shares[place] = (torch.cat(part) for part in zip(*blocks, strict=True))
    trusted = rows.trusted.nonzero()[:, 0]
    own = rows.indices[rows.indptr[trusted]]
    given = certain(classes.numpy(), shares.numpy(), trusted.numpy(), own.numpy())
    return Soft(*map(torch.from_numpy, given))


def _first_table(run: RunFolder) -> tuple[Folder, Card]:
    tables = embedding_tables(run, "pool")
    if not tables:
        raise UserError(
            f"{run.annotations('pool').path} holds no embeddings, which method.neighbours and method.distil.prompt "
            "look at; annotate with an annotator of kind clip, or leave them out (neighbours are also found in the "
            "features of a frozen student, student.frozen true)"
        )
    return tables[0]


def _table_of_prompt(run: RunFolder, prompt: str) -> tuple[Folder, Card]:
    first = _first_table(run)
    for folder, card in embedding_tables(run, "pool"):
        if prompt.strip() in card.prompts:
            return folder, card
    refuse_unasked(prompt, first[1].prompts, first[0].path)
    raise AssertionError("no table has the prompt, so that it is refused")


def _read(folder: Folder, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each part of a table: which of the rows (N,), ascending, it is about, (n,), and their embeddings (n, D).

    Raises:
        UserError: after the last part, where some row had no embedding.
    """
    wished, seen = numbers.numpy(), np.zeros(len(numbers), dtype=bool)
    for part in parts(folder):
        table = read_table(folder, part.name, ["image_id", "embedding"])
        given = row_numbers(table["image_id"].to_pylist())
        mine = contains(wished, given)
        place = np.searchsorted(wished, given[mine])
        seen[place] = True
        if len(place):
            embedding = matrix(table["embedding"], np.float16)[mine]
            yield torch.from_numpy(place), torch.from_numpy(embedding)
    if not seen.all():
        raise UserError(
            f"{folder.path} lacks the embeddings of {int((~seen).sum())} of {len(seen)} images; annotate again, which "
            "encodes those alone, or use method.neighbours 0 and no method.distil.prompt"
        )
