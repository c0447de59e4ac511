"""The report's sections: from the facts of a run to figures and the rows of tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from coreg_ray import metrics
from coreg_ray.config.kinds import TITLES
from coreg_ray.deploy.calibration import calibration_error, reliability
from coreg_ray.report import figures
from coreg_ray.report.confusions import Confusions
from coreg_ray.report.data import Run, deployed_logits
from coreg_ray.report.figures import BLUE, GREY, ORANGE
from coreg_ray.run.voters import votes_in_words

MOST_CLASSES_DRAWN = 100  # more would be a grey square; the table below it names the worst pairs
MOST_BARS = 40
MOST_CONFUSIONS = 10

_CURVES = (
    (
        "loss",
        "Loss. Warm-up and co-regularisation add up different terms, so the step between them means nothing.",
        {"network a": (metrics.of(metrics.LOSS, "a"), BLUE), "network b": (metrics.of(metrics.LOSS, "b"), ORANGE)},
    ),
    (
        "clean share",
        "Candidate sets that each network finds sound; the others are dropped and their images are unlabelled.",
        {
            "judged by a": (metrics.of(metrics.CLEAN, "a"), BLUE),
            "judged by b": (metrics.of(metrics.CLEAN, "b"), ORANGE),
        },
    ),
    (
        "agreement",
        "Images to which both networks give the same class.",
        {"training images": (metrics.AGREEMENT, BLUE), "held-out images": (metrics.LABEL_FREE, ORANGE)},
    ),
    (
        "churn",
        "Labels that changed since the epoch before; a run that still churns at its end wants more epochs.",
        {"network a": (metrics.of(metrics.CHURN, "a"), BLUE), "network b": (metrics.of(metrics.CHURN, "b"), ORANGE)},
    ),
    (
        "test accuracy",
        "Accuracy on the labelled test images, which only score.",
        {"both": (metrics.ACCURACY, GREY), "a": (metrics.ACCURACY_A, BLUE), "b": (metrics.ACCURACY_B, ORANGE)},
    ),
)


@dataclass(frozen=True)
class Drawn:
    """A figure as SVG, and what a person should see in it."""

    svg: Markup
    caption: str


def facts(run: Run) -> str:
    """One line about what was learned from what."""
    if not run.config:
        return ""
    student, source, epochs = run.config.student, run.config.source, run.config.method.epochs
    images = run.metrics.get(metrics.ANNOTATION + "rows")
    return ", ".join(
        [
            f"{images:,} images of kind {source.kind}" if images else f"images of kind {source.kind}",
            f"{len(run.class_names):,} classes",
            f"{student.name} at {student.resolution} px",
            *([f"{epochs} epochs"] if epochs else []),
            f"seed {run.config.seed}",
        ]
    )


def method_title(run: Run) -> str:
    """What people call the method that trained the run."""
    return TITLES[run.config.method.kind] if run.config else TITLES["coreg"]


def comparison(run: Run) -> list[dict[str, Any]]:
    """Ways to a classifier side by side: accuracy on the test images with its margin, and what each cost.

    Where the test images are many, the cheaper ways are scored on a sample of them: their margins are wider then.
    """
    if run.metrics.get(metrics.ACCURACY) is None:
        return []
    images = run.test.sample.total if run.test else None
    zero_shot, note = run.metrics.get(metrics.ZERO_SHOT), "mean of the prompts; all others need its annotation too"
    alone = "Annotator alone, zero-shot"
    if zero_shot is None and run.only_votes:
        right = votes_in_words(run.metrics)
        alone, note = "Votes alone", f"about the pool, not the test images{'; there ' if right else ''}{right}"
    ways: list[tuple[str, float | None, float | None, str, int | None]] = [
        (alone, zero_shot, run.metrics.get(metrics.ANNOTATE_S), note, images)
    ]
    ways += [(made.name, made.accuracy, made.seconds, made.note, made.images or images) for made in run.baselines]
    names = run.card.get("networks", [])
    workers = run.metrics.get(metrics.WORLD_SIZE)
    note = f"{workers} worker{'s' if workers > 1 else ''}" if workers else ""
    accuracies = (("network a", metrics.ACCURACY_A), ("network b", metrics.ACCURACY_B), ("both", metrics.ACCURACY))
    for name, figure in accuracies:
        both = name == "both"
        deployed = "the deployed model" if names == [name[-1]] or (both and len(names) == 2) else ""
        remark = "; ".join(filter(None, (deployed, note if both else "")))
        seconds = run.metrics.get(metrics.TRAIN_S) if both else None
        ways.append((f"{method_title(run)}, {name}", run.metrics.get(figure), seconds, remark, images))
    return [
        {
            "name": name,
            "accuracy": accuracy,
            "margin": margin(accuracy, scored) if accuracy is not None and scored else None,
            "seconds": seconds,
            "note": note,
            "main": name == f"{method_title(run)}, both",
        }
        for name, accuracy, seconds, note, scored in ways
    ]


def margin(accuracy: float, images: int) -> float:
    """Half of Wilson's 95 % interval: how far chance alone, in the choice of the test images, may move an accuracy."""
    z = 1.96
    spread = math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
    return z * spread / (1 + z**2 / images)


