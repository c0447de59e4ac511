"""Score a trained model on any labelled source.

    python jobs/evaluate.py --model runs/digits/model --test.kind folder --test.path DIR

With `--output DIR`, DIR/metrics.json holds the figures.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from coreg_ray.command_line import Command, load, run
from coreg_ray.model import read_card
from coreg_ray.ray_pipeline import connect
from coreg_ray.ray_predict import Evaluation, Pool, evaluate
from coreg_ray.sources import open_source
from coreg_ray.storage import Folder


class EvaluateCommand(Command):
    """Evaluate."""

    model: str = Field(description="the model/ folder of a run, a path or a URI")
    batch_size: int = Field(256, ge=1, description="images a model gets at a time")
    actors: int = Field(1, ge=1, description="models at work")
    num_gpus: float = Field(0, ge=0, description="GPUs per model, fractions allowed; 0 runs on CPUs")

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateCommand:
        """Classes come with the model, so a source without any will do."""
        return self


def main(arguments: list[str]) -> None:
    config = load(arguments, EvaluateCommand, __doc__ or "")
    folder = Folder.at(config.model)
    classes: list[str] = read_card(folder)["classes"]
    source = open_source(config, "test", {name.lower(): number for number, name in enumerate(classes)})
    connect()
    found = evaluate(folder, source, Pool(config.batch_size, config.actors, config.num_gpus))
    print(table(found, classes))
    if any(argument.split("=")[0] == "--output" for argument in arguments):
        figures = {"accuracy": found.accuracy, "calibration_error": found.calibration_error, "images": found.images}
        Folder.at(config.output).write_json("metrics.json", {f"test/{name}": value for name, value in figures.items()})


def table(found: Evaluation, classes: list[str]) -> str:
    """Accuracy, calibration and a line for each class."""
    lines = [f"{'class':24} images  recall  precision"]
    for name, row, column in zip(classes, found.counts, found.counts.T, strict=True):
        hits = row[classes.index(name)]
        recall, precision = (f"{hits / total:.3f}" if total else "-" for total in (row.sum(), column.sum()))
        lines.append(f"{name:24} {row.sum():6}  {recall:>6}  {precision:>9}")
    lines.append(f"accuracy {found.accuracy:.4f}, expected calibration error {found.calibration_error:.4f}, ")
    lines[-1] += f"{found.images} images, {found.unreadable} labelled ones unreadable"
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
