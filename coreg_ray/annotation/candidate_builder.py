"""From annotations to candidate sets, a part at a time, counting on the way how good they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from coreg_ray.annotation.alignment import Alignment, aligned_answers
from coreg_ray.annotation.arrow import lists, matrix, read_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.clip import TextTable, probabilities
from coreg_ray.annotation.evidence import Evidence, counts_of, write_sets
from coreg_ray.annotation.labels import NO_CLASS, Labels
from coreg_ray.annotation.parts import Part
from coreg_ray.annotation.quality import Score
from coreg_ray.annotation.rejects import NOT_FINITE, Rejected, record_rejects
from coreg_ray.annotation.rule import Rule
from coreg_ray.annotation.set_marks import mark_of_sets, mark_of_votes
from coreg_ray.config import CandidatesConfig
from coreg_ray.ids import keys, row_number, row_numbers
from coreg_ray.pure import candidates as sets
from coreg_ray.pure.label_model import sets_by_mass
from coreg_ray.pure.weights import relative_weights
from coreg_ray.run.storage import Folder


@dataclass(frozen=True)
class Making:
    """How candidate sets are made and where they go.

    Attributes:
        settings: mode and its numbers.
        labels: true labels, which only score (and make synthetic sets).
        manual: manual labels, which are trusted.
        output: folder of the candidate sets, None to count only.
        seed: of synthetic sets.
        rejected: images whose answers do not count, because their files hold something else now.
        rejects: where images are recorded whose stored answers are not finite, None: nowhere.
        ratios: by an annotator's folder, how its probabilities are aligned.
        rule: what modes that look at the whole pool first have found there.
    """

    settings: CandidatesConfig
    labels: Labels
    manual: Labels
    output: Folder | None
    seed: int
    rejected: Rejected = field(default_factory=Rejected)
    rejects: Folder | None = None
    ratios: dict[str, Alignment] = field(default_factory=dict)
    rule: Rule = field(default_factory=Rule)


def score_part(
    part: Part, folder: Folder, card: Card, text: TextTable | None, making: Making, prompts: Sequence[int] | None = None
) -> Score:
    """Turn one part of a single annotator's table into candidate sets; arguments as `read_evidence` takes them."""
    return score(read_evidence(part, folder, card, text, making, prompts), making, part.images)


def read_evidence(
    part: Part, folder: Folder, card: Card, text: TextTable | None, making: Making, prompts: Sequence[int] | None = None
) -> Evidence:
    """What one annotator says in one part of its table, and what it says that counts: `Making` has the exceptions.

    Args:
        card, text: of the prompts that count.
        prompts: their places among those that were asked; None where all count.
    """
    scored = card.details.get("scores", "votes") != "votes"
    columns = ["image_id", "content", "votes", *(["embedding"] if card.dim else ["mean"] if scored else [])]
    table = read_table(folder, part.name, columns)
    if len(making.rejected.rows):
        table = _counting(table, making.rejected)
    if not len(table):
        votes = torch.zeros(0, len(card.prompts), dtype=torch.int32)
        return Evidence([], votes, torch.zeros(0, len(card.names)), torch.zeros(0), _no(0))
    ids, votes = table["image_id"].to_pylist(), torch.from_numpy(matrix(table["votes"], np.int32))
    votes = votes if prompts is None else votes[:, list(prompts)]
    if text is None:
        mean = _shares(votes, len(card.names))
        if scored:
            given = torch.from_numpy(matrix(table["mean"], np.float32))
            mean = torch.where(given.isnan().any(dim=1, keepdim=True), mean, given)
        return Evidence(ids, votes, mean, torch.full((len(ids),), torch.nan), _no(len(ids)))
    embedding = torch.from_numpy(matrix(table["embedding"], np.float16))
    ratio = making.ratios.get(card.folder)
    if ratio is None:
        mean = torch.cat([block.mean(dim=1) for block in probabilities(embedding, text)])
    else:
        votes, mean = aligned_answers(embedding, text, ratio)
    finite = mean.isfinite().all(dim=1)  # which it is not where an embedding is not, or the logits are not
    if not finite.all():
        _record_not_finite(table.filter(pa.array(~finite.numpy())), making.rejects, part.run)
        ids = [image_id for image_id, keep in zip(ids, finite.tolist(), strict=True) if keep]
        votes, embedding, mean = votes[finite], embedding[finite], mean[finite]
    closeness = (embedding.float() @ text.embeddings.mean(dim=0).T).amax(dim=1)
    background = _no(len(ids))
    if len(text.background):
        background = (embedding.float() @ text.background.T).amax(dim=1) > closeness
    return Evidence(ids, votes, mean, closeness, background)


