"""What the report tells, read from a run folder; every part may be missing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.writer import read_card
from coreg_ray.config import Config
from coreg_ray.deploy.own_files import CARD
from coreg_ray.deploy.predictions import Judgement, Pair
from coreg_ray.metrics import NETWORKS
from coreg_ray.report.baselines import read_baselines
from coreg_ray.report.usable import Usable, count_usable
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import Baseline
from coreg_ray.run.storage import Folder
from coreg_ray.run.voters import VOTERS_JSON, Voters
from coreg_ray.training.sample import Sample, Samples

LOOK_S = 8.0  # time for looking at one split, so that a report never takes long where there is no GPU


@dataclass(frozen=True)
class Looked:
    """Images of one split that both networks were asked about.

    Attributes:
        logits: (2, M, K) of networks a and b. features: (M, F), see `Pair.look`.
        judged: compared with the annotator's choice (pool) or with the label (test).
    """

    sample: Sample
    logits: Tensor
    features: Tensor
    judged: Judgement

    def where(self, mask: NDArray[np.bool_]) -> Looked | None:
        """The images for which mask (M,) is true; None if it never is."""
        if not mask.any():
            return None
        rows = torch.from_numpy(mask)
        return Looked(self.sample.where(mask), self.logits[:, rows], self.features[rows], self.judged.where(mask))


@dataclass(frozen=True)
class Run:
    """A finished run, as far as there is one.

    Attributes:
        config: `config.yaml`. metrics: `metrics.json`. history: one dictionary of numbers an epoch.
        class_names: K. sizes: how many candidate sets have 1, 2, ... classes.
        pool, test: images that were looked at. card: `model/model.json`. prompts: of all annotators, in order.
        voters: what the label model believes of them, where there is one. usable: the pool's labels by probability.
    """

    config: Config | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    pool: Looked | None = None
    test: Looked | None = None
    card: dict[str, Any] = field(default_factory=dict)
    baselines: list[Baseline] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    voters: Voters | None = None
    usable: Usable | None = None

    @property
    def noun(self) -> str:
        """What who answers is called."""
        return "voter" if self.config and any(one.kind == "votes" for one in self.config.annotators) else "prompt"

    @property
    def only_votes(self) -> bool:
        """Whether all answers were in files, so that there is none about the test images."""
        return self.config is not None and all(one.kind == "votes" for one in self.config.annotators)

    @property
    def temperature(self) -> float:
        return float(self.card.get("temperature", 1.0))


def read_run(folder: RunFolder, samples: Samples | None = None) -> Run:
    """All that the report needs from the run folder; `samples`: of this run, where they are read already."""
    config, manifest, pair = folder.read_config(), folder.read_candidate_manifest(), Pair.of(folder)
    card = folder.model.read_json(CARD) if folder.model.exists(CARD) else {}
    class_names = manifest.class_names if manifest else pair.class_names if pair else []
    temperature = float(card.get("temperature", 1.0))
    most = config.report.images if config else 0
    if pair and samples is None:
        samples = Samples(folder, pair.student.resolution, len(pair.class_names))
    return Run(
        config=config,
        metrics=folder.read_metrics(),
        history=folder.read_history(),
        class_names=list(class_names),
        sizes=candidate_sizes(folder.candidates),
        pool=look(samples, "pool", pair, most, temperature) if pair and samples else None,
        test=look(samples, "test", pair, most, temperature) if pair and samples else None,
        card=card,
        baselines=(read_baselines(folder, config) if config else None) or [],
        prompts=[prompt for table in folder.read_used("pool") for prompt in read_card(table).prompts],
        voters=Voters.from_json(folder.candidates.read_json(VOTERS_JSON))
        if folder.candidates.exists(VOTERS_JSON)
        else None,
        usable=count_usable(folder, config),
    )


def candidate_sizes(folder: Folder) -> list[int]:
    """How many candidate sets in the table have 1, 2, ... classes."""
    counts = np.zeros(1, np.int64)
    for name in folder.entries():
        if name.endswith(".parquet"):
            lengths = pc.list_value_length(read_table(folder, name, ["candidates"])["candidates"]).to_numpy()
            counts = _sum(counts, np.bincount(lengths))
    return counts[1:].tolist()


def _sum(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    total = np.zeros(max(len(one), len(other)), np.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total


def look(samples: Samples, split: Split, pair: Pair, most: int, temperature: float) -> Looked | None:
    """Both networks on images of a split (of test images: labelled ones); None where there are none."""
    sample = samples.of(split, most)
    if sample is not None and split == "test":
        known = (sample.labels >= 0).numpy()
        sample = replace(sample.where(known), total=round(sample.total * float(known.mean())))
    if not sample:
        return None
    logits, features = pair.look(sample.inputs, LOOK_S)
    sample = sample.where(np.arange(len(sample)) < logits.shape[1])
    given = sample.labels if split == "test" else sample.annotated
    return Looked(sample, logits, features, Judgement.of(logits, given, temperature))


def deployed_logits(run: Run, looked: Looked) -> Tensor:
    """(M, K) of the network or networks that the artifact holds."""
    names = run.card.get("networks", list(NETWORKS))
    return torch.stack([looked.logits[NETWORKS.index(name)] for name in names]).mean(dim=0)
