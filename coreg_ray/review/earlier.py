"""Labels of the round before: a run that was trained with some hands them on with those of its own review."""

from __future__ import annotations

import logging

from coreg_ray.annotation.manual import read_rows
from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.run.folder import REVIEW, RunFolder
from coreg_ray.run.lock import alone
from coreg_ray.run.review_table import ReviewTable

log = logging.getLogger(__name__)


def carry_over(folder: RunFolder, config: Config | None) -> int:
    """Append the manual labels that a run was trained with to its `review.csv`; returns how many are new there.

    Training that goes on takes its labels from that file alone, so those of earlier rounds would be forgotten.
    """
    given = config.source.manual_labels if config else None
    if not given:
        return 0
    try:
        rows = read_rows(given)
    except UserError as error:
        log.warning("the manual labels that this run was trained with are not carried over: %s", error)
        return 0
    with alone(folder):
        table = ReviewTable.parse(folder.read(REVIEW))
        if table is None:
            return 0
        known = table.labels()
        new = {name: str(label).strip() for name, label in rows if label is not None and name not in known}
        new = {name: label for name, label in new.items() if label}
        if new:
            folder.write(REVIEW, table.with_labels(new))
            log.info("%d labels of %s, with which this run was trained, join %s", len(new), given, REVIEW)
    return len(new)