def _counting(table: pa.Table, rejected: Rejected) -> pa.Table:
    """The answers that are about what their files still hold."""
    ids, contents = table["image_id"].to_pylist(), table["content"].to_pylist()
    return table.filter(pa.array(~rejected.sets_aside(row_numbers(ids), keys(ids, contents))))


def _record_not_finite(table: pa.Table, rejects: Folder | None, run: int) -> None:
    if rejects is not None:
        known = zip(table["image_id"].to_pylist(), table["content"].to_pylist(), strict=True)
        record_rejects(rejects, [(*entry, NOT_FINITE) for entry in known], run)


def choose_prompts(card: Card, text: TextTable, prompts: Sequence[int]) -> tuple[Card, TextTable]:
    """An annotator as if it had been asked only some of its prompts, given by their places."""
    asked = replace(card, prompts=tuple(card.prompts[place] for place in prompts))
    return asked, replace(text, embeddings=text.embeddings[list(prompts)])


def _no(rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.bool)


def _shares(votes: Tensor, num_classes: int) -> Tensor:
    """The share of each class among the votes of a row: (n, P) -> (n, K), uniform where nobody voted."""
    counts = counts_of(votes, num_classes).float()
    total = counts.sum(dim=1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1), 1 / num_classes)


def score(evidence: Evidence, making: Making, name: str) -> Score:
    """Make the candidate sets of some images, write them as `name` if there is an output, and count."""
    num_classes, rows = evidence.mean.shape[1], evidence.rows
    if not len(rows):
        return Score.none(evidence.votes.shape[1], num_classes)
    truth, manual = making.labels.of(rows), making.manual.of(rows)
    trusted, excluded = manual >= 0, manual == NO_CLASS
    belief = making.rule.belief(evidence.votes)
    member = _sets(evidence, making, truth, belief)
    if trusted.any():
        member = torch.where(trusted[:, None], F.one_hot(manual.clamp(min=0), num_classes).bool(), member)
    total = Score.of(evidence.votes, evidence.mean, member, evidence.similarity, evidence.background, truth, belief)
    indices, sizes = sets.to_ragged(member)
    weights = _weights(evidence, making.settings.mode, member, belief)[member].numpy()
    if making.output is not None:
        shown = replace(evidence, background=evidence.background | excluded)
        shown = shown if belief is None else replace(shown, mean=belief.float())
        write_sets(making.output, name, shown, rows, member, {"trusted": trusted, "excluded": excluded}, weights)
    voted = mark_of_votes(evidence.image_ids, evidence.votes.numpy())
    read = weights if making.settings.weighted else None
    chosen = mark_of_sets(rows, sizes.numpy(), indices.numpy(), (trusted + 2 * excluded).numpy(), read)
    return replace(total, voted=voted, chosen=chosen)


