"""Votes from files on their way to the images: read a file in a task each, brought together a bucket at a time.

A bucket is a stretch of row numbers, which are hashes, so all are alike. The tables of all buckets lie in the object
store, about 8 bytes a vote and 16 an image; a node that looks images up has one copy of them. The driver holds none.
"""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa
import ray
from numpy.typing import NDArray

from coreg_ray.annotation import votes, writer
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.annotation.vote_files import VoteFiles
from coreg_ray.annotation.vote_table import VoteTable
from coreg_ray.cluster import metrics
from coreg_ray.cluster.pools import Pool
from coreg_ray.cluster.tasks import ask, task
from coreg_ray.config import AnnotatorConfig

log = logging.getLogger(__name__)


def gather_votes(annotator: AnnotatorConfig, card: Card, pool: Pool) -> list[ray.ObjectRef]:
    """References to the tables (`VoteTable`, or None) of all votes about the images of a pool.

    Raises:
        UserError: votes for no class, none about the pool, a voter who votes twice, or what `votes.read_votes` raises.
    """
    files, form = VoteFiles.at(annotator.votes or ""), votes.form_of(card)
    buckets = votes.count_buckets(files)
    read = task(votes.read_votes).options(num_returns=buckets + 1)
    words = Vocabulary(card.names, card.prompts)
    reading = [read.remote(name, files, form, words, pool.listing.rows, buckets) for name in files.names]
    notes = votes.ReadNotes()
    for references in reading:
        notes += ask(references[-1])
    notes.refuse(files.shown, form.kind, ask(task(_first).remote(pool.listing.blocks[0])))
    for line in notes.told(files.shown):
        log.warning("%s", line)
    tables = [
        task(_table).remote(files.shown, form.voters, *(references[bucket] for references in reading))
        for bucket in range(buckets)
    ]
    for table in tables:
        ask(task(_is_there).remote(table))
    return tables


def write_votes(
    batch: dict[str, NDArray[Any]], tables: list[ray.ObjectRef], places: dict[str, writer.Place], card: Card
) -> dict[str, Any]:
    """`votes.write_votes` with the tables in the object store; what was answered shows in Ray's metrics."""
    line = votes.write_votes(batch, ray.get(tables), places["pool"], card)
    metrics.count(metrics.ANNOTATED, card.folder, line["pool/images"])
    return {name: [count] for name, count in line.items()}


def _table(shown: str, voters: tuple[str, ...], *pieces: Any) -> VoteTable | None:
    return VoteTable.of(shown, voters, pieces)


def _is_there(table: VoteTable | None) -> bool:
    """Whether a bucket holds a vote; whoever asks learns of an error here."""
    return table is not None


def _first(block: pa.Table) -> list[str]:
    """The first ids of a listing."""
    ids: list[str] = block["image_id"].slice(0, votes.SHOWN).to_pylist()
    return ids
