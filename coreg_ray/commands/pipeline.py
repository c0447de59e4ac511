"""From images to a trained classifier and a report: annotate, train, evaluate, report.

coreg-ray pipeline                                   the embedded digits, a few minutes on two cores
coreg-ray pipeline --config run.yaml --output runs/x
coreg-ray pipeline --preset smoke                    the same with four epochs, to see that it runs
coreg-ray pipeline ... --estimate true               time, memory and disk, from a sample and a few steps
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from coreg_ray import metrics
from coreg_ray.commands.base import Command, load, next_command, show
from coreg_ray.config import Config
from coreg_ray.run.records import Overlap
from coreg_ray.run.trust import trust_in_words
from coreg_ray.run.uris import extended, shortened, without_credentials
from coreg_ray.run.voters import votes_in_words


class PipelineCommand(Command):
    """Pipeline."""

    estimate: bool = Field(False, description="annotate a sample, take a few steps and say what the whole will take")


def main(arguments: list[str]) -> None:
    """Run the command."""
    config = load(arguments, PipelineCommand, __doc__, continues=True)
    if not config.estimate:
        show(summary(trained(config), config.output, config.source.manual_labels))
        return
    from coreg_ray.cluster.address import refuse_silent  # late: Ray takes seconds, --help and errors need none

    refuse_silent()
    from coreg_ray.cluster.forecast import forecast
    from coreg_ray.run.folder import RunFolder

    show(forecast(config, RunFolder.at(config.output)).in_words())


def trained(config: Config, annotations: str | None = None) -> dict[str, Any]:
    """From images to a trained model and a report; returns the figures.

    Args:
        annotations: the annotations/ folder of an earlier run, which are taken instead of annotating anew.

    Raises:
        UserError: as `cluster.pipeline.run_pipeline`, or nobody answers at `RAY_ADDRESS`.
    """
    from coreg_ray.cluster.address import refuse_silent  # late: Ray takes seconds, --help and errors need none

    refuse_silent()
    from coreg_ray.cluster.pipeline import run_pipeline

    return run_pipeline(config, annotated=shortened(annotations, "/annotations") if annotations else None)


def _annotator_alone(figures: dict[str, Any]) -> str:
    """What the accuracy is to be held against: zero-shot on the same images, or votes, which are about the pool."""
    zero_shot = figures.get(metrics.ZERO_SHOT)
    if zero_shot is None:
        votes = votes_in_words(figures)
        return f"votes are about the pool alone, where {votes}." if votes else "votes are about the pool alone."
    left = (1 - figures[metrics.ACCURACY]) / max(1 - zero_shot, 1e-9)
    return f"the annotator alone {zero_shot:.3f}: {left:.2f} of its errors are left."


def summary(figures: dict[str, Any], output: str, manual_labels: str | None = None) -> str:
    """A few lines: what was made, how good it is against zero-shot, where it lies, what to do next."""
    minutes = (figures[metrics.ANNOTATE_S] + figures[metrics.TRAIN_S]) / 60
    by_hand = f"with the manual labels of {manual_labels}" if manual_labels else "without a manual label"
    lines = [f"Trained two networks {by_hand} in {minutes:.1f} minutes."]
    if metrics.ACCURACY in figures:
        lines.append(f"Test accuracy {figures[metrics.ACCURACY]:.3f}; {_annotator_alone(figures)}")
        if overlap := Overlap.of(figures).words():
            lines.append(overlap)
    else:
        lines.append("No labelled test images were given (--test.kind, --test.path), so accuracy is unknown.")
    agreement = figures.get(metrics.LABEL_FREE)
    if agreement is not None:
        lines.append(f"Both networks agree on {agreement:.3f} of the held-out images, a measure without labels.")
    if metrics.PURIFIED_IMAGES in figures:
        count, changed = figures[metrics.PURIFIED_IMAGES], figures[metrics.PURIFIED_CHANGED]
        right = f", {figures[metrics.PURIFIED_ACCURACY]:.3f} right" if metrics.PURIFIED_ACCURACY in figures else ""
        lines.append(
            f"Labels of {count:,} images{right}, {changed:,} of them other than the annotator's, are in "
            f"{extended(output, '/purified')}; coreg-ray labels writes them for other tools."
        )
    if trust := trust_in_words(figures):
        lines.append(trust)
    model, report = extended(output, "/model"), extended(output, "/report.html")
    lines.append(f"The model is in {model}, everything about the run in {report}.")
    further = ("--source.kind", "folder", "--source.path", "DIR", "--output", "DIR")
    lines.append(next_command("predict", "--model", model, *further))
    return str(without_credentials("\n".join(lines)))
