"""Whether a run says rightly when its labels are to be trusted, on pools that nobody has tuned its verdict on.

    python -m coreg_ray.studies.real_noise.untuned --data DIR --output docs/results/untuned.jsonl

Each case takes some voters of a study, or fewer images, or drops a class, or mixes some votes up. FIRST and SECOND were
tried, and what went wrong there changed the verdict; THIRD was written down before anybody looked. Right: the verdict
says whether purified labels are more right than the label model's own; where the two differ by less than CLOSE, either
answer is.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreg_ray.errors import UserError
from coreg_ray.studies.real_noise import data, tiny, trial
from coreg_ray.studies.real_noise.eyes import Eyes
from coreg_ray.studies.real_noise.problem import Problem, build
from coreg_ray.studies.real_noise.student import EPOCHS, student_of
from coreg_ray.studies.real_noise.variants import DEFAULT, VARIANTS
from coreg_ray.training.rows import Images

log = logging.getLogger(__name__)

CLOSE = 0.005


@dataclass(frozen=True)
class Case:
    """A pool that differs from a study's.

    Attributes:
        study: whose images. voters: which of its voters; empty: all. rows: most images. without: a class whose images
            are left out, though voters may still name it; -1: none. shuffled: share of each voter's votes that change
            places.
    """

    study: str
    voters: tuple[int, ...] = ()
    rows: int = 4000
    without: int = -1
    shuffled: float = 0.0


FIRST = {
    "people, the first two": Case("people", (0, 1), rows=2000),
    "people, 300 images": Case("people", rows=300),
    "people, no cats": Case("people", rows=2000, without=3),
    "people, a third of the votes mixed up": Case("people", rows=2000, shuffled=0.33),
    "people, two thirds of the votes mixed up": Case("people", rows=2000, shuffled=0.67),
    "all thirteen models": Case("vlm", rows=2000),
    "SigLIP in three languages": Case("vlm", (4, 5, 6), rows=2000),
    "SigLIP2 in three languages": Case("vlm", (8, 9, 10), rows=2000),
    "four languages of CLIP": Case("vlm", (0, 1, 2, 3), rows=2000),
    "the five worst models": Case("vlm", (2, 3, 7, 11, 12), rows=2000),
    "one model of each family": Case("vlm", (0, 4, 8, 12), rows=2000),
    "CLIP's French and Chinese": Case("vlm", (1, 2), rows=2000),
    "all thirteen models, 300 images": Case("vlm", rows=300),
    "CLIP in three languages, no ships": Case("vlm", (0, 1, 2), rows=2000, without=8),
    "CLIP in three languages, a third of the votes mixed up": Case("vlm", (0, 1, 2), rows=2000, shuffled=0.33),
    "waste, the first six": Case("waste", tuple(range(6))),
    "waste, the last four": Case("waste", (8, 9, 10, 11)),
    "waste, 300 images": Case("waste", rows=300),
    "waste, no glass": Case("waste", without=1),
    "waste, a third of the votes mixed up": Case("waste", shuffled=0.33),
}
SECOND = {
    "people, the last two": Case("people", (1, 2), rows=2000),
    "people, the first alone": Case("people", (0,), rows=2000),
    "people, 500 images": Case("people", rows=500),
    "people, no trucks": Case("people", rows=2000, without=9),
    "people, half of the votes mixed up": Case("people", rows=2000, shuffled=0.5),
    "people, two of them, a third of the votes mixed up": Case("people", (0, 2), rows=2000, shuffled=0.33),
    "SigLIP and SigLIP2 in English": Case("vlm", (4, 8), rows=2000),
    "English alone": Case("vlm", (0, 4, 8), rows=2000),
    "French alone": Case("vlm", (1, 5, 9), rows=2000),
    "Chinese and Swahili": Case("vlm", (2, 3, 6, 7, 10, 11), rows=2000),
    "Chinese and Swahili of CLIP": Case("vlm", (2, 3), rows=2000),
    "CLIP's Chinese and BiomedCLIP": Case("vlm", (2, 12), rows=2000),
    "the five best models": Case("vlm", (4, 6, 8, 9, 10), rows=2000),
    "all thirteen models, half of the votes mixed up": Case("vlm", rows=2000, shuffled=0.5),
    "all thirteen models, no frogs": Case("vlm", rows=2000, without=6),
    "waste, the first two": Case("waste", (0, 1)),
    "waste, every third": Case("waste", (0, 3, 6, 9)),
    "waste, 600 images": Case("waste", rows=600),
    "waste, no paper": Case("waste", without=3),
    "waste, a tenth of the votes mixed up": Case("waste", shuffled=0.1),
}
THIRD = {
    "people, the first and the last": Case("people", (0, 2), rows=2000),
    "people, the second alone": Case("people", (1,), rows=2000),
    "people, 400 images": Case("people", rows=400),
    "people, 1000 images": Case("people", rows=1000),
    "people, no dogs": Case("people", rows=2000, without=5),
    "people, a quarter of the votes mixed up": Case("people", rows=2000, shuffled=0.25),
    "Chinese alone": Case("vlm", (2, 6, 10), rows=2000),
    "CLIP's English and French": Case("vlm", (0, 1), rows=2000),
    "SigLIP2 in four languages": Case("vlm", (8, 9, 10, 11), rows=2000),
    "every second model": Case("vlm", (0, 2, 4, 6, 8, 10, 12), rows=2000),
    "English and Swahili": Case("vlm", (0, 3, 4, 7, 8, 11), rows=2000),
    "CLIP in three languages, 300 images": Case("vlm", (0, 1, 2), rows=300),
    "CLIP in three languages, half of the votes mixed up": Case("vlm", (0, 1, 2), rows=2000, shuffled=0.5),
    "all thirteen models, a quarter of the votes mixed up": Case("vlm", rows=2000, shuffled=0.25),
    "waste, the last eight": Case("waste", tuple(range(4, 12))),
    "waste, every second": Case("waste", (0, 2, 4, 6, 8, 10)),
    "waste, three of them": Case("waste", (2, 5, 8)),
    "waste, 1000 images": Case("waste", rows=1000),
    "waste, no metal": Case("waste", without=2),
    "waste, half of the votes mixed up": Case("waste", shuffled=0.5),
}
CASES = {**FIRST, **SECOND, **THIRD}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images, votes and weights")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, one a case")
    parser.add_argument("--smoke", action="store_true", help="tiny images that the study makes itself")
    default = Path(tempfile.gettempdir()) / "coreg-ray-features"
    parser.add_argument("--features", type=Path, default=default, help="folder for what the backbone sees")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # each network trains in a thread of its own
    try:
        lines = judge(parser.parse_args())
    except UserError as error:
        sys.exit(str(error))
    log.info("right in %d of %d cases", sum(line["right"] for line in lines), len(lines))


def judge(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the cases that are missing in the file; returns all its lines.

    Raises:
        UserError: the data folder is not given, or lacks something.
    """
    path: Path = arguments.output
    if arguments.smoke and arguments.data is None:
        arguments.data = Path(tempfile.mkdtemp(prefix="coreg-ray-"))
        for study in data.STUDIES.values():
            tiny.make(tiny.study(study), arguments.data)
    if arguments.data is None:
        raise UserError("--data is missing: the folder of the studies' images and votes (--smoke makes its own)")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for name, case in CASES.items():
        if name not in {line["case"] for line in lines}:
            lines.append(_line(name, case, arguments))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            log.info("%s", lines[-1])
    return lines


