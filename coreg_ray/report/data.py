"""What the report tells, read from a run folder; every part may be missing."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.writer import USED, read_card
from coreg_ray.config import Config
from coreg_ray.deploy.export import read_config
from coreg_ray.deploy.model import CARD
from coreg_ray.deploy.predictions import Judgement, Pair
from coreg_ray.report.baselines import Baseline, read_baselines
from coreg_ray.run.storage import Folder
from coreg_ray.training.sample import Sample, read_sample

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
        classes: K names. sizes: how many candidate sets have 1, 2, ... classes.
        pool, test: images that were looked at. card: `model/model.json`. prompts: of all annotators, in order.
    """

    config: Config | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    pool: Looked | None = None
    test: Looked | None = None
    card: dict[str, Any] = field(default_factory=dict)
    baselines: list[Baseline] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    @property
    def temperature(self) -> float:
        return float(self.card.get("temperature", 1.0))


def read_run(output: Folder) -> Run:
    """All that the report needs from the run folder."""
    config = read_config(output)
    manifest = output.read_json("candidates/manifest.json") if output.exists("candidates/manifest.json") else {}
    card = output.read_json(f"model/{CARD}") if output.exists(f"model/{CARD}") else {}
    pair = Pair.of(output)
    classes = list(manifest.get("class_names", pair.classes if pair else []))
    temperature = float(card.get("temperature", 1.0))
    most = config.report.images if config else 0
    return Run(
        config=config,
        metrics=output.read_json("metrics.json") if output.exists("metrics.json") else {},
        history=read_history(output),
        classes=classes,
        sizes=candidate_sizes(output / "candidates"),
        pool=look(output, "pool", pair, most, temperature) if pair else None,
        test=look(output, "test", pair, most, temperature) if pair else None,
        card=card,
        baselines=(read_baselines(output, config) if config else None) or [],
        prompts=read_prompts(output / "annotations/pool"),
    )


def read_prompts(table: Folder) -> list[str]:
    """The prompts of all annotators of a split."""
    names = table.read_json(USED) if table.exists(USED) else []
    return [prompt for name in names for prompt in read_card(table / name).prompts]


def read_history(output: Folder) -> list[dict[str, Any]]:
    """The rows of `history.csv`: numbers, None where a cell is empty, and the phase as text."""
    if not output.exists("history.csv"):
        return []
    rows = csv.DictReader(io.StringIO(output.read("history.csv").decode()))
    return [{name: _number(value) for name, value in row.items()} for row in rows]


def _number(text: str | None) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


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


def look(output: Folder, split: str, pair: Pair, most: int, temperature: float) -> Looked | None:
    """Both networks on images of a split (of test images: labelled ones); None where there are none."""
    sample = read_sample(output, split, pair.student.resolution, len(pair.classes), most)
    if sample is not None and split == "test":
        known = (sample.labels >= 0).numpy()
        sample = replace(sample.where(known), total=round(sample.total * float(known.mean())))
    if not sample:
        return None
    logits, features = pair.look(sample.pixels, LOOK_S)
    sample = sample.where(np.arange(len(sample)) < logits.shape[1])
    given = sample.labels if split == "test" else sample.annotated
    return Looked(sample, logits, features, Judgement.of(logits, given, temperature))


def deployed_logits(run: Run, looked: Looked) -> Tensor:
    """(M, K) of the network or networks that the artifact holds."""
    names = run.card.get("networks", ["a", "b"])
    return torch.stack([looked.logits["ab".index(name)] for name in names]).mean(dim=0)
