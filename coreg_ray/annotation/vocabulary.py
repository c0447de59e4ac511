"""Class names and prompts: what the annotator is asked about.

A class may have several names ("automobile", "car"); the first is the one that is shown. A text file holds one class
a line with names separated by `|`, and lines that begin with `#` are remarks; a YAML file holds a list (under
`classes`, or alone) whose entries are such lines or lists of names. Prompts likewise, one a line or a YAML list under
`templates`; `{}` stands for the class name.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from coreg_ray.annotation.descriptions import (
    DescriptionVotes,
    Texts,
    are_descriptions,
    description_voters,
    read_descriptions,
)
from coreg_ray.errors import UserError
from coreg_ray.images.labels import code_points, plain_name
from coreg_ray.run.storage import Folder
from coreg_ray.run.strict_yaml import parsed_yaml

log = logging.getLogger(__name__)
_HEADER = {"class", "classes", "class_name", "class_id", "label", "labels", "name", "names", "category", "id", "index"}
PAPER = "annotation/prompts.yaml"  # the paper's prompts, and questions for chat models

Names = tuple[tuple[str, ...], ...]  # per class its names, the first one shown


@dataclass(frozen=True)
class Vocabulary:
    """The K classes and P prompts of an annotation.

    Attributes:
        names: K tuples of names.
        prompts: P templates with `{}`, but for the last ones where there are descriptions: these are called by a hash.
        descriptions: for each of those last prompts and each class the texts that it averages.
    """

    names: Names
    prompts: tuple[str, ...]
    descriptions: tuple[Texts, ...] = ()

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts that are templates with `{}`."""
        return self.prompts[: len(self.prompts) - len(self.descriptions)]

    @property
    def shown(self) -> list[str]:
        """(K,) the first name of each class."""
        return [names[0] for names in self.names]

    def index(self) -> dict[str, int]:
        """Every name, in lower case, to its class number."""
        return {name.lower(): number for number, names in enumerate(self.names) for name in names}


def vocabulary(
    kind: str,
    classes: str | Sequence[str] | None,
    prompts: str | Sequence[str] | None,
    known: Sequence[str] = (),
    descriptions: str | None = None,
    votes: DescriptionVotes = "each",
) -> Vocabulary:
    """The vocabulary of a source.

    Args:
        kind: the source's kind; the embedded digits bring both parts along.
        classes: `source.classes`: a file, a list, or None where the source knows its classes.
        prompts: `source.prompts`: a file, a list, or None for the packaged templates.
        known: class names that the source itself brings along.
        descriptions, votes: `source.descriptions`, a file or None, and `source.description_votes`.

    Raises:
        UserError: no class, fewer than two, a name that is no text, empty or repeated, a prompt without or with a
            broken placeholder, descriptions that are none or of other classes.
    """
    packaged = _packaged("embedded/digits.yaml" if kind == "digits" else PAPER)
    class_names: Any = _listed(classes, "classes") if classes is not None else list(known) or packaged.get("classes")
    if not class_names:
        raise UserError(f"source.kind={kind} does not name its classes; give source.classes, a file or a list")
    words = Vocabulary(_names(class_names), templates(prompts if prompts is not None else packaged["templates"]))
    if descriptions is None:
        return words
    called, texts = description_voters(read_descriptions(descriptions, words.names), votes)
    return Vocabulary(words.names, words.prompts + called, texts)


def questions(words: Vocabulary, given: str | Sequence[str] | None) -> Vocabulary:
    """The same classes with questions for a chat model: a file, a list, or None for the packaged ones.

    Raises:
        UserError: no question, or one without the place where the class names go.
    """
    asked = _listed(given, "questions") if given is not None else _packaged(PAPER)["questions"]
    return Vocabulary(words.names, _templates(asked))


def _packaged(name: str) -> dict[str, Any]:
    return yaml.safe_load(resources.files("coreg_ray").joinpath(name).read_text(encoding="utf-8"))


