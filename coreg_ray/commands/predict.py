"""Classify the images of any source with a trained model; the same command continues after an interruption.

coreg-ray predict --model runs/digits/model --source.kind folder --source.path DIR --output DIR
coreg-ray predict --model runs/digits/model --single IMAGE
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from coreg_ray.commands.base import Command, load, show


class PredictCommand(Command):
    """Predict."""

    CLASSES_ARE_NAMED: ClassVar[bool] = False

    model: str = Field(description="the model/ folder of a run, a path or a URI, or hf://ORG/NAME")
    single: str | None = Field(None, description="classify this one image file and print the answer")
    top_k: int = Field(5, ge=1, description="most probable classes that are kept of each image")
    abstain: bool = Field(False, description="say `unknown` below the threshold that model.json stores")
    batch_size: int = Field(256, ge=1, description="images a model gets at a time")
    actors: int = Field(1, ge=1, description="models at work")
    num_gpus: float = Field(0, ge=0, description="GPUs per model, fractions allowed; 0 runs on CPUs")


def main(arguments: list[str]) -> None:
    """Run the command."""
    config = load(arguments, PredictCommand, __doc__)
    if config.single:
        from coreg_ray.deploy.abstain import threshold_of
        from coreg_ray.deploy.model import Model  # late: torch takes seconds, --help and errors need none

        model = Model.load(config.model)
        best = model.top(config.single, config.top_k)
        if config.abstain and best[0][1] < (least := threshold_of(model.abstain, model.classes)):
            show(f"unknown: no class is as probable as {least:.4f}")
        for name, probability in best:
            show(f"{probability:.4f}  {name}")
        return
    from coreg_ray.cluster.address import refuse_silent  # a single image needs no Ray

    refuse_silent()
    from coreg_ray.cluster.connect import connect
    from coreg_ray.cluster.predict import Pool, predict
    from coreg_ray.cluster.resources import refuse_unreachable
    from coreg_ray.cluster.waiting import watched
    from coreg_ray.deploy.model import model_folder
    from coreg_ray.images import open_source
    from coreg_ray.run.storage import Folder

    folder, output, source = model_folder(config.model), Folder.at(config.output), open_source(config, "pool")
    connect()
    refuse_unreachable(output)
    with watched():
        pool = Pool(config.batch_size, config.actors, config.num_gpus)
        done = predict(folder, source, output, config.top_k, pool, config.abstain)
    show(
        f"{done.predicted_images} of {done.images} images predicted now, {done.rejected_images} cannot be decoded, "
        f"{done.images_per_s:.0f} a second; see {output.path}/predictions"
    )
