"""Answer images over HTTP with a trained model (needs the extra `serve`).

coreg-ray serve --model runs/digits/model
curl --data-binary @image.png http://127.0.0.1:8000/       or -F image=@image.png, or JSON {"image": base64}

On a shared cluster (RAY_ADDRESS) the application ends with this command.
"""

from __future__ import annotations

import time

from pydantic import Field

from coreg_ray.commands.base import Command, load, show

STOPPED = "stopped"  # what Ctrl-C is answered with


class ServeCommand(Command):
    """Serve."""

    model: str = Field(description="the model/ folder of a run, a path or a URI, or hf://ORG/NAME")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 lets other machines in")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    replicas: int = Field(1, ge=1, description="copies of the model at work")
    abstain: bool = Field(False, description="say `unknown` below the threshold that model.json stores")
    num_gpus: float = Field(0, ge=0, description="GPUs per copy, fractions allowed; 0 runs on CPUs")
    max_bytes: int = Field(20_000_000, ge=1, description="largest request body in bytes")
    pause_s: float = Field(10, gt=0, description="seconds that a client may send nothing of its body; six times in all")


def main(arguments: list[str]) -> None:
    """Run the command."""
    config = load(arguments, ServeCommand, __doc__)
    from coreg_ray.cluster.address import refuse_silent  # late: Ray takes seconds, --help and errors need none

    refuse_silent()
    from coreg_ray.cluster.serve import application, serving
    from coreg_ray.deploy.model import model_folder

    model = model_folder(config.model)
    limits = (config.max_bytes, config.num_gpus, config.pause_s)
    app = application(model, config.replicas, *limits, config.abstain)
    with serving(app, config.host, config.port) as addresses:
        show(f"answering at {', '.join(addresses)}; Ctrl-C stops")
        while True:
            time.sleep(3600)
