"""Which images a person should look at first, and the file in which to write what they show.

Filled in, the file is what `source.manual_labels` takes: the next run starts from this one's checkpoint with them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import torch
from torch import Tensor

COLUMNS = (
    "image_id", "label", "suggestion", "confidence",
    "network_a", "confidence_a", "network_b", "confidence_b", "annotator",
)  # fmt: skip


def review_order(probs: Tensor, count: int) -> Tensor:
    """The images whose labels would settle most of the doubt, best first.

    An image's doubt is the entropy of both networks' mean distribution: their own entropies plus their disagreement
    (the Jensen-Shannon divergence). A label settles the image's own doubt and, by likeness of the distributions (the
    squared Bhattacharyya coefficient), part of the doubt about images that are confused in the same way. Images are
    taken greedily by what is left to settle, so ten images of one confusion do not fill the list.

    Args:
        probs: (2, M, K) of networks a and b. count: images wanted.

    Returns:
        (min(count, M),) int64 indices; memory is O(M^2).
    """
    mean = probs.double().mean(dim=0)  # (M, K)
    doubt = -torch.xlogy(mean, mean).sum(dim=1)
    root = mean.sqrt()
    likeness = (root @ root.T).square().clamp(max=1)  # (M, M)
    left, order = doubt.clone(), []
    open_rows = torch.ones(len(doubt), dtype=torch.bool)
    for _ in range(min(count, len(doubt))):
        gain = (likeness @ left) * doubt
        best = int(torch.where(open_rows, gain, -1.0).argmax())
        order.append(best)
        open_rows[best] = False
        left = left * (1 - likeness[best])
    return torch.tensor(order, dtype=torch.int64)


def review_csv(ids: Sequence[str], probs: Tensor, annotated: Tensor, classes: Sequence[str], count: int) -> str:
    """`review.csv`: the images to look at with an empty `label` column; write a class name into it, drop other rows.

    Args:
        ids: M image ids. probs: (2, M, K). annotated: (M,) the annotator's choice, -1 where unknown.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    three = torch.cat([probs.mean(dim=0, keepdim=True), probs])  # (3, M, K)
    confidence, best = three.max(dim=2)
    for row in review_order(probs, count).tolist():
        cells: list[str] = []
        for network in range(3):
            cells += [classes[int(best[network, row])], f"{float(confidence[network, row]):.4f}"]
        said = classes[int(annotated[row])] if annotated[row] >= 0 else ""
        writer.writerow([ids[row], "", *cells, said])
    return text.getvalue()
