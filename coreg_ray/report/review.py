"""Which images a person should look at first, and the file in which to write what they show.

Filled in, the file is what `source.manual_labels` takes: the next run starts from this one's checkpoint with them.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from coreg_ray.run.cells import neutral
from coreg_ray.run.folder import REVIEW, REVIEW_BESIDE
from coreg_ray.run.lock import alone
from coreg_ray.run.review_table import IMAGE, ReviewTable
from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

COLUMNS = (
    "image_id", "label", "suggestion", "confidence",
    "network_a", "confidence_a", "network_b", "confidence_b", "annotator",
)  # fmt: skip
MOST_WEIGHED = 4096
REACH = 0.03  # likeness falls by e for every 0.03 that the cosine is smaller


def review_order(probs: Tensor, features: Tensor, count: int) -> Tensor:
    """The images whose labels would teach the networks most, best first.

    An image's doubt is the entropy of both networks' mean distribution: their own entropies plus their disagreement
    (the Jensen-Shannon divergence). A label settles the image's own doubt, and doubt about images that look alike to
    the networks, as far as they do. Images are taken greedily by their doubt times all that they settle, so ten images
    of one kind do not fill the list.

    Args:
        probs: (2, M, K) of networks a and b. features: (M, F) unit vectors. count: images wanted.

    Returns:
        (min(count, M, MOST_WEIGHED),) int64 indices. Only the MOST_WEIGHED most doubtful images are weighed against one
        another, which takes 8 bytes for every pair of them.
    """
    mean = probs.double().mean(dim=0)  # (M, K)
    doubt, weighed = (-torch.xlogy(mean, mean).sum(dim=1)).topk(min(len(mean), MOST_WEIGHED))
    seen = features[weighed]
    likeness = ((seen @ seen.T - 1) / REACH).exp()  # (M, M)
    doubt, order = doubt.float(), []
    left = doubt
    taken = torch.zeros(len(doubt), dtype=torch.bool)
    for _ in range(min(count, len(doubt))):
        best = int(((likeness @ left) * doubt).masked_fill(taken, -1.0).argmax())
        order.append(best)
        taken[best] = True
        left = left * (1 - likeness[best]).clamp(min=0)
    return weighed[torch.tensor(order, dtype=torch.int64)]


def review_csv(
    ids: Sequence[str], probs: Tensor, features: Tensor, annotated: Tensor, class_names: Sequence[str], count: int
) -> str:
    """`review.csv`: the images to look at with an empty `label` column, to write class names into.

    Args:
        ids: M image ids. probs: (2, M, K). features: (M, F). annotated: (M,) the annotator's choice, -1 where unknown.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    three = torch.cat([probs.mean(dim=0, keepdim=True), probs])  # (3, M, K)
    confidence, best = three.max(dim=2)
    for row in review_order(probs, features, count).tolist():
        cells: list[str] = []
        for network in range(3):
            cells += [class_names[int(best[network, row])], f"{float(confidence[network, row]):.4f}"]
        choice = class_names[int(annotated[row])] if annotated[row] >= 0 else ""
        writer.writerow([neutral(cell) for cell in (ids[row], "", *cells, choice)])
    return text.getvalue()


def write_review(output: Folder, fresh: str) -> None:
    """Write `review.csv` without losing a label that a person has written into the one that lies there.

    A file with labels keeps all its rows, and those of `fresh` whose images it does not name are appended. One that
    cannot be read as such a table is left alone, and `review-new.csv` is written beside it by the same rule.

    Args:
        fresh: what `review_csv` returned.
    """
    for name in (REVIEW, REVIEW_BESIDE):
        with alone(output):  # `coreg-ray review` may be writing labels into it
            content = with_labels_kept(output.read(name), fresh) if output.exists(name) else fresh.encode()
            if content is not None:
                output.write(name, content)
        if content is not None:
            log.info("images to look at: %s/%s", output.path, name)
            return
        log.warning(
            "%s/%s is no CSV in UTF-8 with the columns image_id and label, so it is left as it is; mend or remove it",
            output.path, name,
        )  # fmt: skip


def with_labels_kept(there: bytes, fresh: str) -> bytes | None:
    """The new content of a review file: `fresh`, or if any row `there` has a label, all that is there and what is new.

    What is there stays as it is to the byte, and new rows have its columns, whatever their order.

    Returns:
        None where `there` is no table with the columns image_id and label: labels may be in it all the same.
    """
    table, asked = ReviewTable.parse(there), ReviewTable.parse(fresh.encode())
    assert asked is not None
    if table is None or not table.has_labels:
        return None if table is None else fresh.encode()
    named = table.labels()
    return table.with_rows([row for row in asked.rows if row[IMAGE] not in named])
