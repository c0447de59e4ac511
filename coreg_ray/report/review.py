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
    ids: Sequence[str], probs: Tensor, features: Tensor, annotated: Tensor, classes: Sequence[str], count: int
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
            cells += [classes[int(best[network, row])], f"{float(confidence[network, row]):.4f}"]
        said = classes[int(annotated[row])] if annotated[row] >= 0 else ""
        writer.writerow([ids[row], "", *cells, said])
    return text.getvalue()
