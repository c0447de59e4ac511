"""Search over settings with Ray Tune: annotation once, then trials that are compared without labels.

coreg-ray tune                                       six short trials over the embedded digits, a few minutes
coreg-ray tune --config run.yaml --space space.yaml --num_samples 32 --scheduler asha --output runs/search
coreg-ray tune ... --resume                          go on after an interruption, with the same arguments

--resume unpickles what Ray Tune left in the output, which runs whatever was put there: use it on folders of your own.
"""

from __future__ import annotations

from argparse import ArgumentParser
from itertools import zip_longest

from coreg_ray.commands.base import Command, load, next_command, show
from coreg_ray.run.uris import extended, without_credentials
from coreg_ray.search.definition import Search

STOPPED = "stopped; the same command with --resume goes on"  # what Ctrl-C is answered with


class TuneCommand(Command, Search):
    """Tune."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    config = load(with_preset(with_value(arguments)), TuneCommand, __doc__, continues=True)
    from coreg_ray.cluster.address import refuse_silent  # late: Ray takes seconds, --help and errors need none

    refuse_silent()
    from coreg_ray.cluster.tune import search
    from coreg_ray.run.search_folder import BEST, TABLE, TUNE

    came = search(config, config)
    table, tune_logs, annotations, best = (
        without_credentials(extended(config.output, f"/{name}")) for name in (TABLE, TUNE, "annotations", BEST)
    )
    show(came.table)
    show(
        f"Best by {came.objective}: trial {came.best}. See {table} and trials.svg; "
        f"tensorboard --logdir {tune_logs}\n"
        f"{next_command('train', '--annotations', annotations, '--config', best)}"
    )


def with_value(arguments: list[str]) -> list[str]:
    """`--resume` alone means true."""
    return [
        "--resume=true" if word == "--resume" and after.startswith("--") else word
        for word, after in zip_longest(arguments, arguments[1:], fillvalue="--")
    ]


def with_preset(arguments: list[str]) -> list[str]:
    """Unless a file, a preset or a source is given, trials are the short ones of the preset `search`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "preset", "source.kind"):
        parser.add_argument(f"--{name}", dest=name)
    known, _ = parser.parse_known_args(arguments)
    return arguments if any(vars(known).values()) else ["--preset", "search", *arguments]
