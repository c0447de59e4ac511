"""From images to a trained classifier and a report: annotate, train, evaluate, report.

python jobs/pipeline.py                                   the embedded digits, a few minutes on two cores
python jobs/pipeline.py --config run.yaml --output runs/x
python jobs/pipeline.py --preset smoke                    the same with four epochs, to see that it runs
"""

from __future__ import annotations

from typing import Any

from coreg_ray.cluster.address import refuse_silent
from coreg_ray.commands.base import Command, load, run
from coreg_ray.run.uris import extended, without_credentials


def main(arguments: list[str]) -> None:
    config = load(arguments, Command, __doc__)
    refuse_silent()
    from coreg_ray.cluster.pipeline import run as run_pipeline  # late: Ray takes seconds, --help and errors need none

    print(summary(run_pipeline(config), config.output))


def summary(metrics: dict[str, Any], output: str) -> str:
    """Five lines: what was made, how good it is against zero-shot, where it lies, what to do next."""
    minutes = (metrics["time/annotate_s"] + metrics["time/train_s"]) / 60
    lines = [f"Trained two networks without a manual label in {minutes:.1f} minutes."]
    if "test/accuracy" in metrics:
        zero_shot, accuracy = metrics["test/zero_shot_accuracy"], metrics["test/accuracy"]
        left = (1 - accuracy) / max(1 - zero_shot, 1e-9)
        lines.append(
            f"Test accuracy {accuracy:.3f}; the annotator alone {zero_shot:.3f}: {left:.2f} of its errors are left."
        )
    else:
        lines.append("No labelled test images were given (--test.kind, --test.path), so accuracy is unknown.")
    agreement = metrics.get("criterion/label_free")
    if agreement is not None:
        lines.append(f"Both networks agree on {agreement:.3f} of the held-out images, a measure without labels.")
    model = extended(output, "/model")
    lines.append(f"The model is in {model}, everything about the run in {extended(output, '/report.html')}.")
    lines.append(f"Next: python jobs/predict.py --model {model} --source.kind folder --source.path DIR --output DIR")
    return str(without_credentials("\n".join(lines)))


if __name__ == "__main__":
    run(main)
