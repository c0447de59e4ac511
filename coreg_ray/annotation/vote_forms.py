"""The three forms in which people have votes, and how their lines become numbers.

Wide: a column `image_id` and one for each voter. List: `image_id` and `votes`, a list. Long: `image_id`, `voter` and
`vote`, one vote a line, as crowd platforms export. Beside votes, or instead of them, a column may hold the voters'
probabilities or logits, one flat list of P x K numbers a line, voter by voter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coreg_ray.annotation.vote_files import Columns, VoteFiles
from coreg_ray.errors import UserError
from coreg_ray.images.labels import LabelReader

NO_VOTE = -1  # as pure.candidates has it, which loads torch
IMAGE, VOTES, VOTER, VOTE = "image_id", "votes", "voter", "vote"
Scores = Literal["votes", "probabilities", "logits"]
Kind = Literal["wide", "list", "long", "scores"]

_SUM = 0.02  # that probabilities may miss 1 by, which float16 of a thousand classes does
_DISTINCT = 1000  # unknown names that are kept apart
_LONGEST = 40  # characters shown of one


@dataclass(frozen=True)
class Form:
    """How the votes are laid out.

    Attributes:
        kind: the form of the votes; `scores`: there are scores alone, and each voter's largest is its vote.
        voters: P names.
        scores: which column of numbers is read besides; votes: none.
    """

    kind: Kind
    voters: tuple[str, ...]
    scores: Scores = "votes"

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        votes = {"wide": list(self.voters), "list": [VOTES], "long": [VOTER, VOTE], "scores": []}[self.kind]
        return [IMAGE, *votes, *([] if self.scores == "votes" else [self.scores])]


def find_form(files: VoteFiles, voters: Sequence[str] | None, scores: Scores, classes: int) -> Form:
    """The form of the votes in some files, and the names of the voters.

    Args:
        voters: `annotator.voters`: which voters, or what they are called where the files do not name them.
        classes: K.

    Raises:
        UserError: no line, no column `image_id`, no voter, or a column that is asked for is missing.
    """
    first: Columns = {}
    names: dict[str, None] = {}
    seen: set[str] = set()
    lines = 0
    for name in files.names:
        for columns in files.lines(name):
            names |= dict.fromkeys(columns)
            here = len(next(iter(columns.values()), []))
            lines += here
            first = columns if here and not first else first
            seen.update(str(voter) for voter in columns.get(VOTER, []) if voter not in (None, ""))
            if not name.lower().endswith((".jsonl", ".ndjson")) and not {VOTER, VOTE} <= columns.keys() and first:
                break  # all that is asked of this file is in its head
    if not lines:
        raise UserError(f"annotator.votes: {files.shown} holds no line; give a file with votes")
    if IMAGE not in names:
        raise UserError(
            f"{files.shown} has the columns {_listed(names)}; it needs {IMAGE}, and votes in one of the forms"
        )
    if scores != "votes" and scores not in names:
        raise UserError(f"{files.shown} has no column {scores!r}, which annotator.scores={scores} reads; {_has(names)}")
    return _form(files.shown, names, first, sorted(seen), voters, scores, classes)


def _form(
    shown: str,
    names: Iterable[str],
    first: Columns,
    seen: list[str],
    voters: Sequence[str] | None,
    scores: Scores,
    classes: int,
) -> Form:
    given = tuple(voters or ())
    if len(set(given)) < len(given):
        raise UserError(f"annotator.voters={list(given)} names a voter twice; name each once")
    names = list(names)
    if {VOTER, VOTE} <= set(names):
        return Form("long", _chosen(given, seen, shown), scores)
    if VOTES in names:
        size = next((len(entry) for entry in first[VOTES] if isinstance(entry, (list, tuple))), None)
        if size is None:
            raise UserError(f"{shown}: {VOTES} holds no list but {first[VOTES][0]!r}; write one list of votes a line")
        return Form("list", _numbered(given, size, shown, f"{VOTES} holds {size}"), scores)
    if scores != "votes" and not (given and set(given) <= set(names)):
        size = next((len(entry) for entry in first[scores] if isinstance(entry, (list, tuple))), 0)
        if not size or size % classes:
            raise UserError(_not_a_whole_number(shown, scores, size, classes))
        return Form(
            "scores", _numbered(given, size // classes, shown, f"{scores} hold those of {size // classes}"), scores
        )
    others = [name for name in names if name not in (IMAGE, "probabilities", "logits")]
    chosen = _chosen(given, others, shown)
    return Form("wide", chosen, scores)


def _chosen(given: tuple[str, ...], there: Sequence[str], shown: str) -> tuple[str, ...]:
    missing = [name for name in given if name not in there]
    if missing:
        raise UserError(f"annotator.voters: {shown} has no voter {missing[0]!r}; it has {_listed(there)}")
    if not given and not there:
        raise UserError(f"{shown} names no voter; add a column of votes beside {IMAGE}, or say in {VOTER!r} who voted")
    return given or tuple(there)


def _numbered(given: tuple[str, ...], size: int, shown: str, what: str) -> tuple[str, ...]:
    if not size:
        raise UserError(f"{shown} names no voter; its first list is empty")
    if given and len(given) != size:
        raise UserError(f"annotator.voters names {len(given)} voters, but {shown}: {what}; name as many")
    return given or tuple(map(str, range(size)))


def _has(names: Iterable[str]) -> str:
    return f"it has the columns {_listed(names)}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(str, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _not_a_whole_number(shown: str, scores: str, size: int, classes: int) -> str:
    voters = max(1, round(size / (classes + 1))) if size % (classes + 1) == 0 else max(1, size // classes)
    return (
        f"{shown}: {scores} holds {size} numbers a line, which is no multiple of the {classes} classes; write "
        f"{voters * classes} for {voters} voter{'s' * (voters > 1)}, without a column for anything else"
    )


@dataclass
class Strange:
    """Votes that are for no class, by what they say and by voter; counts of blocks add up."""

    names: Counter[str] = field(default_factory=Counter)
    voters: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)  # votes of each voter that are for a class
    matched: dict[str, str] = field(default_factory=dict)  # names read although they are typed otherwise

    def __add__(self, other: Strange) -> Strange:
        names = Counter(dict((self.names + other.names).most_common(_DISTINCT)))
        known, voters = self.known + other.known, self.voters + other.voters
        return Strange(names, voters, known, self.matched | other.matched)

    def refuse(self, shown: str, kind: Kind) -> None:
        """Raises UserError where there are any, listing them with counts."""
        if not self.voters:
            return
        total = sum(self.voters.values())
        listed = ", ".join(f"{name!r} ({count})" for name, count in self.names.most_common(8))
        more = f" and {len(self.names) - 8} more names" if len(self.names) > 8 else ""
        text = [voter for voter in self.voters if not self.known[voter]] if kind == "wide" else []
        if text:
            raise UserError(
                f"{shown}: nothing in the column {text[0]!r} is a class ({listed}{more}), so it is no voter; name the "
                "voters' columns with annotator.voters"
            )
        raise UserError(
            f"{shown}: {total} votes are for no class of source.classes: {listed}{more}; correct them, add them as "
            "further names of a class (car|automobile), or leave the cell empty where there is no vote"
        )


class VoteReader:
    """Votes as people write them -> class numbers; what is no class is counted, not raised."""

    def __init__(self, names: dict[str, int]) -> None:
        """`names`: every name of a class in lower case to its number."""
        self._reader, self._classes = LabelReader(names), len(set(names.values()))
        self._names = names
        self._known: dict[str | int, int] = {}
        self.strange = Strange()

    def numbers(self, values: Sequence[Any], voter: str) -> NDArray[np.int32]:
        """(n,) class numbers of a voter's votes; -1 for null, empty, NaN and -1."""
        known = self._known
        votes = np.fromiter(
            (
                known[value] if value.__class__ in (str, int) and value in known else self._look(value, voter)
                for value in values
            ),
            np.int32,
            len(values),
        )
        self.strange.known[voter] += int((votes != NO_VOTE).sum())
        return votes

    def _look(self, value: Any, voter: str) -> int:
        if value is None or (isinstance(value, float) and value != value):
            return NO_VOTE
        number = self._number(value)
        if number is None:
            text = str(value)[:_LONGEST]
            if text in self.strange.names or len(self.strange.names) < _DISTINCT:
                self.strange.names[text] += 1
            self.strange.voters[voter] += 1
            return NO_VOTE
        if value.__class__ in (str, int):
            self._known[value] = number
        return number

    def _number(self, value: Any) -> int | None:
        """The class number of a vote, -1 where it is none, None where it is no class."""
        if isinstance(value, str):
            text = value.strip()
            if not text:
                return NO_VOTE
            listed = self._reader.find(text)
            self.strange.matched.update(self._reader.matched)
            if listed is not None or not text.removeprefix("-").isdecimal():
                return listed
            value = int(text[:12])
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            return None
        number = int(value)
        return number if NO_VOTE <= number < self._classes else None


