"""Train on an annotation made before: with its run's settings, and what you override.

coreg-ray train --annotations runs/digits/annotations --output runs/second --method.epochs 40
"""

from __future__ import annotations

from argparse import ArgumentParser

from pydantic import Field

from coreg_ray.commands.base import Command, load, show
from coreg_ray.commands.pipeline import summary, trained
from coreg_ray.errors import UserError
from coreg_ray.run.uris import extended, shortened


class TrainCommand(Command):
    """Train."""

    annotations: str = Field(description="the annotations/ folder of an earlier run")


def main(arguments: list[str]) -> None:
    """Run the command."""
    given = [*settings_of_the_annotated_run(arguments), *arguments]
    config = load(given, TrainCommand, __doc__, continues=True)
    show(summary(trained(config, config.annotations), config.output, config.source.manual_labels))


def settings_of_the_annotated_run(arguments: list[str]) -> list[str]:
    """`--config` of the run that was annotated, so that its source and class names need not be repeated.

    Raises:
        UserError: it has none, and neither `--config` nor `--source.kind` says what was annotated.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("annotations", "config", "source.kind"):
        parser.add_argument(f"--{name}", dest=name)
    known = vars(parser.parse_known_args(arguments)[0])
    if not known["annotations"] or known["config"]:
        return []
    file = config_of_the_annotated_run(known["annotations"], bool(known["source.kind"]))
    return ["--config", file] if file else []


def config_of_the_annotated_run(annotations: str, names_source: bool) -> str | None:
    """The file with the settings that an annotation was made with; None where there is none and the source is named.

    Raises:
        UserError: there is none, and nobody says what was annotated.
    """
    from coreg_ray.run.folder import CONFIG  # late: --help needs no pyarrow
    from coreg_ray.run.storage import Folder

    folder = shortened(annotations, "/annotations")
    if Folder.at(folder).exists(CONFIG):
        return extended(folder, f"/{CONFIG}")
    if names_source:
        return None
    raise UserError(
        f"{folder} has no config.yaml, so nobody knows what was annotated; give the annotations/ folder of a run, or "
        "its settings with --config FILE"
    )
