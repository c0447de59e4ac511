"""Which files of `model/` this package wrote: those it replaces and removes, and no other.

`model.json` lists them under `files`, each with the SHA-256 of what was written (of `model.json` itself without that
list). A file that a person has changed since is theirs, as is every file and folder that is not listed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

CARD, README, README_BESIDE = "model.json", "README.md", "README-new.md"

# What versions without that list wrote; of README.md nobody knows whether it was edited.
_UNLISTED = ("model.safetensors", "model.onnx", "model.pt2", CARD)


def replace_files(folder: Folder, files: Mapping[str, bytes], card: dict[str, Any]) -> None:
    """Put an artifact into its folder: all its files, then `model.json`; those of an earlier one go.

    What is a person's stays: an edited README.md at its place, with the fresh one beside it; any other under a name
    that ends in `-kept`.
    """
    known = listed(folder)
    written = {}
    for name, content in files.items():
        place = name
        if name == README and not _may_replace(folder, name, content, known):
            place = README_BESIDE
            log.info("%s/%s has been edited and stays; the fresh one is %s", folder.path, name, place)
        _put(folder, place, content, known)
        written[place] = _digest(content)
    for name in sorted(known.keys() - written.keys() - {CARD}):
        if _is_own(folder, name, known):
            folder.delete(name)
    _put(folder, CARD, _with_digests(card, written), known)


def _put(folder: Folder, name: str, content: bytes, known: Mapping[str, str | None]) -> None:
    if not _may_replace(folder, name, content, known):
        kept = _free_name(folder, name)
        folder.write(kept, folder.read(name))
        log.warning("%s/%s is not as it was exported; it stays as %s", folder.path, name, kept)
    folder.write(name, content)


def _may_replace(folder: Folder, name: str, content: bytes, known: Mapping[str, str | None]) -> bool:
    return not folder.exists(name) or _is_own(folder, name, known) or folder.read(name) == content


def _is_own(folder: Folder, name: str, known: Mapping[str, str | None]) -> bool:
    """Whether a file is there, and is what was written."""
    if name not in known or folder.size(name) < 0:
        return False
    if known[name] is None:
        return True
    digest = _digest_of_card(folder.read_json(name)) if name == CARD else _digest(folder.read(name))
    return digest == known[name]


def described(card: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """`model.json` of an artifact that consists of it and these files, by name."""
    plain = {name: value for name, value in card.items() if name != "files"}
    return _with_digests(plain, {name: _digest(content) for name, content in files.items()})


def _with_digests(card: Mapping[str, Any], written: Mapping[str, str]) -> bytes:
    files = {**written, CARD: _digest_of_card(card)}
    return (json.dumps({**card, "files": files}, indent=1, sort_keys=True) + "\n").encode()


def listed(folder: Folder) -> dict[str, str | None]:
    """The files that the artifact in a folder consists of, with their digests; None: not known."""
    try:
        card = folder.read_json(CARD)
        files = card.get("files", dict.fromkeys(_UNLISTED) if isinstance(card.get("format"), int) else {})
        return {str(name): digest if digest is None else str(digest) for name, digest in files.items()}
    except (OSError, ValueError, AttributeError):  # none, or a person's
        return {}


def _free_name(folder: Folder, name: str) -> str:
    path, number = PurePosixPath(name), 1
    kept = f"{path.stem}-kept{path.suffix}"
    while folder.exists(kept):
        number += 1
        kept = f"{path.stem}-kept-{number}{path.suffix}"
    return kept


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of_card(card: Mapping[str, Any]) -> str:
    return _digest(
        json.dumps({name: value for name, value in card.items() if name != "files"}, sort_keys=True).encode()
    )
