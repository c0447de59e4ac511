"""The commands as functions, for notebooks and programs: `coreg_ray.train("runs/a", preset="digits")`.

They do what the commands do, on the same folders, and refuse what these refuse, with `UserError`. Settings are keyword
arguments, named as the sections of the configuration; dotted names go as `**{"method.epochs": 3}`:

    coreg_ray.train("runs/a", source={"kind": "folder", "path": "photos", "classes": ["cat", "dog"]}, seed=1)
    coreg_ray.train("runs/a", preset="digits", method={"epochs": 3})
    coreg_ray.train("runs/a", config=Config(...))          or a YAML file, as with --config
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from coreg_ray.commands.annotate import annotated
from coreg_ray.commands.base import Command
from coreg_ray.commands.compare import CompareCommand, compared
from coreg_ray.commands.configured import configured, nested
from coreg_ray.commands.labels import config_of
from coreg_ray.commands.pipeline import trained
from coreg_ray.commands.results import Comparison, Labels, Run
from coreg_ray.commands.train import config_of_the_annotated_run
from coreg_ray.config import Config
from coreg_ray.config.texts import flattened
from coreg_ray.errors import UserError

Place = str | PathLike[str]
Settings = Config | str | PathLike[str] | None


def annotate(output: Place, *, config: Settings = None, preset: str | None = None, **settings: Any) -> Run:
    """Let vision-language models vote on every image of a pool, as `coreg-ray annotate` does.

    The same call again goes on with what is missing.

    Args:
        output: the run's folder, a path or a URI. config: a whole configuration, or a YAML file with settings. preset:
            settings under it, by name. settings: sections of the configuration, laid over both.

    Raises:
        UserError: a setting is unknown or out of range, the output holds something else, or the images cannot be read.
    """
    annotated(configured(_given(output, config, preset, settings), Command))
    return Run(str(output))


def train(
    output: Place,
    *,
    annotations: Run | Place | None = None,
    config: Settings = None,
    preset: str | None = None,
    **settings: Any,
) -> Run:
    """From images to a trained model, labels and a report, as `coreg-ray pipeline` does; what is missing is annotated.

    The same call again goes on where it was stopped. Where `output` holds a run, and neither `config`, `preset` nor
    `source` is given, the settings are that run's.

    Args:
        output: the run's folder, a path or a URI. annotations: an earlier run whose annotations are taken, with its
            settings, as `coreg-ray train` does. config, preset, settings: as of `annotate`.

    Raises:
        UserError: as `annotate`; or the run that the output holds has other settings.
    """
    given = _given(output, config, preset, settings)
    earlier = None if annotations is None else _place(annotations)
    if "config" not in given and earlier is not None:
        file = config_of_the_annotated_run(earlier, "kind" in given.get("source", {}))
        given |= {"config": file} if file else {}
    elif "config" not in given and preset is None and "source" not in given and _is_run(str(output)):
        given["config"] = config_of(str(output))
    trained(configured(given, Command, continues=True), earlier)
    return Run(str(output))


def compare(
    run: Run | Place,
    *,
    kinds: str | Iterable[str] | None = None,
    variants: Place | Mapping[str, Mapping[str, Any]] | None = None,
    seeds: int | str | Iterable[int] = 0,
    max_concurrent: int | None = None,
    **settings: Any,
) -> Comparison:
    """Train other methods on the rows of a run and say which pays, as `coreg-ray compare` does.

    Args:
        run: one that was annotated, trained or not. kinds: of methods; None: all. variants: a row's name and its
            settings each, or a YAML file of them. seeds: of every row. max_concurrent: most runs at once. settings:
            sections of the configuration, for every row.

    Raises:
        UserError: a row is none, its settings contradict one another, or it wants other data than the run's.
    """
    place, rows = _place(run), None
    given = _given(place, None, None, settings) | {"config": config_of(place)}
    given["seeds"] = _listed([seeds] if isinstance(seeds, int | np.integer) else seeds)
    given |= {"kinds": _listed(kinds)} if kinds is not None else {}
    given |= {"max_concurrent": max_concurrent} if max_concurrent is not None else {}
    if isinstance(variants, Mapping):
        rows = {name: flattened(_values(changes)) for name, changes in variants.items()}
    elif variants is not None:
        given["variants"] = str(variants)
    came = compared(configured(given, CompareCommand), rows)
    from coreg_ray.run.comparison import TABLE
    from coreg_ray.run.folder import RunFolder
    from coreg_ray.run.history import from_csv

    lines = from_csv(RunFolder.at(place).read(TABLE).decode())
    return Comparison(place, lines, came.conclusion, came.table)


def labels(run: Run | Place, output: Place | None = None, **wishes: Any) -> Labels:
    """The labels of a run's pool, written to `output` too where that is given; `wishes`: as of `Run.labels`.

    Raises:
        UserError: as `Run.labels`.
    """
    return Run(_place(run)).labels(None if output is None else str(output), **wishes)


def _given(output: Place, config: Settings, preset: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a tree, with `config` where it was given."""
    given = nested(_values(settings)) | {"output": str(output)}
    if isinstance(config, Config):
        if preset is not None:
            raise UserError(f"config is whole, so preset={preset} changes nothing; give one of them")
        return {**given, "config": config.settings()}
    given |= {} if preset is None else {"preset": preset}
    return given if config is None else {**given, "config": str(config)}


def _values(value: Any) -> Any:
    """Plain values, as a YAML file holds them: sections as dictionaries, paths as texts."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {name: _values(entry) for name, entry in value.items()}
    if isinstance(value, PathLike):
        return str(Path(value))
    if isinstance(value, np.generic):
        return value.item()
    return [_values(entry) for entry in value] if isinstance(value, list | tuple | set) else value


def _place(run: Run | Place) -> str:
    return run.folder if isinstance(run, Run) else str(run)


def _is_run(place: str) -> bool:
    from coreg_ray.run.folder import CONFIG
    from coreg_ray.run.storage import Folder

    try:
        return Folder.at(place).exists(CONFIG)
    except OSError:  # whoever claims the folder says why
        return False


def _listed(values: str | Iterable[Any]) -> str:
    return values if isinstance(values, str) else ",".join(str(value) for value in values)
