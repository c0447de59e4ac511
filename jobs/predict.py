"""Classify the images of any source with a trained model; the same command continues after an interruption.

python jobs/predict.py --model runs/digits/model --source.kind folder --source.path DIR --output DIR
python jobs/predict.py --model runs/digits/model --single IMAGE
"""

from __future__ import annotations

from pydantic import Field, model_validator

from coreg_ray import load as load_model
from coreg_ray.cluster.address import refuse_silent
from coreg_ray.commands.base import Command, load, run
from coreg_ray.run.storage import Folder


class PredictCommand(Command):
    """Predict."""

    model: str = Field(description="the model/ folder of a run, a path or a URI")
    single: str | None = Field(None, description="classify this one image file and print the answer")
    top_k: int = Field(5, ge=1, description="most probable classes that are kept of each image")
    batch_size: int = Field(256, ge=1, description="images a model gets at a time")
    actors: int = Field(1, ge=1, description="models at work")
    num_gpus: float = Field(0, ge=0, description="GPUs per model, fractions allowed; 0 runs on CPUs")

    @model_validator(mode="after")
    def _classes(self) -> PredictCommand:
        """Classes come with the model, so a source without any will do."""
        return self


def main(arguments: list[str]) -> None:
    config = load(arguments, PredictCommand, __doc__ or "")
    if config.single:
        for name, probability in load_model(config.model).top(config.single, config.top_k):
            print(f"{probability:.4f}  {name}")
        return
    refuse_silent()
    from coreg_ray.cluster.pipeline import connect  # a single image needs no Ray
    from coreg_ray.cluster.predict import Pool, predict
    from coreg_ray.cluster.resources import refuse_unreachable
    from coreg_ray.images import open_source

    model, output, source = Folder.at(config.model), Folder.at(config.output), open_source(config, "pool")
    connect()
    refuse_unreachable(output)
    figures = predict(model, source, output, config.top_k, Pool(config.batch_size, config.actors, config.num_gpus))
    print(
        f"{figures['predicted_images']} of {figures['images']} images predicted now, {figures['rejected_images']} "
        f"cannot be decoded, {figures['images_per_s']:.0f} a second; see {output.path}/predictions"
    )


if __name__ == "__main__":
    run(main)
