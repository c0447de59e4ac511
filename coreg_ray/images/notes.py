"""What a listing has to tell a person: files that are left out and why, names that were matched though typed otherwise.

Listings are taken in tasks whose logs nobody sees, so this travels as data to whoever logs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_TOOLS = {  # names that systems and tools give to what they put beside a person's files
    "@eadir",
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "_temporary",
    "_metadata",
    "_common_metadata",
    "_spark_metadata",
    "_delta_log",
    "_success",
}
_HEIC = "pip install 'coreg-ray[heic]' on every machine"
_RAW = "a camera's raw form: export it as JPEG"
_VECTOR = "no picture of pixels: export it as PNG"
_REMEDIES = {
    ".heic": _HEIC,
    ".heif": _HEIC,
    ".hif": _HEIC,
    ".avif": "needs a Pillow that reads AVIF, 11.3 or newer",
    ".jxl": "convert it to PNG or JPEG",
    ".svg": _VECTOR,
    ".pdf": _VECTOR,
    ".eps": _VECTOR,
    ".ps": _VECTOR,
    ".ai": _VECTOR,
    ".zip": "unpack it",
    ".rar": "unpack it",
    ".7z": "unpack it",
    ".gz": "unpack it",
    ".tar": "unpack it, or use kind webdataset",
    ".parquet": "use kind parquet",
    "": "give it an ending such as .jpg",
} | dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"), _RAW)
_SHOWN = 8


@dataclass(frozen=True)
class ListingNotes:
    """What one listing left out or took in another sense than it was written.

    Attributes:
        left_out: ending in lower case ("" for none) -> how many files are no images by their name.
        tool_made: entries that are hidden, or that systems and tools have made.
        dangling: links that lead nowhere.
        again: links to folders that are listed already.
        matched: names that differ from the class list's only in how they are typed -> those.
    """

    left_out: dict[str, int] = field(default_factory=dict)
    tool_made: int = 0
    dangling: int = 0
    again: int = 0
    matched: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A line for each kind of thing there is to tell; none where nothing is."""
        told = []
        if self.left_out:
            most = sorted(self.left_out.items(), key=lambda entry: (entry[0] not in _REMEDIES, -entry[1], entry[0]))
            shown = ", ".join(map(_kind, most[:_SHOWN]))
            rest = sum(count for _, count in most[_SHOWN:])
            told.append(
                f"{sum(self.left_out.values())} files do not have the name of an image and are left out: {shown}"
                + (f", {rest} of {len(most) - _SHOWN} other kinds" if rest else "")
            )
        if self.tool_made:
            told.append(f"{self.tool_made} hidden or tool-made files (.ipynb_checkpoints, Thumbs.db, ...) are left out")
        if self.dangling:
            told.append(f"{self.dangling} links lead nowhere and are left out; mount or copy what they should lead to")
        if self.again:
            told.append(f"{self.again} links lead to folders that are listed already, and are not followed")
        if self.matched:
            pairs = [f"{written!r} as {name!r}" for written, name in list(self.matched.items())[:_SHOWN]]
            told.append(f"names that are typed otherwise than in the class list are taken: {', '.join(pairs)}")
        return told


def is_tool_made(name: str) -> bool:
    """Whether a relative path is hidden, or made by a tool, in any of its parts."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part.lower() in _TOOLS for part in parts)


def has_remedy(name: str) -> bool:
    """Whether a file is no image by its name, but may well be meant as one."""
    return PurePosixPath(name).suffix.lower() in _REMEDIES


def by_ending(names: Iterable[str]) -> dict[str, int]:
    """How many files have each ending, in lower case; "" for those without one."""
    counts: dict[str, int] = {}
    for name in names:
        ending = PurePosixPath(name).suffix.lower()
        counts[ending] = counts.get(ending, 0) + 1
    return counts


def _kind(entry: tuple[str, int]) -> str:
    ending, count = entry
    remedy = _REMEDIES.get(ending)
    return f"{count} {ending or 'without an ending'}" + (f" ({remedy})" if remedy else "")
