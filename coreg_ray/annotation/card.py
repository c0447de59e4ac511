"""What an annotator is and was asked: the manifest of its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from coreg_ray.ids import fingerprint

MANIFEST = "manifest.json"
TEXT = "text.safetensors"


@dataclass(frozen=True)
class Card:
    """What an annotator is and was asked; its manifest.

    Attributes:
        kind: clip, chat or votes.
        model: name and weights as the user gave them (votes: where they lie).
        encoder: fingerprint of all that an embedding depends on (chat: of model and question settings; votes: of what
            the files say and how it is read).
        prompts, names: the vocabulary; prompts of votes are the voters' names.
        preprocess: how images are resized for it (fields of `images.decode.Fit`).
        dim: D, or 0 where nothing is embedded.
        details: scale, bias and the like.
    """

    kind: str
    model: str
    encoder: str
    prompts: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    preprocess: dict[str, Any]
    dim: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The annotator's folder: another model or other weights get another one."""
        return f"{self.kind}-{self.encoder[:8]}"

    @property
    def text(self) -> str:
        """8 hex digits over prompts and class names."""
        return fingerprint(self.prompts, self.names)[:8]

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> Card:
        """The card that `manifest` was made of."""
        known = {entry.name: manifest[entry.name] for entry in fields(cls)}
        prompts, names = tuple(known["prompts"]), tuple(tuple(entry) for entry in known["names"])
        return cls(**{**known, "prompts": prompts, "names": names})

    def manifest(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "class_names": [names[0] for names in self.names],
            "fingerprint": fingerprint(self.kind, self.encoder, self.prompts, self.names),
        }
