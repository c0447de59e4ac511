"""What a person's review says of a run's labels: how many are right that votes alone would have had wrong, and back."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from coreg_ray import metrics
from coreg_ray.annotation.arrow import read_table
from coreg_ray.deploy.purified import part_names
from coreg_ray.pure.trust import Reviewed
from coreg_ray.run.folder import REVIEW, RunFolder
from coreg_ray.run.review_table import ReviewTable
from coreg_ray.run.trust import review_figures

_COLUMNS = ["image_id", "label", "annotator_label", "status"]


def verdict(run: RunFolder) -> dict[str, Any]:
    """How far to trust a run's purified labels, as figures: as told without labels, unless a review says otherwise.

    Returns:
        Figures of `metrics.json`, `trust/votes_improved` among them; empty where there are no purified labels.
    """
    manifest = run.read_purified_manifest()
    if manifest is None:
        return {}
    figures = {name: value for name, value in manifest.figures.items() if name.startswith(metrics.TRUST)}
    return {**figures, **review_figures(reviewed(run))}


def reviewed(run: RunFolder) -> Reviewed:
    """The labels of `review.csv` beside `purified/`.

    Labels that are no class ("not sure", "none of these") say nothing, and labels that the run was trained with are
    its own.
    """
    known_as = _known_as(run)
    labels = {image_id: known_as[label] for image_id, label in _labels(run).items() if label in known_as}
    images = mended = spoilt = 0
    for name in part_names(run.purified) if labels else []:
        table = read_table(run.purified, name, _COLUMNS)
        known = pc.is_in(table["image_id"], pa.array(list(labels), pa.string()))
        for row in table.filter(pc.and_(known, pc.not_equal(table["status"], "trusted"))).to_pylist():
            right = labels[row["image_id"]]
            images += 1
            mended += row["annotator_label"] != right == row["label"]
            spoilt += row["label"] != right == row["annotator_label"]
    return Reviewed(images, mended, spoilt)


def _known_as(run: RunFolder) -> dict[str, str]:
    """The class that each name stands for."""
    manifest = run.read_candidate_manifest()
    if manifest is None:
        return {}
    every = manifest.names or [[name] for name in manifest.class_names]
    return {name: own for own, names in zip(manifest.class_names, every, strict=True) for name in (own, *names)}


def _labels(run: RunFolder) -> dict[str, str]:
    """By image id; empty where there is no file that can be read."""
    table = ReviewTable.parse(run.read(REVIEW)) if run.exists(REVIEW) else None
    return {image_id: label for image_id, label in table.labels().items() if label} if table else {}
