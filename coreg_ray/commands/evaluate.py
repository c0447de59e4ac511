"""Score a trained model on any labelled source.

    coreg-ray evaluate --model runs/digits/model --test.kind folder --test.path DIR

With `--output DIR`, DIR/metrics.json holds the figures.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from coreg_ray.commands.base import Command, load, show
from coreg_ray.errors import UserError


class EvaluateCommand(Command):
    """Evaluate."""

    CLASSES_ARE_NAMED: ClassVar[bool] = False

    model: str = Field(description="the model/ folder of a run, a path or a URI, or hf://ORG/NAME")
    batch_size: int = Field(256, ge=1, description="images a model gets at a time")
    actors: int = Field(1, ge=1, description="models at work")
    num_gpus: float = Field(0, ge=0, description="GPUs per model, fractions allowed; 0 runs on CPUs")


def main(arguments: list[str]) -> None:
    """Run the command."""
    config = load(arguments, EvaluateCommand, __doc__)
    from coreg_ray.cluster.address import refuse_silent  # late: torch and Ray take seconds, --help needs neither

    refuse_silent()
    from coreg_ray.cluster.connect import connect
    from coreg_ray.cluster.predict import Pool, evaluate
    from coreg_ray.cluster.waiting import watched
    from coreg_ray.deploy.model import model_folder, read_card
    from coreg_ray.images import open_source
    from coreg_ray.run.folder import METRICS
    from coreg_ray.run.storage import Folder

    folder = model_folder(config.model)
    card = read_card(folder)
    class_names: list[str] = card["classes"]
    origin = card.get("provenance", {})
    trained_on = origin.get("configuration", {}).get("source", {}).get("kind", "digits")
    if config.test.kind == "digits" and trained_on != "digits":
        raise UserError(f"the embedded digits are no test for a model of {trained_on}; give test.kind and test.path")
    names = origin.get("names") or [[name] for name in class_names]
    known = {name.lower(): number for number, entry in enumerate(names) for name in entry}
    source = open_source(config, "test", known)
    connect()
    with watched():
        evaluation = evaluate(folder, source, Pool(config.batch_size, config.actors, config.num_gpus))
    show(evaluation.table(class_names))
    if any(argument.split("=")[0] == "--output" for argument in arguments):
        Folder.at(config.output).write_json(METRICS, evaluation.metrics())
