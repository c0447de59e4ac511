"""Write the labels of a run's pool in a form that other tools read.

    coreg-ray labels RUN --format csv --output labels.csv
    coreg-ray labels RUN --format imagefolder --output DIR --status trusted,clean --pictures link
    coreg-ray labels RUN --format huggingface --output DIR --min_probability 0.9

They are the best of votes and networks together; where the run, or a hundred reviewed images, say that those are not to
be trusted above the votes (trust/votes_improved), and of a run that was not trained, the annotator's own.
RUN is the run's folder, a path or a URI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from coreg_ray import metrics
from coreg_ray.commands.base import Command, load, run_word, show
from coreg_ray.errors import UserError
from coreg_ray.run.trust import trust_in_words
from coreg_ray.run.uris import extended, without_credentials

if TYPE_CHECKING:
    from coreg_ray.config import Config
    from coreg_ray.deploy.labels.base import PoolLabels
    from coreg_ray.run.folder import RunFolder

STATUSES = ("trusted", "clean", "doubtful", "outlier")
STOPPED = "stopped; nothing was left at the output, and the same command begins anew"


class LabelsCommand(Command):
    """Labels."""

    CLASSES_ARE_NAMED: ClassVar[bool] = False
    TAKES_RUN: ClassVar[bool] = True

    format: Literal["csv", "parquet", "imagefolder", "huggingface", "cleanlab"] = Field(
        description="csv, parquet: one file; imagefolder, huggingface: with pictures; cleanlab: NumPy arrays"
    )
    min_probability: float = Field(0.0, ge=0, le=1, description="least probability of a label that is written")
    status: str = Field(",".join(STATUSES), description="which labels are written, with commas between them")
    whose: Literal["auto", "both", "annotator"] = Field(
        "auto", description="both: votes and networks together; auto: the annotator's where those are not to be trusted"
    )
    pictures: Literal["link", "copy"] = Field("copy", description="link: only where they are files in a local folder")

    @field_validator("status")
    @classmethod
    def _known(cls, value: str) -> str:
        chosen = [entry.strip() for entry in value.split(",") if entry.strip()]
        unknown = [entry for entry in chosen if entry not in STATUSES]
        if unknown or not chosen:
            raise ValueError(f"{', '.join(unknown) or 'nothing'} is no status; use some of {', '.join(STATUSES)}")
        return ",".join(chosen)


def main(arguments: list[str]) -> None:
    """Run the command."""
    place, rest = run_word(arguments)
    config = load([*settings_of(place, rest), *rest], LabelsCommand, __doc__)
    if not place:
        raise UserError("which run? write coreg-ray labels RUN --format csv --output PATH, with RUN the run's folder")
    if not any(word.split("=")[0] == "--output" for word in rest):
        raise UserError("where to? add --output PATH, a file or folder that does not exist yet")
    from coreg_ray.run.folder import RunFolder  # late: --help needs no pyarrow

    labels = read_labels(RunFolder.at(place), place, config)
    written = written_labels(labels, config)
    show(summary(labels, written, without_credentials(config.output)))


def written_labels(labels: PoolLabels, config: LabelsCommand) -> int:
    """Write the labels in the form and to the place that are asked for; returns how many.

    Raises:
        UserError: as `deploy.labels.write_labels`.
    """
    from coreg_ray.deploy.labels import write_labels  # late: torch takes seconds, --help and errors need none
    from coreg_ray.deploy.labels.base import Pictures

    return write_labels(labels, config.format, config.output, Pictures(config, config.pictures))


def settings_of(place: str, words: list[str]) -> list[str]:
    """`--config` of the run, which says where its images lie; nothing where the words name a file or ask for help.

    Raises:
        UserError: the folder is no run.
    """
    if not place or {word.split("=")[0] for word in words} & {"--config", "--help", "-h"}:
        return []
    return ["--config", config_of(place)]


def config_of(place: str) -> str:
    """The file with the settings of a run. Raises UserError: the folder is none."""
    from coreg_ray.run.folder import CONFIG  # late: --help needs no pyarrow
    from coreg_ray.run.storage import Folder

    if not Folder.at(place).exists(CONFIG):
        raise UserError(f"{place} holds no {CONFIG}, so it is no run; give the folder that --output named")
    return extended(place, f"/{CONFIG}")


def read_labels(run: RunFolder, place: str, config: LabelsCommand) -> PoolLabels:
    """The labels that are asked for; purified ones are made first where a trained run lacks them, which needs Ray.

    Raises:
        UserError: the folder is no run, or holds no candidate sets.
    """
    from coreg_ray.deploy.labels.base import PoolLabels
    from coreg_ray.deploy.purified import Making, mark_of
    from coreg_ray.training import checkpoint

    begun = run.read_config()
    if begun is None or run.read_candidate_manifest() is None:
        raise UserError(f"{place} holds no candidate sets; annotate first (coreg-ray annotate, or coreg-ray pipeline)")
    known, trained = run.read_purified_manifest(), checkpoint.newest(run.checkpoints) is not None
    if trained and (known is None or known.made_from != mark_of(run, begun)):
        make_purified(run, place, begun)
    _keep_verdict(run)
    making = Making.of(run, begun)
    chosen = frozenset(config.status.split(","))
    there = trained or known is not None
    return PoolLabels(run, making, there and takes_both(run, config.whose), chosen, config.min_probability)


def takes_both(run: RunFolder, whose: str) -> bool:
    """Whether labels of votes and networks together are wanted; `whose`: the setting."""
    from coreg_ray.deploy.reviewed import verdict

    return whose == "both" or (whose == "auto" and bool(verdict(run).get(metrics.VOTES_IMPROVED, True)))


def _keep_verdict(run: RunFolder) -> None:
    """What reviewed images say meanwhile goes into the figures, by which model card and threshold go."""
    from coreg_ray.deploy.reviewed import verdict

    told = verdict(run)
    there = {name: value for name, value in run.read_metrics().items() if name.startswith(metrics.TRUST)}
    if told != there:
        run.update_metrics(told, stale=(metrics.TRUST,))


def make_purified(run: RunFolder, place: str, config: Config) -> None:
    """Ask both networks about the pool, and add what came of it to the figures of the run."""
    from coreg_ray.cluster.address import refuse_silent

    refuse_silent()
    from coreg_ray.cluster.connect import connect
    from coreg_ray.cluster.purify import purify
    from coreg_ray.cluster.resources import refuse_unreachable
    from coreg_ray.run.lock import locked

    with locked(run, place):
        connect()
        refuse_unreachable(run)
        run.update_metrics(purify(config, run).figures)


def summary(labels: PoolLabels, written: int, output: str) -> str:
    """How many labels of which kind were written where, and how many there are."""
    counts = labels.counts()
    whose = "votes and networks together" if labels.purified else _why_annotator(labels.run)
    kinds = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES if counts[status])
    return f"{written:,} of {sum(counts.values()):,} labels ({kinds}; {whose}) are in {output}."


def _why_annotator(run: RunFolder) -> str:
    from coreg_ray.deploy.reviewed import verdict

    if run.read_purified_manifest() is None:
        return "the annotator's own, since no network was trained"
    return f"the annotator's own; --whose both writes the others. {trust_in_words(verdict(run))}".rstrip(". ")
