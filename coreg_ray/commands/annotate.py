"""Let vision-language models vote on every image of a pool, and nothing else.

    coreg-ray annotate --config run.yaml --output DIR      goes on with what is missing
    coreg-ray annotate ... --estimate true                 time, GPU hours, disk and requests, from a sample of 200

--test.kind and --test.path name labelled images, which say how good the annotator is.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from coreg_ray import metrics
from coreg_ray.commands.base import Command, load, next_command, show
from coreg_ray.config import Config
from coreg_ray.run.records import Overlap
from coreg_ray.run.uris import extended, without_credentials
from coreg_ray.run.voters import votes_in_words


class AnnotateCommand(Command):
    """Annotate."""

    estimate: bool = Field(False, description="annotate a sample of 200 and say what the whole pool will take")


def main(arguments: list[str]) -> None:
    """Run the command."""
    config = load(arguments, AnnotateCommand, __doc__)
    if not config.estimate:
        show(summary(annotated(config), without_credentials(config.output)))
        return
    from coreg_ray.cluster.address import refuse_silent  # late: Ray takes seconds, --help and errors need none

    refuse_silent()
    from coreg_ray.cluster.connect import connect
    from coreg_ray.cluster.estimate import estimate
    from coreg_ray.cluster.waiting import watched
    from coreg_ray.run.folder import RunFolder

    connect()
    with watched():
        estimated = estimate(config, RunFolder.at(config.output))
    show(estimated.in_words(config.annotator.max_actors))


def annotated(config: Config) -> dict[str, Any]:
    """Annotate the pool; returns the figures.

    Raises:
        UserError: as `cluster.pipeline.annotate_pool`, or nobody answers at `RAY_ADDRESS`.
    """
    from coreg_ray.cluster.address import refuse_silent  # late: Ray takes seconds, --help and errors need none

    refuse_silent()
    from coreg_ray.cluster.pipeline import annotate_pool
    from coreg_ray.run.folder import RunFolder

    return annotate_pool(config, RunFolder.at(config.output))


def summary(figures: dict[str, Any], run: str) -> str:
    """What was annotated, how sure the annotators are, what it cost, where it lies, what to do next."""
    figure = {name.removeprefix(metrics.ANNOTATION): value for name, value in figures.items()}
    lines = [
        f"{figure['images']} images: {figure['encoded_images']} annotated now, {figure['rejected_images']} rejected, "
        f"{figure['missing_images']} without an answer yet."
    ]
    if figure["mean_candidates"] is not None:
        lines.append(
            f"{figure['mean_candidates']:.2f} candidate classes on average, in {figure['singletons']:.0%} of the "
            f"images only one; entropy of the votes {figure['vote_entropy']:.2f} nats."
        )
    if figure["agreement"] is not None:
        lines.append(f"Pairs of prompts agree in {figure['agreement']:.0%} of the cases.")
    if figure.get("coverage") is not None:
        lines.append(f"Of the labelled images {figure['coverage']:.1%} have the truth among their candidates.")
    if right := votes_in_words(figures):
        lines.append(f"By itself {right}.")
    if overlap := Overlap.of(figures).words():
        lines.append(overlap)
    if "cost" in figure:
        both = [f"{figure[f'requests{when}']} requests for {figure[f'cost{when}']:.2f}" for when in ("", "_in_all")]
        lines.append(f"The chat model took {both[0]} in this run, {both[1]} in all.")
    lines.append(f"Annotations, candidates, metrics.json and report.html are in {run}.")
    if figure["missing_images"]:
        lines.append("Next: the same command again, for the images without an answer")
    elif not figure["rows"]:
        lines.append(f"Nothing can be trained on: {extended(run, '/rejects')} says why each image was rejected.")
    else:
        lines.append(next_command("train", "--annotations", extended(run, "/annotations"), "--output", "DIR"))
    return "\n".join(lines)
