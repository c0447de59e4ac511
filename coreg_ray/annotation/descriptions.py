"""What each class looks like, in words of its own: descriptions as language models write them, several a class.

A YAML file maps class names to lists of texts (alone, or under `descriptions`); `{}` in one is the class's name. The
first description of every class makes one voter, the second of every class the next, and a class with fewer begins
again; or all of a class are averaged into a single voter. Such a voter is called by a hash of its texts, which is in
the place of a prompt in cards and tables, so that other texts are other prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from coreg_ray.errors import UserError
from coreg_ray.ids import fingerprint
from coreg_ray.images.labels import plain_name
from coreg_ray.run.storage import Folder
from coreg_ray.run.strict_yaml import parsed_yaml

Names = tuple[tuple[str, ...], ...]
Texts = tuple[tuple[str, ...], ...]  # per class the texts of one voter, which are averaged
DescriptionVotes = Literal["each", "mean"]
_SHOWN = 5
_TITLES = {"each": "description ", "mean": "descriptions "}


def read_descriptions(path: str, names: Names) -> Texts:
    """The descriptions of each of K classes, none without.

    Raises:
        UserError: the file cannot be read or is no such YAML; it names something that is no class, a class twice or not
            at all; or a list is empty or holds what is no text.
    """
    try:
        folder, name = Folder.of_file(path.replace("\\", "/"))
        content = folder.read(name)
    except OSError as error:
        raise UserError(f"source.descriptions={path} cannot be read ({error}); give a YAML file") from error
    tree = parsed_yaml(content, path)
    if isinstance(tree, dict) and isinstance(tree.get("descriptions"), dict):
        tree = tree["descriptions"]
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{path} holds no descriptions; give a YAML mapping from class names to lists of texts")
    numbers = {plain_name(name): number for number, entry in enumerate(names) for name in entry}
    unknown = [key for key in tree if not isinstance(key, str) or plain_name(key) not in numbers]
    if unknown:
        raise UserError(
            f"{path} describes {_some(unknown)}, no class of {', '.join(entry[0] for entry in names[:_SHOWN])}"
            f"{', ...' if len(names) > _SHOWN else ''}; write the classes as source.classes names them"
        )
    described: dict[int, tuple[str, ...]] = {}
    for key, texts in tree.items():
        number = numbers[plain_name(key)]
        if number in described:
            raise UserError(f"{path} describes class {names[number][0]!r} twice, the second time as {key!r}; keep one")
        described[number] = _texts(texts, key, path, names[number][0])
    missing = [entry[0] for number, entry in enumerate(names) if number not in described]
    if missing:
        raise UserError(f"{path} has no description of {_some(missing)}; write one or more for every class")
    return tuple(described[number] for number in range(len(names)))


def _texts(texts: Any, key: str, path: str, shown: str) -> tuple[str, ...]:
    entries = [texts] if isinstance(texts, str) else texts
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: {key!r} has no description ({texts!r}); give a list of one text or more")
    for entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            raise UserError(f"{path}: {key!r} is described by {entry!r}, which is no text; write it in quotes")
    return tuple(" ".join(entry.replace("{}", shown).split()) for entry in entries)


def description_voters(descriptions: Texts, votes: DescriptionVotes) -> tuple[tuple[str, ...], tuple[Texts, ...]]:
    """Voters made of descriptions: what each is called, and per class the texts that it averages."""
    if votes == "mean":
        voters: list[Texts] = [descriptions]
    else:
        most = max(map(len, descriptions))
        voters = [tuple((texts[place % len(texts)],) for texts in descriptions) for place in range(most)]
    title = _TITLES[votes]
    called = [f"{number} " if votes == "each" else "" for number in range(1, len(voters) + 1)]
    marks = [fingerprint(texts)[:8] for texts in voters]
    return tuple(f"{title}{number}({mark})" for number, mark in zip(called, marks, strict=True)), tuple(voters)


def are_descriptions(prompts: Sequence[str], votes: DescriptionVotes) -> list[str]:
    """Those prompts of a card that are voters made of descriptions, in its order."""
    return [prompt for prompt in prompts if prompt.startswith(_TITLES[votes]) and "{}" not in prompt]


def _some(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
