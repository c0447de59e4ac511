"""Let vision-language models vote on every image of a pool, and nothing else.

    python jobs/annotate.py --config run.yaml --output DIR      goes on with what is missing
    python jobs/annotate.py ... --estimate true                 time, GPU hours, disk and requests, from a sample of 200

--test.kind and --test.path name labelled images, which say how good the annotator is.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from coreg_ray.cluster.address import refuse_silent
from coreg_ray.commands.base import Command, load, run
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import extended, without_credentials


class AnnotateCommand(Command):
    """Annotate."""

    estimate: bool = Field(False, description="annotate a sample of 200 and say what the whole pool will take")


def main(arguments: list[str]) -> None:
    config = load(arguments, AnnotateCommand, __doc__)
    refuse_silent()
    from coreg_ray.cluster import annotate_pool as ray_annotate
    from coreg_ray.cluster import estimate as ray_estimate
    from coreg_ray.cluster import pipeline

    pipeline.connect()
    if config.estimate:
        print(ray_estimate.in_words(ray_estimate.estimate(config, Folder.at(config.output)), config))
    else:
        print(summary(ray_annotate.annotate_pool(config, Folder.at(config.output)), without_credentials(config.output)))


def summary(metrics: dict[str, Any], run: str) -> str:
    """What was annotated, how sure the annotators are, what it cost, where it lies, what to do next."""
    figure = {name.removeprefix("annotation/"): value for name, value in metrics.items()}
    lines = [
        f"{figure['images']} images: {figure['encoded_images']} annotated now, {figure['rejected_images']} rejected, "
        f"{figure['missing_images']} without an answer yet.",
        f"{figure['mean_candidates']:.2f} candidate classes on average, in {figure['singletons']:.0%} of the images "
        f"only one; entropy of the votes {figure['vote_entropy']:.2f} nats.",
    ]
    if figure["agreement"] is not None:
        lines.append(f"Pairs of prompts agree in {figure['agreement']:.0%} of the cases.")
    if "coverage" in figure:
        lines.append(f"Of the labelled images {figure['coverage']:.1%} have the truth among their candidates.")
    if "cost" in figure:
        both = [f"{figure[f'requests{when}']} requests for {figure[f'cost{when}']:.2f}" for when in ("", "_in_all")]
        lines.append(f"The chat model took {both[0]} in this run, {both[1]} in all.")
    lines.append(f"Annotations, candidates, metrics.json and report.html are in {run}.")
    return "\n".join([*lines, f"Next: python jobs/train.py --annotations {extended(run, '/annotations')} --output DIR"])


if __name__ == "__main__":
    run(main)
