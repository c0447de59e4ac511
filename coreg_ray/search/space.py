"""What a search tries: a YAML file over keys of the configuration, checked before anything starts.

    method.learning_rate: {loguniform: [0.005, 0.1]}    a number, its logarithm spread evenly
    method.lambda_u: {uniform: [0, 2]}                  a number
    method.ramp_epochs: {randint: [0, 9]}               a whole number from 0 to 8; lograndint: spread as loguniform
    method.batch_size: {choice: [32, 64, 128]}          one of them
    student.width: {grid: [8, 16]}                      each of them, num_samples times

Keys are dotted or nested, as in `--config`. The names and their meaning are Ray Tune's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool
from coreg_ray.config.sections import decides
from coreg_ray.config.texts import explain, fields_of, leaves, unknown_key
from coreg_ray.errors import UserError

RANGES = ("uniform", "loguniform", "randint", "lograndint")
LISTS = ("choice", "grid")
LOGARITHMIC = ("loguniform", "lograndint")
WHOLE = ("randint", "lograndint")
MOST_RESOLUTIONS = 8  # the rows of each are written before the search starts

_ELSEWHERE = "decides where and how trials run, not what they are; give it on the command line"
_ONCE = "needs another annotation, which is made once for all trials; run one search for each"
_FIXED = {  # what no search varies, and why
    **{name: _ELSEWHERE for name, field in Config.model_fields.items() if decides(field) == "nothing"},
    **dict.fromkeys(("annotator", "further_annotators", "source"), _ONCE),
    "test": "only scores, so trials could not be compared; give it on the command line",
    "source.holdout": "decides which images the criteria look at, so trials could not be compared; fix it",
}
_FREE = ("source.prompts",)  # votes on some of the prompts come from the stored embeddings


@dataclass(frozen=True)
class Dimension:
    """One key and what is tried for it.

    Attributes:
        key: dotted. kind: of RANGES or LISTS.
        values: all that are listed, or the two ends; of whole numbers the upper end is left out.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        """Whether its values can be drawn along an axis."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def probes(self) -> list[Any]:
        """Values that stand for all of them: what the configuration takes of these it takes of every one."""
        if self.kind in LISTS:
            return list(self.values)
        low, high = self.values
        return [low, high - 1] if self.kind in WHOLE else [low, low + (high - low) * 0.381966, high]

    def inside(self, value: Any) -> Any:
        """`value`, moved into the range."""
        if self.kind in LISTS:
            return value
        low, high = self.values
        return min(max(value, low), high - 1 if self.kind in WHOLE else high)


@dataclass(frozen=True)
class Space:
    """All dimensions of a search.

    Attributes:
        dimensions: in the order of the file.
    """

    dimensions: tuple[Dimension, ...]

    @property
    def keys(self) -> list[str]:
        return [dimension.key for dimension in self.dimensions]

    @property
    def grid_points(self) -> int:
        """Trials that one sample makes: the product of all grids."""
        return math.prod(len(dimension.values) for dimension in self.dimensions if dimension.kind == "grid")

    def values_of(self, key: str) -> tuple[Any, ...] | None:
        """What is listed for a key; None where it is not searched over."""
        return next((dimension.values for dimension in self.dimensions if dimension.key == key), None)

    def probes_of(self, key: str) -> list[Any]:
        """`Dimension.probes` of a key; empty where it is not searched over."""
        return next((dimension.probes() for dimension in self.dimensions if dimension.key == key), [])

    def described(self) -> dict[str, Any]:
        """As in the file, dotted."""
        return {dimension.key: {dimension.kind: list(dimension.values)} for dimension in self.dimensions}


def read_space(path: str | None, base: Config) -> Space:
    """The search space of a YAML file, None for the packaged one; checked against the configuration it varies.

    Raises:
        UserError: no YAML, an unknown key (valid ones are listed) or one that no search varies, an empty range, a value
            that the configuration refuses.
    """
    name, text = _text(path)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{name} holds no key; write lines like `method.learning_rate: {{loguniform: [0.005, 0.1]}}`")
    space = Space(tuple(_dimension(key, given) for key, given in _listed(content)))
    twice = {key for key in space.keys if space.keys.count(key) > 1}
    if twice:
        raise UserError(f"{name} names {', '.join(sorted(twice))} more than once; keep one of them")
    for dimension in space.dimensions:
        _check_values(dimension, space, base)
    return space


def encoded(value: Any) -> Any:
    """A value as searchers and loggers take it: lists and mappings as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def trial_settings(base: Config, space: Space, values: Mapping[str, Any], images: int) -> Config:
    """The configuration of one trial: `base` with `values` (as `encoded`) by dotted key, the rest fitted to the pool.

    Args:
        images: of the pool.

    Raises:
        UserError: the values contradict each other.
    """
    tree = base.settings()
    for dimension in space.dimensions:
        value = values[dimension.key]
        if value in [encoded(listed) for listed in dimension.values if isinstance(listed, list | dict)]:
            value = json.loads(value)
        _put(tree, dimension.key, value)
    try:
        return fitted_to_pool(Config.model_validate(tree), images)
    except ValidationError as error:
        raise UserError("\n".join(explain(problem, Config) for problem in error.errors())) from error


