"""Train on an annotation made before: with its run's settings, and what you override.

python jobs/train.py --annotations runs/digits/annotations --output runs/second --method.epochs 40
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from pydantic import Field

from coreg_ray.command_line import Command, load, run


class TrainCommand(Command):
    """Train."""

    annotations: str = Field(description="the annotations/ folder of an earlier run")


def main(arguments: list[str]) -> None:
    config = load([*settings_of_the_annotated_run(arguments), *arguments], TrainCommand, __doc__)
    from coreg_ray.ray_pipeline import run as run_pipeline  # late: Ray takes seconds, --help and errors need none

    metrics = run_pipeline(config, annotated=run_folder(config.annotations))
    print(f"test/accuracy {metrics.get('test/accuracy', 'unknown')}; model, report and history in {config.output}")


def run_folder(annotations: str) -> str:
    return annotations.rstrip("/").removesuffix("/annotations")


def settings_of_the_annotated_run(arguments: list[str]) -> list[str]:
    """`--config` of the run that was annotated, so that its source and class names need not be repeated."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--annotations", default="")
    parser.add_argument("--config")
    known, _ = parser.parse_known_args(arguments)
    earlier = Path(run_folder(known.annotations), "config.yaml")
    return ["--config", str(earlier)] if known.annotations and not known.config and earlier.is_file() else []


if __name__ == "__main__":
    run(main)
