"""Train other methods on the rows of a run, and say which pays.

    coreg-ray compare RUN                                         all kinds, one seed
    coreg-ray compare RUN --kinds coreg,dividemix --seeds 0,1,2
    coreg-ray compare RUN --variants rows.yaml --seeds 0,1,2      a YAML file: row name -> settings

RUN is the folder of a run that was annotated, trained or not. Annotations, candidate sets, images and features are
shared; each row is a run folder of its own in RUN/methods/. The same command goes on where it was stopped. Settings
that are given apply to every row: --method.epochs 40 --cluster.use_gpu true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationError, field_validator

from coreg_ray.commands.base import Command, load, run_word, show
from coreg_ray.commands.labels import settings_of
from coreg_ray.commands.presets import preset_settings
from coreg_ray.config.texts import explain, flattened
from coreg_ray.errors import UserError
from coreg_ray.run.uris import extended, without_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coreg_ray.cluster.compare import Comparison, Entry
    from coreg_ray.config import Config
    from coreg_ray.search.comparison import Row

STOPPED = "stopped; the same command goes on with the runs that are not finished"


class CompareCommand(Command):
    """Compare."""

    CLASSES_ARE_NAMED: ClassVar[bool] = False
    TAKES_RUN: ClassVar[bool] = True

    kinds: str | None = Field(None, description="kinds of methods, with commas between them; empty: all")
    variants: str | None = Field(None, description="YAML file: row name -> settings in which it differs from the run")
    seeds: str = Field("0", description="seeds of every row, with commas between them")
    max_concurrent: int | None = Field(None, ge=1, description="most runs at once; empty: as many as there is room for")

    @field_validator("seeds")
    @classmethod
    def _whole_numbers(cls, value: str) -> str:
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
            raise ValueError(f"{value!r} are no seeds; give whole numbers with commas between them, none twice: 0,1,2")
        return ",".join(words)


def main(arguments: list[str]) -> None:
    """Run the command."""
    place, rest = run_word(arguments)
    given = [*settings_of(place, rest), *(["--output", place] if place else []), *rest]
    config = load(given, CompareCommand, __doc__)
    if not place:
        raise UserError("which run? write coreg-ray compare RUN, with RUN the folder of a run that was annotated")
    came = compared(config)
    show(came.table)
    page = without_credentials(extended(place, "/comparison.html"))
    show(f"{came.conclusion} See {page} and comparison.csv.")


def compared(config: CompareCommand, variants: Mapping[str, Any] | None = None) -> Comparison:
    """Train the rows that are asked for.

    Args:
        variants: what a file of variants would hold.

    Raises:
        UserError: rows are named twice, are none, or want other data than the run's; or as `cluster.compare.compare`.
    """
    if config.kinds and (config.variants or variants is not None):
        raise UserError("--kinds and --variants both name rows; give one of them")
    from coreg_ray.cluster.address import refuse_silent  # late: Ray takes seconds, --help and errors need none

    refuse_other_data(config)
    rows = rows_of(config, variants)
    refuse_silent()
    from coreg_ray.cluster.compare import compare, fitted

    whole = fitted(config)
    return compare(entries_of(whole, rows, config.seeds), whole, config.max_concurrent)


def refuse_other_data(config: CompareCommand) -> None:
    """Raises UserError where the words ask for other annotations, candidate sets or images than the run's."""
    from coreg_ray.run.folder import RunFolder
    from coreg_ray.search.comparison import refuse_unshared

    begun = RunFolder.at(config.output).read_config()
    now, then = (flattened(one.decisive(start=False)) if one else {} for one in (config, begun))
    for key in sorted(set(now) - {"seed"}):
        if now[key] != then.get(key):
            refuse_unshared(f"compare {config.output}", key, config.student.on_features)


def rows_of(config: CompareCommand, variants: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows that are asked for; `variants`: as of `compared`.

    Raises:
        UserError: a kind does not exist, or the file of variants is none.
    """
    from coreg_ray.methods import KINDS
    from coreg_ray.run.strict_yaml import parsed_yaml
    from coreg_ray.search.comparison import default_rows, rows_of_kinds, rows_of_variants

    if variants is not None:
        return rows_of_variants(variants, "variants", config.student.on_features)
    if config.variants:
        from pathlib import Path

        where = f"--variants {config.variants}"
        try:
            content = Path(config.variants).read_bytes()
        except OSError as error:
            raise UserError(f"{where} cannot be read ({error.strerror}); give a YAML file") from error
        return rows_of_variants(parsed_yaml(content, where), where, config.student.on_features)
    if config.kinds is None:
        return default_rows(list(KINDS))
    kinds = [kind.strip() for kind in config.kinds.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(
            f"--kinds: {', '.join(unknown) or 'nothing'} is no kind of method; use some of {', '.join(KINDS)}"
        )
    return rows_of_kinds(list(dict.fromkeys(kinds)))


def entries_of(config: Config, rows: list[Row], seeds: str) -> list[Entry]:
    """Every row with every seed, its settings checked before anything starts.

    Args:
        config: of the run, its method whole. seeds: with commas between them.

    Raises:
        UserError: a row's settings contradict one another.
    """
    from coreg_ray.cluster.compare import entry_of

    entries = []
    for row in rows:
        changes: dict[str, Any] = dict(row.changes)
        if preset := changes.pop("preset", None):
            below = {key: value for key, value in flattened(preset_settings(str(preset))).items() if key != "output"}
            changes = {**below, **changes}
        for seed in seeds.split(","):
            try:
                entries.append(entry_of(config, row.name, int(seed), changes))
            except ValidationError as error:
                reasons = "; ".join(explain(problem, type(config)) for problem in error.errors())
                raise UserError(f"row {row.name}: {reasons}") from error
            except KeyError as error:
                raise UserError(f"row {row.name}: {error} is no section of the configuration") from error
    return entries
