"""What both networks' predictions tell without a label. PURE: torch only.

A prediction is made of every image as it is and of VIEWS weak views of it, by each network. Everything is a count, so
that the counts of several processes add up exactly. Held-out images are too few to rank runs by in small pools, so all
but the first criterion look at some that are trained on as well, ENOUGH together. Over 24 sensible settings on the
embedded digits that took the rank correlation of `combined` with the accuracy from 0.79 (83 images) to 0.84.

    label_free    share of held-out images that both networks give the same class
    stability     share of predictions on views that equal the network's own on the image
    candidates    share of predictions that lie in the image's candidate set
    approximated_accuracy   share that a network gives its own class among the image's candidates, 0 where it is none of
                  them: the mean over images and networks (PLENCH's approximated accuracy; `candidates` is its covering
                  rate, but for the views)
    classes       how alike the class shares of predictions and of candidate sets are: Bhattacharyya's coefficient
    combined      stability times classes
"""

from __future__ import annotations

import torch
from torch import Tensor

VIEWS = 4  # weak views of each image, the same in every epoch and run
ENOUGH = 512  # images
_SUMS = 6  # before the counts by class


def no_counts(num_classes: int, device: torch.device) -> Tensor:
    """Zeros (6 + 2 K) float64: images, agreed, stable, inside, images with candidates, own shares; predictions and
    candidates by class.
    """
    return torch.zeros(_SUMS + 2 * num_classes, dtype=torch.float64, device=device)


def count(predicted: Tensor, candidates: Tensor | None, num_classes: int, probs: Tensor) -> Tensor:
    """Counts of a batch, as `no_counts` lists them.

    Args:
        predicted: (2, 1 + V, B) int64, the image itself first. candidates: (B, K) bool, None where there are none.
        probs: (2, B, K) of the images themselves.
    """
    counts = no_counts(num_classes, predicted.device)
    counts[0] = predicted.shape[2]
    counts[1] = (predicted[0, 0] == predicted[1, 0]).sum()
    counts[2] = (predicted[:, 1:] == predicted[:, :1]).sum()
    if candidates is not None:
        rows = torch.arange(predicted.shape[2], device=predicted.device)
        counts[3] = candidates[rows, predicted].sum()
        counts[4] = predicted.shape[2]
        counts[5] = own_shares(probs, candidates).double().sum()
        counts[_SUMS:-num_classes] = predicted.flatten().bincount(minlength=num_classes)
        counts[-num_classes:] = candidates.sum(0)
    return counts


def own_shares(probs: Tensor, candidates: Tensor) -> Tensor:
    """What share of an image's candidates a network gives the class that it finds likeliest of all; 0 outside them.

    probs (2, B, K), candidates (B, K) bool -> (2, B).
    """
    inside = probs * candidates
    best = probs.argmax(dim=2, keepdim=True)
    return (inside.gather(2, best) / inside.sum(dim=2, keepdim=True).clamp(min=1e-12)).squeeze(2)


def criteria(held_out: Tensor, shown: Tensor, views: int = VIEWS) -> dict[str, float]:
    """The criteria from summed counts of held-out images and of others; empty where none was held out.

    Args:
        views: of each image that were looked at; without any, `label_free` alone is known.
    """
    apart, agreed = held_out[:2].tolist()
    if not apart:
        return {}
    if not views:
        return {"label_free": agreed / apart}
    counts = held_out + shown
    images, _, stable, inside, judged, shares = counts[:_SUMS].tolist()
    stability = stable / (2 * views * images)
    figures = {"label_free": agreed / apart, "stability": stability}
    if judged:
        predicted, held = (part / part.sum() for part in counts[_SUMS:].chunk(2))
        classes = float((predicted * held).sqrt().sum())
        figures["candidates"] = inside / (2 * (1 + views) * judged)
        figures["approximated_accuracy"] = shares / (2 * judged)
        figures["classes"] = classes
        figures["combined"] = stability * classes
    return figures