def verdict(rows: list[dict[str, Any]]) -> str:
    """In one sentence or two: what the method gained over the annotator and over the best cheaper way."""
    known = [row for row in rows if row["accuracy"] is not None]
    ours = next((row for row in known if row["main"]), None)
    if ours is None:
        return ""
    cheaper = [row for row in known if not row["name"].startswith(ours["name"].rsplit(",", 1)[0])]
    if not cheaper:
        return ""
    annotator, best = cheaper[0], max(cheaper, key=lambda row: row["accuracy"])
    zero_shot = annotator["name"].startswith("Annotator")
    gone = (ours["accuracy"] - annotator["accuracy"]) / max(1 - annotator["accuracy"], 1e-9)
    opening = f"Of the annotator's errors on the test images, {gone:.0%} are gone. " if zero_shot and gone > 0 else ""
    gain, sure = ours["accuracy"] - best["accuracy"], math.hypot(ours["margin"] or 0, best["margin"] or 0)
    if abs(gain) <= sure:
        return f"{opening}{gain:+.3f} against the best cheaper way ({best['name']}) may be chance: too few test images."
    what = "It paid" if gain > 0 else "It did not pay"
    return f"{opening}{what}: {gain:+.3f} against the best cheaper way ({best['name']}, {best['accuracy']:.3f})."


_ABOUT_PROMPTS = (
    ("prompt_dissent", "share of images", "How often each {} votes against the class with the most votes."),
    ("prompt_accuracy", "accuracy", "Accuracy of each {} alone on those pool images whose label is known."),
)


def annotation_figures(run: Run) -> list[Drawn]:
    """Sizes of the candidate sets, votes per class, dissent and accuracy of each prompt, coverage of each class."""
    drawn = []
    if run.sizes:
        svg = figures.histogram(run.sizes, "classes in a candidate set", "images")
        drawn.append((svg, "How many classes an image's candidate set has."))
    votes = run.metrics.get(metrics.ANNOTATION + "votes_per_class")
    if votes and len(votes) == len(run.class_names):
        order = sorted(range(len(votes)), key=lambda k: -votes[k])
        shown = order if len(order) <= MOST_BARS else order[: MOST_BARS // 2] + order[-MOST_BARS // 2 :]
        caption = f"Votes of all {run.noun}s for each class" + (
            "." if len(order) <= MOST_BARS else f"; the {MOST_BARS // 2} with the most and with the fewest."
        )
        drawn.append((figures.bars([run.class_names[k] for k in shown], [votes[k] for k in shown], "votes"), caption))
    for name, xlabel, caption in _ABOUT_PROMPTS:
        of_prompts = run.metrics.get(metrics.ANNOTATION + name)
        if of_prompts:
            known = len(run.prompts) == len(of_prompts)
            prompts = run.prompts if known else [f"prompt {number + 1}" for number in range(len(of_prompts))]
            bars = figures.bars(prompts[:MOST_BARS], of_prompts[:MOST_BARS], xlabel)
            drawn.append((bars, caption.format(run.noun)))
    coverage = run.metrics.get(metrics.ANNOTATION + "class_coverage")
    if coverage and len(coverage) == len(run.class_names):
        order = sorted(range(len(coverage)), key=coverage.__getitem__)[:MOST_BARS]
        svg = figures.bars([run.class_names[k] for k in order], [coverage[k] for k in order], "coverage")
        drawn.append((svg, "Truth among the candidates, class by class, on labelled pool images; the worst first."))
    return [Drawn(Markup(svg), caption) for svg, caption in drawn]


def training_figures(run: Run) -> list[Drawn]:
    """Curves of both networks over the epochs; only what the history holds."""
    change = next((int(row[metrics.EPOCH]) for row in run.history if row.get(metrics.PHASE) != metrics.WARMUP), None)
    annotator = run.metrics.get(metrics.ZERO_SHOT)
    drawn = []
    for ylabel, caption, lines in _CURVES:
        series = {
            label: ([row.get(column) for row in run.history], colour)
            for label, (column, colour) in lines.items()
            if any(row.get(column) is not None for row in run.history)
        }
        if series:
            level = ("annotator", annotator) if ylabel == "test accuracy" and annotator is not None else None
            drawn.append(Drawn(Markup(figures.curves(series, ylabel, change, level)), caption))
    return drawn


def test_tables(run: Run) -> dict[str, Any] | None:
    """Confusion matrix, per-class figures and the most frequent confusions on the labelled test images."""
    if run.test is None or not run.class_names:
        return None
    judged = run.test.judged
    confusions = Confusions.of(judged.given, judged.best[0], len(run.class_names))
    hits, true, predicted = confusions.by_class()
    annotator = run.metrics.get(metrics.ANNOTATION + "class_accuracy") or []
    known = len(annotator) == len(run.class_names)
    per_class = [
        {
            "name": name,
            "images": int(true[k]),
            "recall": float(hits[k] / true[k]) if true[k] else None,
            "precision": float(hits[k] / predicted[k]) if predicted[k] else None,
            "zero_shot": annotator[k] if known else None,
        }
        for k, name in enumerate(run.class_names)
    ]
    few = len(run.class_names) <= MOST_CLASSES_DRAWN
    drawn = figures.confusion(confusions.matrix(), run.class_names) if few else ""
    return {
        "images": len(judged),
        "of": run.test.sample.total,
        "accuracy": confusions.accuracy,
        "confusion": Markup(drawn),
        "per_class": per_class,
        "zero_shot": known,
        "confusions": [
            {"true": run.class_names[label], "said": run.class_names[taken_for], "images": images}
            for label, taken_for, images in confusions.worst(MOST_CONFUSIONS)
        ],
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
        curves[name] = (stated[full].tolist(), accuracy[full].tolist(), rows[full].tolist(), colour)
        errors[name] = calibration_error(confidence, best == labels)
    return {
        "figure": Markup(figures.reliability(curves)),
        "temperature": run.temperature,
        "before": errors["as trained"],
        "after": errors["with temperature"],
    }
