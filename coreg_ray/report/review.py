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

from coreg_ray.run.cells import neutral, restored
from coreg_ray.run.folder import REVIEW, REVIEW_BESIDE
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
        content = with_labels_kept(output.read(name), fresh) if output.exists(name) else fresh.encode()
        if content is not None:
            output.write(name, content)
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
    try:
        text = io.StringIO(there.decode("utf-8-sig"), newline="")
        lines = [line for line in csv.reader(text, strict=True) if line]
    except (UnicodeDecodeError, csv.Error):
        return None
    if not lines:
        return fresh.encode()
    columns = lines[0]
    sound = {"image_id", "label"} <= set(columns) and len(set(columns)) == len(columns)
    if not sound or any(len(line) > len(columns) for line in lines):
        return None
    rows = [dict(zip(columns, line, strict=False)) for line in lines[1:]]  # a row may end early
    if not any(row.get("label", "").strip() for row in rows):
        return fresh.encode()
    named, ending = {restored(row.get("image_id", "")) for row in rows}, "\r\n" if b"\r\n" in there else "\n"
    new = [row for row in csv.DictReader(io.StringIO(fresh)) if restored(row["image_id"]) not in named]
    added = io.StringIO()
    if new and not there.endswith((b"\n", b"\r")):
        added.write(ending)
    csv.DictWriter(added, columns, extrasaction="ignore", lineterminator=ending).writerows(new)
    return there + added.getvalue().encode()
