"""How fast the method runs on this machine: prints a table and writes JSON.

    coreg-ray benchmark --smoke --output benchmark.json     few turns of everything
    coreg-ray benchmark --output benchmark.json             more turns of everything
    coreg-ray benchmark --model RUN/model                   one image with a trained model, in all its forms

Needs torch, torchvision and NumPy; annotation and prediction are measured where Ray and open_clip are installed too. A
quiet machine gives quiet figures: the table shows the lowest and the highest beside each median.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coreg_ray.errors import UserError

if TYPE_CHECKING:
    from coreg_ray.studies.figures import Figures


def parser() -> argparse.ArgumentParser:
    """The command line, which knows no run and no configuration."""
    made = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--smoke", action="store_true", help="few turns of everything")
    made.add_argument("--output", type=Path, help="where to write the figures as JSON")
    made.add_argument("--threads", type=int, help="CPU threads of the main process; default: all that torch takes")
    made.add_argument("--model", help="measure this model alone: PyTorch, ONNX and int8, milliseconds and memory")
    return made


def main(arguments: list[str]) -> None:
    """Run the command."""
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # the launcher needs torch alone, so it does nothing
    import torch  # late: --help needs none

    if given.threads:
        torch.set_num_threads(given.threads)
    write(of_model(given.model, given.smoke) if given.model else of_method(given.smoke), given.output)


def of_model(place: str, smoke: bool) -> Figures:
    """What one image costs with a trained model."""
    from coreg_ray.studies.deployed import measure_model

    try:
        return measure_model(place, 5 if smoke else 50)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")  # the launcher does without `run`
        sys.exit(2)


def of_method(smoke: bool) -> Figures:
    """How fast the method runs."""
    import torch

    from coreg_ray.studies.suite import FULL, GPU, SMOKE, measure

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = SMOKE if smoke else FULL
    if device.type == "cuda":
        scale = dataclasses.replace(scale, **GPU)  # type: ignore[arg-type]
    figures = measure(scale, device)
    through_ray(figures, scale.images)
    return figures


def write(figures: Figures, output: Path | None) -> None:
    """Show the table, and write JSON where that is asked for."""
    sys.stdout.write(f"{figures.table()}\n")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(figures.as_json(), indent=1) + "\n")


def through_ray(figures: Figures, images: int) -> None:
    """The parts that need the whole installation."""
    from coreg_ray.studies.suite import timed

    try:
        from coreg_ray.studies.annotation import measure_annotation
        from coreg_ray.studies.prediction import measure_prediction
    except ModuleNotFoundError as missing:
        for name in ("annotation/ratio_to_bare_loop", "prediction/ratio_to_bare_loop"):
            figures.skipped[name] = f"{missing.name} is not installed"
    else:
        timed("annotation", lambda: measure_annotation(figures, images))
        timed("prediction", lambda: measure_prediction(figures, 2 * images))
