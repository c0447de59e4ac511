"""The README and the pages of docs/ as data: fenced blocks, shell commands in them, and code inside of sentences."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^(\s*)```(\S*)\s*$")
_MARK = re.compile(r"<!-- (needs|test): (.+?) -->")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        place: page and line, for messages. language: after the fence, "" where none stands. needs: what it needs and a
            test has not, by the comment above. kind: what it is, by the comment above.
    """

    place: str
    language: str
    text: str
    needs: tuple[str, ...]
    kind: str


def blocks_of(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, those in lists included."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if not opened:
            number += 1
            continue
        end = next(at for at in range(number + 1, len(lines)) if lines[at].strip() == "```")
        above = next((line for line in reversed(lines[:number]) if line.strip()), "")
        marks = dict(_MARK.findall(above))
        needs = tuple(word.strip() for word in marks.get("needs", "").split(",") if word.strip())
        text = textwrap.dedent("\n".join(lines[number + 1 : end]))
        yield Block(f"{page.relative_to(ROOT)}:{number + 1}", opened[2], text, needs, marks.get("test", ""))
        number = end + 1


def inline_code(page: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every piece of code inside of a sentence or table."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        inside ^= bool(_FENCE.match(line))
        if not inside:
            for code in _INLINE.findall(line):
                yield f"{page.relative_to(ROOT)}:{number}", code.replace("\\|", "|")


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of every simple command of a shell block: comments, `&&` and variables in front are taken away."""
    for line in text.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", ";", "|", "&"):
                while command and re.match(r"[A-Za-z_]+=", command[0]):
                    command = command[1:]
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def of_ours(words: list[str]) -> tuple[str, list[str]] | None:
    """Name and arguments of a command of this project, submitted ones included; None: it is another program."""
    if words[:2] == ["ray", "job"] and "--" in words:
        words = words[words.index("--") + 1 :]
    if words[0] == "coreg-ray":
        return (words[1], words[2:]) if len(words) > 1 else ("--help", [])
    launcher = re.fullmatch(r"jobs/(\w+)\.py", words[1]) if words[0] == "python" and len(words) > 1 else None
    return (launcher[1], words[2:]) if launcher else None
