"""The labels of a pool as a product: the best of votes and networks together, and how far to trust each.

`purified/` holds one row an image (SCHEMA), `probabilities/` what both networks together say of the same images, in
files of the same names and in the same order, ragged: classes below LEAST are left out, never N x K.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreg_ray.annotation.arrow import lists, read_table
from coreg_ray.config import Config
from coreg_ray.deploy.predictions import Pair
from coreg_ray.errors import UserError
from coreg_ray.ids import fingerprint, held_out
from coreg_ray.pure.combine import (
    BELIEVED_DOUBT,
    annotator_distribution,
    combine,
    doubted,
    heard,
    pool,
    settled,
)
from coreg_ray.pure.trust import Evidence, weigh
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.run.voters import VOTERS_JSON, Voters
from coreg_ray.training import checkpoint
from coreg_ray.training.sample import Samples
from coreg_ray.training.worker import Task

SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "label": pa.string(),
        "annotator_label": pa.string(),  # null where a manual label has taken its place
        "status": pa.string(),
        "candidates": pa.list_(pa.string()),
        "probability": pa.float32(),
        "clean_a": pa.float32(),  # null where the network has not assessed the row
        "clean_b": pa.float32(),
        "changed": pa.bool_(),
        "agree": pa.bool_(),  # both networks name the same class; null without networks
    }
)
STATUSES = ("trusted", "clean", "doubtful", "outlier")
FACTS = ["row", "image_id", "candidates", "votes", "scores", "background", "trusted"]  # of a candidate set
LEAST = 1e-3  # probability of a class that is kept
DOUBT = 0.1  # where no network was ever asked about a candidate set
_FORM = 2  # of what is written; another one makes the labels anew
LEAST_DOUBT, MOST_DOUBT = 1e-3, 0.3  # networks that have learned little doubt everything
_ASKED_CELLS = 2**22  # of them times classes
_MOST_CONFUSED = 100  # classes
_ASKED, _ASK_S = 1024, 20.0  # images that settle the temperature, and the time to ask about them
_BY_SCORES = ("label_model", "cpl")  # values of `candidates.mode` whose scores are a posterior


@dataclass(frozen=True)
class Making:
    """How labels are made.

    Attributes:
        class_names: K. by_scores: see `annotator_distribution`. doubt: share of the candidate sets that are unsound.
        temperature: of the networks' logits. confusions: (K, K), see `pure.combine`; None: as assumed.
        threshold: clean probability above which a set counts as sound.
        prior: (K,) that annotator and networks have both assumed, None for uniform.
        believed: whether the annotator's scores are the posterior of a label model that is believed.
        holdout: share of the images that no network was trained on. unsound: the share of such sets that networks
            found, None where none was ever asked. evidence: how far to trust the labels, once networks were asked.
    """

    class_names: list[str]
    by_scores: bool = False
    doubt: float = DOUBT
    temperature: float = 1.0
    confusions: Tensor | None = None
    threshold: float = 0.5
    prior: Tensor | None = None
    believed: bool = False
    holdout: float = 0.0
    unsound: float | None = None
    evidence: Evidence | None = None

    @staticmethod
    def goes_by_scores(config: Config) -> bool:
        """Whether the scores of candidate sets are a posterior."""
        return config.candidates.mode in _BY_SCORES

    @classmethod
    def of(cls, run: RunFolder, config: Config, doubt: float | None = None) -> Making:
        """As a run folder asks for it; `doubt`: None where no network was ever asked, or there is none.

        Raises:
            UserError: the folder holds no candidate sets.
        """
        task, believed = Task.read(config, run), _believed(run, config)
        known = DOUBT if doubt is None else min(max(doubt, LEAST_DOUBT), MOST_DOUBT)
        return cls(
            task.class_names,
            cls.goes_by_scores(config),
            min(known, BELIEVED_DOUBT) if believed else known,
            threshold=config.method.clean_threshold,
            prior=task.prior,
            believed=believed,
            holdout=config.source.holdout,
            unsound=doubt,
        )


def _believed(run: RunFolder, config: Config) -> bool:
    """Whether the candidate sets' scores are the posterior of a label model that is believed."""
    if config.candidates.mode != "label_model" or not run.candidates.exists(VOTERS_JSON):
        return False
    return not Voters.from_json(run.candidates.read_json(VOTERS_JSON)).reason