def _sets(evidence: Evidence, making: Making, truth: Tensor, belief: Tensor | None) -> Tensor:
    """The candidate sets (n, K) bool that the mode asks for."""
    settings, num_classes = making.settings, evidence.mean.shape[1]
    if settings.mode == "union":
        return sets.combine_votes(evidence.votes, num_classes)
    if settings.mode == "synthetic":
        return torch.cat(
            [_synthetic(i, t, making, num_classes) for i, t in zip(evidence.image_ids, truth, strict=True)]
        )
    if belief is not None:
        return sets_by_mass(belief, evidence.votes, settings.mass)
    if settings.mode == "cpl":
        return making.rule.cpl_sets(evidence.mean)
    numbers = settings.model_dump(include={"k", "threshold", "ratio", "mass"})
    return sets.candidate_sets(evidence.mean[:, None], settings.mode, **numbers)


def _weights(evidence: Evidence, mode: str, member: Tensor, belief: Tensor | None) -> Tensor:
    """How much each candidate counts (n, K) float16: by what made the sets. Who excludes nothing weighs nothing."""
    if mode == "synthetic":
        return member.half()
    counts = counts_of(evidence.votes, member.shape[1])
    values = counts.float() if mode == "union" else evidence.mean if belief is None else belief
    return relative_weights(torch.where((counts > 0).any(dim=1, keepdim=True), values, 0.0), member)


def _synthetic(image_id: str, truth: Tensor, making: Making, num_classes: int) -> Tensor:
    """One row's synthetic set, drawn from its id, so that it does not depend on the part it lies in."""
    generator = torch.Generator().manual_seed((row_number(image_id) + making.seed) % 2**63)
    rates = making.settings.partial_rate, making.settings.noise_rate
    if truth < 0:
        raise ValueError(f"{image_id} has no label; candidates.mode=synthetic needs a label for every image")
    return sets.synthetic_candidates(truth[None], num_classes, *rates, generator)


def to_table(evidence: Evidence, source: int) -> pa.Table:
    """Evidence of annotator number `source` as rows that can travel to those of the other annotators."""
    n, prompts = evidence.votes.shape
    means = pa.array(evidence.mean.half().reshape(-1).numpy())
    return pa.table(
        {
            "row": evidence.rows,
            "image_id": pa.array(evidence.image_ids, pa.string()),
            "source": np.full(n, source, dtype=np.int32),
            "votes": lists(np.full(n, prompts), evidence.votes.reshape(-1).numpy()),
            "mean": pa.FixedSizeListArray.from_arrays(means, evidence.mean.shape[1]),
            "similarity": evidence.similarity.numpy(),
            "background": evidence.background.numpy(),
        }
    )


def join(table: pa.Table, prompts: Sequence[int]) -> Evidence:
    """Put the annotators' evidence side by side; `prompts` holds each one's number of prompts.

    Who has not seen an image has no vote on it and no part in its mean.
    """
    rows, first = np.unique(table["row"].to_numpy(), return_index=True)
    ids = table["image_id"].take(pa.array(first)).to_pylist()
    votes = torch.full((len(rows), sum(prompts)), sets.NO_VOTE, dtype=torch.int32)
    seen, mean = torch.zeros(len(rows), 1), torch.zeros(0)
    similarity, background = torch.full((len(rows),), torch.nan), _no(len(rows))
    for source, count in enumerate(prompts):
        part = table.filter(pa.array(table["source"].to_numpy() == source))
        if not len(part):
            continue
        at = torch.from_numpy(np.searchsorted(rows, part["row"].to_numpy()))
        start = sum(prompts[:source])
        votes[at, start : start + count] = torch.from_numpy(matrix(part["votes"], np.int32))
        given = torch.from_numpy(matrix(part["mean"], np.float32))
        mean = mean if len(mean) else torch.zeros(len(rows), given.shape[1])
        mean[at] += given
        seen[at] += 1
        known = torch.tensor(part["similarity"].to_numpy())
        similarity[at] = torch.where(similarity[at].isnan(), known, similarity[at])
        background[at] |= torch.tensor(part["background"].to_numpy(zero_copy_only=False))
    return Evidence(ids, votes, mean / seen, similarity, background)
