"""What a whole checkpoint consists of: which files, of which sizes and contents, whoever wrote them.

`manifest.json`, format 2: {"format": 2, "files": {name: {"size": bytes, "digest": SHA-256 in hex}}}. Format 1 was
{name: size} of the files that the first process saw.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from coreg_ray.errors import UserError
from coreg_ray.metrics import NETWORKS
from coreg_ray.run.storage import Folder

FORMAT = 2
MANIFEST, STATE = "manifest.json", "state.json"

_SEEN_WITHIN_S = 20.0  # what one node writes to a shared disk, another sees
_DIGEST = 32  # bytes


@dataclass(frozen=True)
class Entry:
    """A file of a checkpoint: its bytes, and their SHA-256, which format 1 did not keep."""

    size: int
    digest: str | None

    @classmethod
    def of(cls, content: bytes) -> Entry:
        """Of a file with this content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def as_row(self) -> Tensor:
        """(33,) int64, the form in which processes tell each other."""
        return torch.tensor([self.size, *bytes.fromhex(self.digest or "")])

    @classmethod
    def from_row(cls, row: Tensor) -> Entry:
        """From (33,) int64."""
        size, *digest = row.tolist()
        return cls(size, bytes(digest).hex())


def network_file(network: str) -> str:
    """The file of a network (`a`, `b`)."""
    return f"network_{network}.safetensors"


def rows_file(network: str, replica: int) -> str:
    """The file of what a replica of a network remembers of its rows."""
    return f"rows_{network}_{replica}.safetensors"


def tensor_files(replicas: int) -> list[str]:
    """The files of all processes, in a fixed order."""
    return [network_file(name) for name in NETWORKS] + [
        rows_file(name, replica) for name in NETWORKS for replica in range(replicas)
    ]


def no_entries(replicas: int) -> Tensor:
    """(files, 33) int64 zeros: what a process that wrote none of `tensor_files` has to tell."""
    return torch.zeros(2 + 2 * replicas, 1 + _DIGEST, dtype=torch.int64)


def write_manifest(checkpoint: Folder, entries: Mapping[str, Entry]) -> None:
    """Say that these files make a whole checkpoint; comes last.

    Raises:
        UserError: what another process has written is not seen from here.
    """
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while unseen := [name for name, entry in entries.items() if checkpoint.size(name) != entry.size]:
        if time.monotonic() >= deadline:
            raise UserError(
                f"{checkpoint.path} lacks {', '.join(unseen)}, which other workers have written: their nodes see "
                "another disk at that path; choose an --output that all nodes share, or a URI"
            )
        time.sleep(0.2)
    files = {name: asdict(entry) for name, entry in entries.items()}
    checkpoint.write_json(MANIFEST, {"format": FORMAT, "files": files})


def fault(checkpoint: Folder, digests: bool = False) -> str | None:
    """Why a checkpoint is not whole, or None; `digests`: its files are read for that, not only looked at.

    Raises:
        UserError: a later version wrote it.
    """
    try:
        entries = _entries(checkpoint)
        replicas = int(checkpoint.read_json(STATE)["replicas"])
    except FileNotFoundError:
        return "it has no manifest"
    except UserError:  # which is a ValueError
        raise
    except (ValueError, KeyError, TypeError, AttributeError):  # JSON and Unicode errors are ValueErrors
        return "its manifest or state.json cannot be read"
    unlisted = [name for name in [*tensor_files(replicas), STATE] if name not in entries]
    if unlisted:
        return f"its manifest lacks {unlisted[0]}"
    for name, entry in entries.items():
        if checkpoint.size(name) != entry.size:
            return f"{name} has {checkpoint.size(name)} of {entry.size} bytes"
        if digests and entry.digest is not None and Entry.of(checkpoint.read(name)) != entry:
            return f"{name} has other bytes than were written"
    return None


def read_file(checkpoint: Folder, name: str) -> bytes:
    """A file of a whole checkpoint.

    Raises:
        UserError: it holds other bytes than were written.
    """
    content, entry = checkpoint.read(name), _entries(checkpoint)[name]
    if entry.digest is not None and Entry.of(content) != entry:
        raise UserError(
            f"{checkpoint.path}/{name} holds other bytes than were written; remove that checkpoint, and the one "
            "before it is taken"
        )
    return content


def _entries(checkpoint: Folder) -> dict[str, Entry]:
    content: dict[str, Any] = checkpoint.read_json(MANIFEST)
    if "format" not in content:
        return {name: Entry(int(size), None) for name, size in content.items()}
    if content["format"] > FORMAT:
        raise UserError(
            f"{checkpoint.path} is a checkpoint of format {content['format']}, this version reads up to {FORMAT}; "
            "upgrade coreg-ray"
        )
    return {name: Entry(int(entry["size"]), entry["digest"]) for name, entry in content["files"].items()}


def as_json(content: Any) -> bytes:
    """JSON as `Folder.write_json` writes it."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
