"""Train on an annotation made before, with other settings as often as you like.

python jobs/train.py --annotations runs/digits/annotations --output runs/second --method.epochs 40
"""

from __future__ import annotations

from pydantic import Field

from coreg_ray.command_line import Command, load, run
from coreg_ray.ray_pipeline import run as run_pipeline


class TrainCommand(Command):
    """Train."""

    annotations: str = Field(description="the annotations/ folder of an earlier run")


def main(arguments: list[str]) -> None:
    config = load(arguments, TrainCommand, __doc__)
    metrics = run_pipeline(config, annotated=config.annotations.rstrip("/").removesuffix("/annotations"))
    print(f"test/accuracy {metrics.get('test/accuracy', 'unknown')}; model, report and history in {config.output}")


if __name__ == "__main__":
    run(main)
