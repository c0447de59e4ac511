"""What running jobs show in Ray's metrics, and so in Prometheus and Grafana; all names stand here and nowhere else.

Ray exports every one as `ray_<name>` on each node's metrics port. `grafana/coreg_ray.json` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge

from coreg_ray.metrics import (
    ACCURACY,
    AGREEMENT,
    CHURN,
    CLEAN,
    COMBINED,
    EPOCH,
    EPOCH_S,
    EXCHANGE_S,
    LOSS,
    NETWORKS,
    STEP_S,
    of,
)

# Counters of annotation: name -> (meaning, tag). Prometheus's rate() makes images a second of them.
ANNOTATED, REJECTED = "coreg_annotated_images", "coreg_rejected_images"
SECONDS, REQUESTS = "coreg_annotator_seconds", "coreg_chat_requests"
COUNTERS = {
    ANNOTATED: ("images annotated", "annotator"),
    REJECTED: ("images that could not be decoded", "split"),
    SECONDS: ("seconds spent annotating, summed over the pool of annotators", "annotator"),
    REQUESTS: ("requests sent to a chat model", "annotator"),
}

# Gauges of training: name -> (meaning, the epoch's figure, with /a and /b where each network has its own).
GAUGES = {
    "coreg_epoch": ("number of the last finished epoch, from 0", EPOCH),
    "coreg_loss": ("mean loss of a network", LOSS),
    "coreg_clean_fraction": ("share of the rows whose candidate set a network holds for sound", CLEAN),
    "coreg_label_churn": ("share of the rows whose pseudo-label changed since the last epoch", CHURN),
    "coreg_agreement": ("share of the rows on which both networks agree", AGREEMENT),
    "coreg_criterion": ("stability times likeness of class shares, without labels", COMBINED),
    "coreg_test_accuracy": ("of both networks together on the labelled test images", ACCURACY),
    "coreg_step_seconds": ("mean seconds of a training step", STEP_S),
    "coreg_exchange_seconds": ("seconds of the epoch spent exchanging opinions and weights", EXCHANGE_S),
    "coreg_epoch_seconds": ("seconds of the epoch", EPOCH_S),
}


@cache
def counter(name: str, tag: str) -> Counter:
    """One of COUNTERS in this process, for one value of its tag."""
    meaning, key = COUNTERS[name]
    metric = Counter(name, meaning, (key,))
    metric.set_default_tags({key: tag})
    return metric


def count(name: str, tag: str, amount: float) -> None:
    """Add to one of COUNTERS; nothing happens at zero, which Ray would refuse."""
    if amount > 0:
        counter(name, tag).inc(amount)


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, GAUGES[name][0], ("run", "network"))


def show_epoch(run: str, metrics: Mapping[str, Any]) -> None:
    """Set the GAUGES to what an epoch came to.

    Args:
        run: name of the run folder, or of a trial's.
        metrics: of one epoch, as in `history.csv`; what is missing is left as it was.
    """
    for name, (_, figure) in GAUGES.items():
        for network in ("", *NETWORKS):
            value = metrics.get(of(figure, network) if network else figure)
            if isinstance(value, int | float):
                _gauge(name).set(value, {"run": run, "network": network})