def _listed(given: str | Sequence[str], key: str) -> Sequence[Any]:
    if not isinstance(given, str):
        if len(given) != 1 or not isinstance(given[0], str) or "{}" in given[0]:
            return given
        given = given[0]  # command lines make a list of one file name
    try:
        folder, name = Folder.of_file(given.replace("\\", "/"))
        text = folder.read(name).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key} file {given} cannot be read as text ({error}); give a file or a list") from error
    if not name.lower().endswith((".yaml", ".yml")):
        return _lines(text, given, key)
    content = parsed_yaml(text.encode(), given)
    content = content.get(key) if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise UserError(f"{given} holds no list of {key}; give a YAML list, alone or under `{key}`")
    return content


def _lines(text: str, given: str, key: str) -> list[str]:
    """The entries of a text file, one a line. Raises UserError: it begins like a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith("#")]
    if len(kept) < len(lines):
        log.info("%d lines of %s that begin with # are taken for remarks", len(lines) - len(kept), given)
    first = kept[0] if kept else ""
    cells = {cell.strip(" \"'").lower() for cell in re.split(r"[,;\t]", first)} - {""}
    if cells and cells <= _HEADER:
        raise UserError(
            f"{given} begins with {first!r} like a table; a list of {key} holds one a line and no header: remove "
            "it and all columns but the names, or write the list as YAML where that is an entry"
        )
    return kept


def _names(class_names: Sequence[Any]) -> Names:
    for number, entry in enumerate(class_names):
        for name in entry if isinstance(entry, (list, tuple)) else [entry]:
            if not isinstance(name, str):  # YAML reads yes, no, on, off, null, numbers and dates as values
                raise UserError(f"class {number} is named {name!r}, which is no text; write its name in quotes")
    entries = [entry.split("|") if isinstance(entry, str) else entry for entry in class_names]
    names = tuple(
        tuple(name.strip() for name in (entry if isinstance(entry, (list, tuple)) else [entry])) for entry in entries
    )
    if len(names) < 2:
        raise UserError(f"{len(names)} class given; name two or more")
    for number, entry in enumerate(names):
        if not entry or not all(entry):
            raise UserError(f"class {number} has an empty name; give every class a name of one character or more")
    repeated = [name for name, times in Counter(name.lower() for entry in names for name in entry).items() if times > 1]
    if repeated:
        raise UserError(f"class names {', '.join(map(repr, repeated[:5]))} repeat; name each class once")
    _refuse_twins(names)
    return names


def _refuse_twins(names: Names) -> None:
    """Raises UserError where two classes have names that are one but for how they are typed."""
    typed: dict[str, tuple[int, str]] = {}
    for number, entry in enumerate(names):
        for name in entry:
            other, twin = typed.setdefault(plain_name(name), (number, name))
            if other != number:
                raise UserError(
                    f"classes {other} and {number}, {twin!r} and {name!r}, have the same name but for Unicode form, "
                    f"case or underscores ({code_points(twin)} and {code_points(name)}); name each class once"
                )


def templates(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """The prompts of `source.prompts`, a file or a list. Raises UserError as `vocabulary` does."""
    return _templates(_listed(prompts, "templates"))


def prompts_that_count(
    asked: Sequence[str],
    prompts: str | Sequence[str] | None,
    descriptions: str | None,
    votes: DescriptionVotes,
) -> tuple[str, ...]:
    """Of an annotator's prompts those that the settings of `source` want: all, the named ones, and its descriptions.

    A named prompt that was not asked is among them, too.

    Raises:
        UserError: descriptions are wanted, and none were asked, or others; as `templates`.
    """
    if descriptions is None:
        return tuple(asked) if prompts is None else templates(prompts)
    described = are_descriptions(asked, votes)
    if not described:
        raise UserError(
            f"source.descriptions={descriptions}: the annotator was not asked with source.description_votes={votes}; "
            "annotate with them first (the images are not encoded again), or leave them out"
        )
    named = tuple(prompt for prompt in asked if "{}" in prompt) if prompts is None else templates(prompts)
    return (*named, *described)


def _templates(prompts: Sequence[Any]) -> tuple[str, ...]:
    templates = tuple(str(prompt).strip() for prompt in prompts)
    if not templates:
        raise UserError("no prompt given; write one or more, such as 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1 or template.replace("{}", "").count("{"):
            raise UserError(f"prompt {template!r} needs {{}} exactly once, where the class name goes")
    repeated = [template for template, times in Counter(templates).items() if times > 1]
    if repeated:
        raise UserError(f"prompt {repeated[0]!r} repeats; give each prompt once")
    return templates