def read_scores(
    entries: Sequence[Any], ids: Sequence[str], form: Form, classes: int, shown: str
) -> NDArray[np.float32]:
    """The voters' probabilities: n flat lists of P x K numbers -> (n, P, K), NaN where a voter gave none.

    Raises:
        UserError: another number of numbers, probabilities that are negative or do not sum to one, some that are NaN.
    """
    voters = len(form.voters)
    size = voters * classes
    flat = np.full((len(entries), size), np.nan, dtype=np.float64)
    for place, entry in enumerate(entries):
        if entry is None:
            continue
        if not isinstance(entry, (list, tuple)) or len(entry) != size:
            numbers = len(entry) if isinstance(entry, (list, tuple)) else 1
            if numbers % classes:
                raise UserError(f"{_not_a_whole_number(shown, form.scores, numbers, classes)} (image {ids[place]!r})")
            raise UserError(
                f"{shown}: {form.scores} of image {ids[place]!r} holds {numbers} numbers; {voters} voters and "
                f"{classes} classes need {size}"
            )
        flat[place] = [np.nan if number is None else number for number in entry]
    scores = flat.reshape(len(entries), voters, classes)
    none: NDArray[np.bool_] = np.asarray(np.isnan(scores).all(axis=2))
    if form.scores == "logits":
        wrong = ~none & ~(np.isfinite(scores).any(axis=2) & (scores < np.inf).all(axis=2))
        what = "are not finite"
    else:
        with np.errstate(invalid="ignore"):
            sums = scores.sum(axis=2)
            wrong = ~none & ~((scores >= 0).all(axis=2) & (np.abs(sums - 1) <= _SUM))
        what = f"are no {classes} shares that sum to one"
    if wrong.any():
        image, voter = np.argwhere(wrong)[0].tolist()
        added = "" if form.scores == "logits" else f" (their sum is {scores[image, voter].sum():.4g})"
        raise UserError(
            f"{shown}: the {form.scores} of voter {form.voters[voter]!r} for image {ids[image]!r} {what}{added}; "
            "correct them, or set annotator.scores to what the column holds (probabilities, logits), or to votes"
        )
    if form.scores == "logits":
        scores = np.where(none[:, :, None], 0.0, scores)
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
    with np.errstate(invalid="ignore"):
        scores = scores / scores.sum(axis=2, keepdims=True)
    return np.where(none[:, :, None], np.nan, scores).astype(np.float32)