def _line(name: str, case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case trained by the default variant, and whether what it says of its labels is right."""
    started = time.process_time()
    study, student, epochs = data.STUDIES[case.study], student_of(case.study, arguments.data), EPOCHS
    if arguments.smoke:
        study, student, epochs = tiny.study(study), tiny.STUDENT, tiny.EPOCHS
    data.check(study, arguments.data, weights=not arguments.smoke)
    problem = _problem(case, study, arguments.data, Eyes(student, arguments.features))
    outcome, _ = trial.run(problem, VARIANTS[DEFAULT], student, 0, epochs)
    figures = {key: round(value, 4) for key, value in trial.scores(problem, outcome).items()}
    gain, says = figures["purified_accuracy"] - figures["votes_accuracy"], outcome.evidence.improved
    return {
        "case": name, "rows": len(problem.labels), "voters": problem.votes.shape[1], **figures,
        **trial.evidence_figures(outcome.evidence), "gain": round(gain, 4),
        "right": abs(gain) < CLOSE or says == (gain > 0), "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def _problem(case: Case, study: data.Study, folder: Path, eyes: Eyes) -> Problem:
    """The study's images and votes, as the case changes them."""
    pictures = data.read_pictures(folder / study.pool, min(case.rows, study.rows))
    tested = data.read_pictures(folder / study.test, min(case.rows, study.tested))
    voters = case.voters or max(study.voters.values(), key=len)
    votes = _mixed_up(data.read_votes(folder / study.votes, pictures.ids, voters), case.shuffled)
    seen, shown = eyes.see(pictures, views=True), eyes.see(tested, views=False)
    kept, scored = (_of_other_classes(images, case.without) for images in (seen, shown))
    return build(case.study, votes[kept], study.classes, _only(seen, kept), _only(shown, scored))


def _of_other_classes(images: Images, without: int) -> Tensor:
    """(N,) bool."""
    assert images.labels is not None
    return images.labels != without


def _only(images: Images, kept: Tensor) -> Images:
    assert images.labels is not None
    assert images.features is not None
    return Images(images.numbers[kept], images.pixels[kept], images.labels[kept], images.features[kept])


def _mixed_up(votes: Tensor, share: float) -> Tensor:
    """Votes (N, V) of which each voter's share changes places among its images."""
    random, mixed = torch.Generator().manual_seed(7), votes.clone()
    for voter in range(votes.shape[1]):
        chosen = torch.randperm(len(votes), generator=random)[: round(share * len(votes))]
        mixed[chosen, voter] = votes[chosen[torch.randperm(len(chosen), generator=random)], voter]
    return mixed


if __name__ == "__main__":
    main()