def mark_of(run: RunFolder, config: Config) -> str:
    """16 hex digits over all that a trained run's labels are made from: checkpoint, candidate sets, settings.

    Raises:
        UserError: the folder holds no whole checkpoint, or no candidate sets.
    """
    newest, manifest = checkpoint.newest(run.checkpoints), run.read_candidate_manifest()
    if newest is None:
        raise UserError(f"{run.path} has no whole checkpoint, so no network can say anything; train first")
    if manifest is None:
        raise UserError(f"{run.path} has no candidates/; give the command that made the run again")
    description, making = checkpoint.describe(newest), Making.of(run, config)  # whose fingerprint covers the images
    return fingerprint(
        [_FORM, description["fingerprint"], description["epoch"]],
        [manifest.made_from, manifest.fingerprint, manifest.parts, manifest.class_names],
        [making.threshold, making.by_scores],
    )


def calibrated(making: Making, run: RunFolder, pair: Pair, samples: Samples | None = None) -> Making:
    """With the temperature at which both networks agree best with the annotator, its confusions as they see them, and
    the evidence how far to trust what they say together.

    All come from a sample of the pool. Confusions stay as assumed where there are more classes than a sample can tell
    apart, where the networks doubt so much that they may be the ones who err, and where a label model is believed.

    Args:
        pair: both networks. samples: of this run, where they are read already.
    """
    classes = len(making.class_names)
    samples = samples or Samples(run, pair.student.resolution, classes)
    sample = samples.of("pool", min(_ASKED, max(1, _ASKED_CELLS // classes)))
    if sample is None:
        return making
    logits = pair.look(sample.inputs, _ASK_S)[0]
    asked = pa.array(sample.numbers[: logits.shape[1]])
    tables = [read_table(run.candidates, name, FACTS) for name in part_names(run.candidates)]
    facts = pa.concat_tables([t.filter(pc.is_in(t["row"], asked)) for t in tables], promote_options="default")
    place = pc.index_in(asked, facts["row"])
    known = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))  # who has no candidate set says nothing
    annotator, logits = _annotator(facts.take(place.drop_null()), making)[0], logits[:, torch.from_numpy(known)]
    apart = held_out(asked.to_numpy(), making.holdout)[known]
    confused = classes <= _MOST_CONFUSED and making.doubt < MOST_DOUBT
    temperature, table = settled(annotator, logits, making.doubt, making.believed, torch.from_numpy(apart), confused)
    evidence = weigh(annotator, logits, torch.from_numpy(apart), making.believed, making.unsound)
    return replace(making, temperature=temperature, confusions=table, evidence=evidence)


def annotated_labels(facts: pa.Table, making: Making) -> pa.Table:
    """The annotator's own labels (SCHEMA) of candidate sets (FACTS): the most votes, of equals the lowest class."""
    probs, label = _annotator(facts, making, by_scores=False)
    trusted = _flags(facts, "trusted")
    best = torch.where(trusted, 1.0, probs.gather(1, label[:, None])[:, 0])
    return _table(facts, making, label, label, best, torch.full((2, len(facts)), torch.nan), None)


def purified_labels(facts: pa.Table, logits: Tensor, clean: Tensor, making: Making) -> tuple[pa.Table, pa.Table]:
    """Labels (SCHEMA) of candidate sets and networks together, and the networks' probabilities.

    Args:
        facts: B candidate sets (FACTS). logits: (2, B, K) of both networks. clean: (2, B), NaN where not assessed.
    """
    annotator, own = _annotator(facts, making)
    networks = (logits.float() / making.temperature).log_softmax(dim=2)
    table = making.confusions
    answer = doubted(annotator, making.doubt) if table is None else heard(annotator, table)
    both = combine(answer, networks, making.prior)
    probability, label = both.max(dim=1)
    trusted = _flags(facts, "trusted")
    label = torch.where(trusted, own, label)
    probability = torch.where(trusted, 1.0, probability)
    clean = torch.where(trusted & ~clean.isnan(), 1.0, clean)
    first, second = logits.argmax(dim=2)
    labels = _table(facts, making, label, own, probability, clean, first == second)
    return labels, ragged(pool(networks).exp())


def ragged(probs: Tensor) -> pa.Table:
    """Distributions (B, K) as `classes` and `probabilities`: those of at least LEAST, and always the largest."""
    kept = (probs >= LEAST) | (probs == probs.amax(dim=1, keepdim=True))
    classes = kept.nonzero()[:, 1].to(torch.int32).numpy()
    counts = kept.sum(dim=1).numpy()
    values = probs[kept].to(torch.float16).numpy()
    return pa.table({"classes": lists(counts, classes), "probabilities": lists(counts, values)})


def dense(table: pa.Table, num_classes: int) -> NDArray[np.float32]:
    """What `ragged` was given, up to what it left out: (B, K) float32 distributions."""
    counts = pc.list_value_length(table["classes"]).to_numpy()
    probs = np.zeros((len(table), num_classes), np.float32)
    row = np.repeat(np.arange(len(table)), counts)
    probs[row, _flat(table, "classes", np.int64)] = _flat(table, "probabilities", np.float32)
    return probs / probs.sum(axis=1, keepdims=True)


def annotator_probabilities(facts: pa.Table, making: Making) -> NDArray[np.float32]:
    """(B, K) float32, what the annotator says of candidate sets (FACTS); certain where a label is manual."""
    probs, label = _annotator(facts, making, by_scores=False)
    certain = torch.nn.functional.one_hot(label, probs.shape[1]).float()
    return torch.where(_flags(facts, "trusted")[:, None], certain, probs).numpy()


def _annotator(facts: pa.Table, making: Making, by_scores: bool = True) -> tuple[Tensor, Tensor]:
    """The annotator's distribution (B, K) and its label (B,); a manual label is the only candidate of its row.

    The distribution goes by the scores, which are the shares of the votes where an annotator has nothing finer, and
    the label by the votes, unless the scores are a posterior. `by_scores` false: so does the distribution.
    """
    counts = torch.from_numpy(pc.list_value_length(facts["candidates"]).to_numpy().astype(np.int64))
    names: tuple[tuple[str, Any], ...] = (("candidates", np.int64), ("votes", np.float32), ("scores", np.float32))
    indices, votes, scores = (torch.from_numpy(_flat(facts, name, kind)) for name, kind in names)
    classes = len(making.class_names)
    probs = annotator_distribution(indices, counts, votes, scores, classes, making.by_scores)
    label = probs.argmax(dim=1)
    if by_scores and not making.by_scores:
        probs = annotator_distribution(indices, counts, votes, scores, classes, by_scores=True)
    manual = _flags(facts, "trusted") & (counts == 1)
    first = (counts.cumsum(0) - counts).clamp(max=max(0, len(indices) - 1))
    return probs, torch.where(manual, indices[first], label) if len(indices) else label


def _table(
    facts: pa.Table,
    making: Making,
    label: Tensor,
    own: Tensor,
    probability: Tensor,
    clean: Tensor,
    agree: Tensor | None,
) -> pa.Table:
    names = pa.array(making.class_names, pa.string())
    trusted, background = _flags(facts, "trusted"), _flags(facts, "background")
    sound = clean.mean(dim=0) > making.threshold  # NaN is not above anything
    status = torch.where(sound, STATUSES.index("clean"), STATUSES.index("doubtful"))
    status = torch.where(background, STATUSES.index("outlier"), status)
    status = torch.where(trusted, STATUSES.index("trusted"), status)
    candidates = facts["candidates"].combine_chunks()
    counts = pc.list_value_length(candidates).to_numpy(zero_copy_only=False)
    said_by_annotator = pa.array(own.numpy(), mask=trusted.numpy())
    agreed = pa.nulls(len(facts), pa.bool_()) if agree is None else pa.array(agree.numpy())
    columns = [
        facts["image_id"].combine_chunks(),
        names.take(pa.array(label.numpy())),
        names.take(said_by_annotator),
        pa.array(STATUSES).take(pa.array(status.numpy())),
        lists(counts, names.take(pa.array(_flat(facts, "candidates", np.int64)))),
        pa.array(probability.float().numpy()),
        *(pa.array(one.numpy(), mask=one.isnan().numpy()) for one in clean.float()),
        pa.array(((label != own) & ~trusted).numpy()),
        agreed,
    ]
    return pa.table(columns, SCHEMA)


def _flags(facts: pa.Table, name: str) -> Tensor:
    """(B,) bool; false where an earlier version has not written the column."""
    if name not in facts.column_names:
        return torch.zeros(len(facts), dtype=torch.bool)
    return torch.from_numpy(facts[name].to_numpy(zero_copy_only=False).astype(bool))


def _flat(table: pa.Table, name: str, kind: type[np.generic]) -> NDArray[Any]:
    """The values of a ragged column, row after row."""
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[name].chunks]
    return np.concatenate([np.zeros(0, kind), *chunks]).astype(kind, copy=False)


def part_names(folder: Folder) -> list[str]:
    """The Parquet files that lie directly in a folder, sorted."""
    return [name for name in folder.entries() if name.endswith(".parquet")]
