"""What a chat model's answer is a vote for: the class that it names, exactly, by another name, or closely."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coreg_ray.annotation.vocabulary import Vocabulary

NO_VOTE = -1
_CLOSE = 0.8  # difflib's ratio: a slip of a letter or two passes, another word does not
_AROUND = " \t\r\n.,:;!\"'`*"  # what models put around a name


def vote_of(answer: str, words: Vocabulary) -> int:
    """The class that an answer names, or NO_VOTE.

    An exact name wins, then one that differs in punctuation alone; then the only class of which a name occurs as whole
    words; then the closest name. What two classes share without their punctuation (C, C++) names neither.
    """
    names = words.index()
    for exact in (answer.strip().lower(), answer.lower().strip(_AROUND)):
        if exact in names:
            return names[exact]
    index: dict[str, int] = {}
    for name, number in names.items():
        if plain := _plain(name):
            index[plain] = number if index.get(plain, number) == number else NO_VOTE
    plain_answer = _plain(answer)
    if plain_answer in index:
        return index[plain_answer]
    named = _named(plain_answer, index)
    if len(named) == 1:
        return named.pop()
    close = difflib.get_close_matches(plain_answer, index, n=1, cutoff=_CLOSE) if not named else []
    return index[close[0]] if close else NO_VOTE


def _named(plain_answer: str, index: dict[str, int]) -> set[int]:
    """The classes of which a name occurs as whole words, not only inside a longer name ("dog" in "hot dog")."""
    text = f" {plain_answer} "
    places = [
        (match.start(), match.start() + len(name), number)
        for name, number in index.items()
        if f" {name} " in text
        for match in re.finditer(f"(?= {name} )", text)
    ]
    return {
        number
        for start, end, number in places
        if not any(first <= start and end <= last and last - first > end - start for first, last, _ in places)
    }


def _plain(text: str) -> str:
    """Lower case, no punctuation, single spaces, no article in front."""
    plain = " ".join(re.sub(r"[\W_]+", " ", text.lower()).split())
    return re.sub(r"^(a|an|the) ", "", plain)
