"""Search over settings with Ray Tune: annotation once, then trials that are compared without labels.

python jobs/tune.py                                       six short trials over the embedded digits, a few minutes
python jobs/tune.py --config run.yaml --space space.yaml --num_samples 32 --scheduler asha --output runs/search
python jobs/tune.py ... --resume                          go on after an interruption, with the same arguments
"""

from __future__ import annotations

from argparse import ArgumentParser
from itertools import zip_longest

from coreg_ray.cluster.address import refuse_silent
from coreg_ray.commands.base import Command, load, run
from coreg_ray.search.definition import Search


class TuneCommand(Command, Search):
    """Tune."""


def main(arguments: list[str]) -> None:
    config = load(with_preset(with_value(arguments)), TuneCommand, __doc__)
    refuse_silent()
    from coreg_ray.cluster.tune import search  # late: Ray takes seconds, --help and errors need none

    print(search(config, config))


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


if __name__ == "__main__":
    run(main, stopped="stopped; the same command with --resume goes on")
