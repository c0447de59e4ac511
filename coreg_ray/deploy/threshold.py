"""The probability below which a model had better say nothing, chosen without true labels.

The pool's held-out images, which no network was trained on, have purified labels. The threshold is the lowest at which
the answers above it are as often those labels as is wished for, counted with one error more than there was:

    (errors + 1) / (answers + 1) <= 1 - precision

as conformal risk control has it (Angelopoulos et al., arXiv 2208.02814, section 2), so that a few images in a row that
happen to be right prove nothing. What the labels get wrong, this does not see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.annotation.arrow import read_table
from coreg_ray.deploy.abstain import UNKNOWN, Abstention
from coreg_ray.deploy.purified import part_names
from coreg_ray.run.folder import RunFolder
from coreg_ray.training.sample import Sample


@dataclass(frozen=True)
class Choice:
    """What came of choosing one: the rule, or why there is none.

    Attributes:
        answered: share of the held-out images that are answered with it. images: how many there were.
    """

    rule: Abstention | None
    reason: str = ""
    answered: float = 0.0
    images: int = 0

    def metrics(self) -> dict[str, Any]:
        """Figures by name; empty where there is no rule."""
        return {metrics.ABSTAIN_ANSWERED: self.answered, metrics.ABSTAIN_IMAGES: self.images} if self.rule else {}

    def words(self, wish: float) -> str:
        """What came of it, in a sentence."""
        if self.rule is None:
            return f"It stores no threshold to abstain by: for a precision of {wish:g}, {self.reason}."
        return (
            f"Asked to abstain, it says `{UNKNOWN}` below a probability of {self.rule.threshold:.3f}: of {self.images} "
            f"held-out images {self.answered:.0%} are answered then, by purified labels with a precision of at least "
            f"{wish:g}."
        )


def least_images(precision: float) -> int:
    """Images below which no threshold can be told, though all answers be right: 19 for a precision of 0.95."""
    return math.ceil(1 / (1 - precision) - 1e-9) - 1


def threshold_for(confidence: Tensor, right: Tensor, precision: float) -> float | None:
    """The lowest threshold whose answers are precise enough; None where there is none.

    Args:
        confidence: (M,) probabilities of the answers. right: (M,) bool.
    """
    order = confidence.argsort(descending=True)
    stated = confidence[order]  # (M,)
    errors = (~right[order]).cumsum(0)
    answers = torch.arange(1, len(order) + 1)
    last = torch.ones(len(order), dtype=torch.bool)  # of those that are equally sure: one threshold keeps all
    last[:-1] = stated[:-1] > stated[1:]
    fits = last & ((errors + 1).double() / (answers + 1) <= 1 - precision + 1e-12)
    return float(stated[fits][-1]) if fits.any() else None


def choose(run: RunFolder, sample: Sample | None, probabilities: Tensor, class_names: list[str], wish: float) -> Choice:
    """The rule for a wished precision.

    Args:
        sample: M held-out images of the pool; None: there are none. probabilities: (M, K) what the model says of them.
        class_names: K. wish: the precision.
    """
    figures = run.read_metrics()
    if run.read_purified_manifest() is None:
        return Choice(None, "the run has no purified labels")
    if not figures.get(metrics.VOTES_IMPROVED, True):
        return Choice(None, "its purified labels are not to be trusted above the votes")
    labels = _labels(run, sample, class_names) if sample is not None else torch.empty(0, dtype=torch.int64)
    known = labels >= 0
    count, least = int(known.sum()), least_images(wish)
    if count < least:
        return Choice(None, f"{count} held-out images have a label, and {least} are the least for it (source.holdout)")
    confidence, answer = probabilities[known].max(dim=1)
    threshold = threshold_for(confidence, answer == labels[known], wish)
    if threshold is None:
        return Choice(None, f"no threshold reaches it on the {count} held-out images")
    return Choice(Abstention(wish, threshold), "", float((confidence >= threshold).double().mean()), count)


def _labels(run: RunFolder, sample: Sample, class_names: list[str]) -> Tensor:
    """(M,) the purified labels of a sample's images, -1 where unknown or of no class."""
    place = {image_id: number for number, image_id in enumerate(sample.ids)}
    number_of = {name: number for number, name in enumerate(class_names)}
    labels = np.full(len(sample), -1, np.int64)
    for part in part_names(run.purified):
        table = read_table(run.purified, part, ["image_id", "label", "status"])
        table = table.filter(pc.is_in(table["image_id"], value_set=pa.array(list(place), pa.string())))
        for row in table.to_pylist():
            if row["status"] != "outlier":
                labels[place[row["image_id"]]] = number_of.get(row["label"], -1)
    return torch.from_numpy(labels)
