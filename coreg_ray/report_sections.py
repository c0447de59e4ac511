"""The report's sections: from the facts of a run to figures and the rows of tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from coreg_ray import report_figures as figures
from coreg_ray.calibration import calibration_error, reliability
from coreg_ray.report_data import Run, confusion_counts, deployed_logits
from coreg_ray.report_figures import BLUE, GREY, ORANGE

MOST_CLASSES_DRAWN = 100  # more would be a grey square; the table below it names the worst pairs
MOST_BARS = 40

_CURVES = (
    ("loss", {"network a": ("loss/a", BLUE), "network b": ("loss/b", ORANGE)}),
    ("clean share", {"judged by a": ("clean/a", BLUE), "judged by b": ("clean/b", ORANGE)}),
    (
        "agreement of both networks",
        {"training images": ("agreement", BLUE), "held-out images": ("criterion/label_free", ORANGE)},
    ),
    ("churn: labels changed since the last epoch", {"network a": ("churn/a", BLUE), "network b": ("churn/b", ORANGE)}),
    (
        "test accuracy",
        {"both": ("test/accuracy", GREY), "a": ("test/accuracy_a", BLUE), "b": ("test/accuracy_b", ORANGE)},
    ),
)


def comparison(run: Run) -> list[dict[str, Any]]:
    """Ways to a classifier side by side: accuracy on the test images, and what each cost."""
    metrics = run.metrics
    if metrics.get("test/accuracy") is None:
        return []
    annotate_s = metrics.get("time/annotate_s")
    rows = [
        {
            "name": "Annotator alone, zero-shot",
            "accuracy": metrics.get("test/zero_shot_accuracy"),
            "seconds": annotate_s,
            "note": "mean of the prompts; all others need its annotation too",
        }
    ]
    rows += [
        {"name": found.name, "accuracy": found.accuracy, "seconds": found.seconds, "note": found.note}
        for found in run.baselines
    ]
    names = run.card.get("networks", [])
    note = f"deployed: {' and '.join(names)}" if names else ""
    trained = metrics.get("time/train_s")
    for name, key in (("network a", "test/accuracy_a"), ("network b", "test/accuracy_b"), ("both", "test/accuracy")):
        deployed = names == [name[-1]] or (name == "both" and len(names) == 2)
        rows.append(
            {
                "name": f"Co-Reg, {name}",
                "accuracy": metrics.get(key),
                "seconds": trained if name == "both" else None,
                "note": note if deployed else "",
            }
        )
    return rows


def annotation_figures(run: Run) -> list[Markup]:
    """Sizes of the candidate sets, votes per class, accuracy of each prompt."""
    drawn = []
    if run.sizes:
        drawn.append(figures.histogram(run.sizes, "classes in a candidate set", "images"))
    votes = run.metrics.get("annotation/votes_per_class")
    if votes and len(votes) == len(run.classes):
        order = sorted(range(len(votes)), key=lambda k: -votes[k])
        shown = order if len(order) <= MOST_BARS else order[: MOST_BARS // 2] + order[-MOST_BARS // 2 :]
        title = "votes" if len(order) <= MOST_BARS else "votes (most and fewest)"
        drawn.append(figures.bars([run.classes[k] for k in shown], [votes[k] for k in shown], title))
    accuracies = run.metrics.get("annotation/prompt_accuracy")
    if accuracies:
        known = len(run.prompts) == len(accuracies)
        names = run.prompts if known else [f"prompt {number + 1}" for number in range(len(accuracies))]
        drawn.append(figures.bars(names, accuracies, "accuracy on labelled pool images"))
    return [Markup(svg) for svg in drawn]


def training_figures(run: Run) -> list[Markup]:
    """Curves of both networks over the epochs; only what the history holds."""
    change = next((int(row["epoch"]) for row in run.history if row.get("phase") == "coreg"), None)
    drawn = []
    for ylabel, lines in _CURVES:
        series = {
            label: ([row.get(column) for row in run.history], colour)
            for label, (column, colour) in lines.items()
            if any(row.get(column) is not None for row in run.history)
        }
        if series:
            drawn.append(figures.curves(series, ylabel, change))
    return [Markup(svg) for svg in drawn]


def test_tables(run: Run) -> dict[str, Any] | None:
    """Confusion matrix, per-class figures and the most frequent confusions on the labelled test images."""
    if run.test is None or not run.classes:
        return None
    counts = confusion_counts(run.test.judged, len(run.classes))
    hits, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    per_class = [
        {
            "name": name,
            "images": int(true[k]),
            "recall": float(hits[k] / true[k]) if true[k] else None,
            "precision": float(hits[k] / predicted[k]) if predicted[k] else None,
        }
        for k, name in enumerate(run.classes)
    ]
    wrong = counts - np.diag(hits)
    worst = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [divmod(int(cell), len(run.classes)) for cell in worst if wrong.flat[cell]]
    drawn = figures.confusion(counts, run.classes) if len(run.classes) <= MOST_CLASSES_DRAWN else ""
    return {
        "images": len(run.test.judged),
        "of": run.test.sample.total,
        "accuracy": float(hits.sum() / true.sum()),
        "confusion": Markup(drawn),
        "per_class": per_class,
        "confusions": [{"true": run.classes[t], "said": run.classes[p], "images": int(wrong[t, p])} for t, p in pairs],
    }


def calibration(run: Run) -> dict[str, Any] | None:
    """Accuracy over stated confidence of the deployed model, with and without its temperature."""
    if run.test is None:
        return None
    logits, labels = deployed_logits(run, run.test), run.test.sample.labels
    curves, errors = {}, {}
    for name, temperature, colour in (("as trained", 1.0, GREY), ("with temperature", run.temperature, BLUE)):
        confidence, best = (logits / temperature).softmax(dim=1).max(dim=1)
        rows, stated, accuracy = reliability(confidence, best == labels, bins=10)
        full = rows > 0
        curves[name] = (stated[full].tolist(), accuracy[full].tolist(), colour)
        errors[name] = calibration_error(confidence, best == labels)
    return {
        "figure": Markup(figures.reliability(curves)),
        "temperature": run.temperature,
        "before": errors["as trained"],
        "after": errors["with temperature"],
    }
