"""The command `coreg-ray`: lists what there is, and calls it."""

from __future__ import annotations

import sys
from importlib import import_module

from coreg_ray import __version__
from coreg_ray.commands.base import run, show

COMMANDS = {
    "pipeline": "from images to a trained classifier and a report: annotate, train, evaluate, report",
    "annotate": "let vision-language models vote on every image of a pool, and nothing else",
    "train": "train on an annotation made before, with other settings",
    "tune": "search over settings; trials are compared without labels",
    "compare": "other methods on the rows of a run, and what their figures allow to say",
    "labels": "write the labels of a run's pool in a form that other tools read",
    "predict": "classify the images of any source with a trained model",
    "evaluate": "score a trained model on any labelled source",
    "serve": "answer images over HTTP with a trained model",
    "push": "put a run's model, and its labels if asked for, on the Hugging Face Hub",
    "review": "look at the images of a run's review.csv in the browser and label them",
    "show": "what a run is doing or came to, where it lies and what it takes; runs side by side",
    "benchmark": "how fast the method runs on this machine",
}


def main() -> None:
    """Call the command that the command line names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        show(overview())
    elif name == "--version":
        show(f"coreg-ray {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"{sys.argv[0]} {name}", *arguments]  # what a command's help calls its program
        call(name, arguments)
    else:
        sys.stderr.write(f"error: {name!r} is no command; use one of {', '.join(COMMANDS)}\n")
        sys.exit(2)


def call(name: str, arguments: list[str]) -> None:
    """Run one of the commands."""
    command = import_module(f"coreg_ray.commands.{name}")
    run(command.main, arguments, getattr(command, "STOPPED", None))


def overview() -> str:
    """All commands, a line each."""
    lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    usage = "usage: coreg-ray COMMAND [--config FILE] [--section.key VALUE ...]"
    return "\n".join([usage, "", *lines, "", "coreg-ray COMMAND --help lists the settings of one."])