def _text(path: str | None) -> tuple[str, str]:
    if path is None:
        return "the packaged space", resources.files(__package__).joinpath("space.yaml").read_text(encoding="utf-8")
    try:
        return f"--space {path}", Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--space {path} cannot be read ({reason}); give an existing YAML file") from error


def _listed(tree: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and what is given for them; a mapping below a section's name is that section."""
    sections = {key.rsplit(".", depth)[0] for key, _ in fields_of(Config) for depth in range(1, key.count(".") + 1)}
    return leaves(tree, descends=sections.__contains__)


def _dimension(key: str, given: Any) -> Dimension:
    if key not in dict(fields_of(Config)):
        raise UserError(unknown_key(key, Config))
    for fixed in (key, key.split(".")[0]):
        if fixed in _FIXED and key not in _FREE:
            raise UserError(f"{key} cannot be searched over: it {_FIXED[fixed]}")
    kinds = ", ".join((*RANGES, *LISTS))
    if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in (*RANGES, *LISTS):
        raise UserError(f"{key}: {given!r} is no distribution; write {{KIND: [...]}} with one of {kinds}")
    ((kind, values),) = given.items()
    if not isinstance(values, list) or not values:
        raise UserError(f"{key}: {kind} needs a list that is not empty, not {values!r}")
    if kind in RANGES:
        _check_range(key, kind, values)
    takes = dict(fields_of(Config))[key]
    if kind in ("uniform", "loguniform") and int in (takes, *get_args(takes)):
        whole = {"uniform": "randint", "loguniform": "lograndint"}[kind]
        raise UserError(f"{key}: {kind} {values} gives fractions, and {key} takes whole numbers; use {whole}")
    if key == "student.resolution" and (kind in RANGES or len(values) > MOST_RESOLUTIONS):
        raise UserError(
            f"{key}: {kind} {values}: the images are stored once at every resolution; give a choice or grid of at most "
            f"{MOST_RESOLUTIONS}"
        )
    return Dimension(key, kind, tuple(values))


def _check_range(key: str, kind: str, values: list[Any]) -> None:
    numbers = [_number(value) for value in values]
    if len(numbers) != 2 or None in numbers:
        raise UserError(f"{key}: {kind} needs two numbers, the lower and the upper end, not {values}")
    low, high = values[:] = numbers
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{key}: {kind} {values} is not finite; give two numbers")
    if kind in WHOLE and not (float(low).is_integer() and float(high).is_integer()):
        raise UserError(f"{key}: {kind} {values} needs whole numbers")
    if kind in WHOLE:
        low, high = values[:] = int(low), int(high)
    if low >= high:
        rest = "; the upper end is left out" if kind in WHOLE else ""
        raise UserError(f"{key}: {kind} {values} is empty{rest}; the first number must be below the second")
    if kind in LOGARITHMIC and low <= 0:
        raise UserError(f"{key}: {kind} {values} needs ends above 0; use {kind.removeprefix('log')}")


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text, people mean a number; anything else than a number is None."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _check_values(dimension: Dimension, space: Space, base: Config) -> None:
    """Every value must be one that the configuration takes, alone or together with one value of another dimension."""
    others = [other for other in space.dimensions if other.key != dimension.key]
    for value in dimension.probes():
        refusal = _refusal(base, {dimension.key: value})
        if refusal is None:
            continue
        partners = ({other.key: probe} for other in others for probe in other.probes())
        if all(_refusal(base, {dimension.key: value, **partner}) for partner in partners):
            raise UserError(f"{dimension.key}: {dimension.kind} {list(dimension.values)}: {refusal}")


def _refusal(base: Config, values: dict[str, Any]) -> str | None:
    """What the configuration says against `values`, None if it takes them."""
    tree = base.settings()
    for key, value in values.items():
        _put(tree, key, value)
    try:
        Config.model_validate(tree)
    except ValidationError as error:
        return "; ".join(explain(problem, Config) for problem in error.errors())
    return None


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree[section]
    tree[name] = value
