"""Labels as people and sets write them -> class numbers; names that differ only in how they are typed are the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from coreg_ray.errors import UserError

_LARGEST = 2**31 - 1  # a listing holds labels in 32 bits
_SHOWN_POINTS = 12
_TWINS = str.maketrans(  # letters of other alphabets that look like Latin ones
    "аесорхуіјѕԁһкмтвнгαορνικτυχγ",
    "aecopxyijsdhkmtbhraopviktuxy",
)


def plain_name(name: str) -> str:
    """A class's name without what typing changes: Unicode form, case, underscores for spaces, blanks around it."""
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return " ".join(composed.replace("_", " ").split())


def code_points(name: str) -> str:
    """The characters of a name by number, for names that look alike."""
    points = [f"U+{ord(letter):04X}" for letter in name]
    return " ".join(points[:_SHOWN_POINTS] + ["..."] * (len(points) > _SHOWN_POINTS))


def look_alike(name: str, others: Sequence[str]) -> str | None:
    """The first of the other names that a person could take for this one, and is not it."""
    shape = _shape(name)
    return next((other for other in others if other != name and shape and _shape(other) == shape), None)


def _shape(name: str) -> str:
    """What a name looks like: without accents and invisible characters, other alphabets' letters as Latin ones."""
    letters = unicodedata.normalize("NFKD", plain_name(name))
    seen = "".join(letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cf"))
    return seen.translate(_TWINS)


@dataclass(frozen=True)
class LabelReader:
    """Labels as a source writes them -> class numbers.

    Attributes:
        names: class name in lower case -> class number; empty: labels must be numbers; None: there are none.
        matched: names that were read although they differ from the class list's in how they are typed -> those.
    """

    names: dict[str, int] | None
    matched: dict[str, str] = field(default_factory=dict, compare=False)

    def __call__(self, label: object, image_id: str) -> int | None:
        """The class number of one label; None stays None.

        Raises:
            UserError: a label outside the class list, or one that is neither text nor a whole number.
        """
        if label is None or self.names is None:
            return None
        if isinstance(label, str):
            number = self.find(label)
        elif isinstance(label, int | float) and abs(label) <= _LARGEST and label == int(label):  # NaN is below nothing
            number = int(label)
        else:
            raise UserError(
                f"label {str(label)[:40]!r} of {image_id} is a {type(label).__name__}, neither text nor a whole number "
                f"from 0 to {_LARGEST}; write a class's name or number, or leave the cell empty (null)"
            )
        if number is None or number < 0 or (self._count and number >= self._count):
            raise UserError(self._unknown(label, image_id))
        return number

    def written(self, text: str, image_id: str) -> int | None:
        """The class number of a label in a text file: a class's name, which may be a number too, else its number.

        Raises UserError for a label outside the class list.
        """
        text = text.strip()
        is_number = text.removeprefix("-").isdecimal() and text.lower() not in (self.names or {})
        return self(int(text[:12]) if is_number else text, image_id)

    def find(self, name: str) -> int | None:
        """The number of a class by its name as somebody typed it; None: there is none, or more than one."""
        written = name.strip()
        number = (self.names or {}).get(written.lower())
        if number is not None:
            return number
        close = self._plain.get(plain_name(written), [])
        if len({self.names[other] for other in close if self.names}) != 1:
            return None
        self.matched[written] = close[0]
        return (self.names or {})[close[0]]

    @cached_property
    def _count(self) -> int:
        return len(set((self.names or {}).values()))

    @cached_property
    def _plain(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in self.names or {}:
            names.setdefault(plain_name(name), []).append(name)
        return names

    def _unknown(self, label: object, image_id: str) -> str:
        problem = f"label {label!r} of {image_id} is not among the {self._count} classes; correct it or add the class"
        twin = look_alike(label, list(self.names or {})) if isinstance(label, str) else None
        if not isinstance(label, str) or twin is None:
            return problem
        return f"{problem} (it only looks like {twin!r}: {code_points(label.strip())} is not {code_points(twin)})"


def own_numbers(known: Sequence[Sequence[str]], names: dict[str, int] | None, place: str) -> tuple[int, ...]:
    """What a set's own class numbers are in the user's list: by name, or by position where all have other names.

    Args:
        known: K tuples of the set's own names. names: as `LabelReader` takes them. place: what messages call the set.

    Raises:
        UserError: only some of the set's names are in the list.
    """
    reader = LabelReader(names)
    numbers = [next((number for name in entry if (number := reader.find(name)) is not None), None) for entry in known]
    unknown = [entry[0] for entry, number in zip(known, numbers, strict=True) if number is None]
    if 0 < len(unknown) < len(known):
        raise UserError(
            f"{place} has the classes {', '.join(entry[0] for entry in known[:5])}, ... of which {unknown[0]!r} and "
            f"{len(unknown) - 1} more are not among source.classes; add them, for example as further names "
            "(car|automobile), or rename all of them"
        )
    return tuple(range(len(known)) if unknown else (number for number in numbers if number is not None))
