"""The command line of the studies: what is missing in the file of runs is run, then the table is shown."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from coreg_ray.config import StudentConfig
from coreg_ray.errors import UserError
from coreg_ray.studies.real_noise import data, tiny, trial
from coreg_ray.studies.real_noise.eyes import Eyes
from coreg_ray.studies.real_noise.problem import read_problems
from coreg_ray.studies.real_noise.student import EPOCHS, student_of
from coreg_ray.studies.real_noise.table import table
from coreg_ray.studies.real_noise.variants import DEFAULT, MAIN, VARIANTS

log = logging.getLogger(__name__)


def main() -> None:
    """The command line."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # each network trains in a thread of its own
    try:
        study(arguments)
    except UserError as error:
        sys.exit(str(error))


def study(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing of a study; returns all its lines.

    Raises:
        UserError: the data folder lacks something, or no variant has that name.
    """
    unknown = [name for name in arguments.variant if name not in VARIANTS]
    if unknown:
        raise UserError(f"--variant {unknown[0]} is unknown; the variants are {', '.join(VARIANTS)}")
    kind, smoke = arguments.student, arguments.smoke
    which, folder = tiny.prepared(data.STUDIES[arguments.study], arguments.data, smoke, weights=kind == "frozen")
    student = tiny.STUDENTS[kind] if smoke else student_of(arguments.study, folder, kind)
    epochs = tiny.EPOCHS if smoke else arguments.epochs
    rows = min(arguments.rows or which.rows, which.rows)
    records = _read(arguments.output)
    done = {(line["votes"], line["variant"], line["seed"], line["rows"], line["student"]) for line in records}
    todo = [
        (voters, name, seed)
        for seed in arguments.seeds
        for voters in which.voters
        if arguments.votes in (None, voters)
        for name in arguments.variant or [*MAIN, "default"]
        if (voters, name, seed, rows, kind) not in done
    ]
    eyes, tested = Eyes(student, arguments.features), arguments.tested
    problems = read_problems(which, folder, eyes, rows, arguments.votes, tested) if todo else {}
    for voters, name, seed in todo:
        line = _line(problems[voters], voters, name, seed, rows, student, epochs, records, arguments.keep)
        records.append(line)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s, %s, seed %d: %s", voters, name, seed, {k: v for k, v in line.items() if "accuracy" in k})
    for text in table(records):
        log.info("%s", text)
    return records


def _line(
    problem: Any,
    voters: str,
    name: str,
    seed: int,
    rows: int,
    student: StudentConfig,
    epochs: int,
    records: list[dict[str, Any]],
    keep: Path | None,
) -> dict[str, Any]:
    """What a run came to; `default` is another name of a variant, so its run is taken over where there is one."""
    kind = "frozen" if student.frozen else "scratch"
    same = {"variant": DEFAULT, "votes": voters, "seed": seed, "rows": rows, "student": kind}
    for line in records:
        if name == "default" and same.items() <= line.items():
            return {**line, "variant": name, "same_as": DEFAULT}
    started = time.process_time()
    outcome, taken = trial.run(problem, VARIANTS[name], student, seed, epochs)
    figures = {key: round(value, 4) for key, value in trial.scores(problem, outcome).items()}
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        kept = {"logits": outcome.logits, "purified": outcome.purified, "belief": problem.belief.float()}
        kept |= {"votes": problem.votes, "labels": problem.labels, "shares": problem.shares}
        named = keep / f"{voters}-{name}-{seed}-{rows}-{kind}.safetensors"
        save_file({k: v.contiguous() for k, v in kept.items()}, named)
    return {
        "variant": name, "votes": voters, "seed": seed, "rows": len(problem.labels), "student": kind,
        "epochs": taken, **figures, **trial.evidence_figures(outcome.evidence),
        "curve": [round(v, 3) for v in outcome.curve], **{k: round(v, 4) for k, v in outcome.criteria.items()},
        "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def _read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=tuple(data.STUDIES), required=True)
    parser.add_argument("--data", type=Path, help="folder of images, votes and weights")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, one a run")
    parser.add_argument("--variant", action="append", default=[], help="may be repeated; the main ones without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--votes", help="of the study's sets of voters only this one, e.g. clip3")
    parser.add_argument("--rows", type=int, help="most images of the pool, and most to test")
    parser.add_argument("--tested", type=int, help="most images to test, where they are more than the pool's")
    parser.add_argument("--student", choices=("frozen", "scratch"), default="frozen", help="heads, or whole networks")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each training")
    parser.add_argument("--smoke", action="store_true", help="tiny images that the study makes itself")
    parser.add_argument("--keep", type=Path, help="folder for what the networks say of the pool in each run")
    default = Path(tempfile.gettempdir()) / "coreg-ray-features"
    parser.add_argument("--features", type=Path, default=default, help="folder for what the backbone sees")
    return parser


if __name__ == "__main__":
    main()
