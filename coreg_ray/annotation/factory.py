"""Which annotator a configuration asks for: its card, and the thing itself."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreg_ray.annotation.card import Card
from coreg_ray.annotation.vocabulary import Vocabulary, questions
from coreg_ray.ids import fingerprint
from coreg_ray.images.decode import Fit

if TYPE_CHECKING:
    from coreg_ray.annotation.chat import ChatAnnotator
    from coreg_ray.annotation.clip import TextTable
    from coreg_ray.config import AnnotatorConfig
    from coreg_ray.run.storage import Folder

_GREY = 127


def vocabulary_for(config: AnnotatorConfig, words: Vocabulary) -> Vocabulary:
    """What this annotator is asked: prompts for CLIP, questions for a chat model, nothing where votes are there."""
    return questions(words, config.questions) if config.kind == "chat" else words


def identity(config: AnnotatorConfig) -> str:
    """What names the annotator without loading it; a checkpoint given as a file is known by its content.

    Votes in files are known by theirs (`votes.describe`), which have to be read.
    """
    if config.kind == "chat":
        return f"chat {config.model} {config.image_side}"
    named = [config.model, config.pretrained or ""]
    if config.model == "embedded":
        from coreg_ray import embedded

        named = [str(embedded.model_config_path()), str(embedded.weights_path())]
    return " ".join(["clip", *(_content(name) for name in named)])


def _content(name: str) -> str:
    if not Path(name).is_file():
        return name
    digest = blake2b(digest_size=16)
    with Path(name).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def describe(config: AnnotatorConfig, words: Vocabulary, background: list[str]) -> tuple[Card, TextTable | None]:
    """The annotator's card and, for CLIP, the text embeddings; loads the model. `words` as `vocabulary_for` gives them.

    Raises:
        UserError: the model cannot be found or loaded, or the votes are none.
    """
    if config.kind == "votes":
        from coreg_ray.annotation import votes

        return votes.describe(config.votes or "", config.voters, config.scores, words), None
    given = identity(config)
    if config.kind == "chat":
        fit = Fit(config.image_side, config.image_side, "longest", fill=_GREY)
        encoder = fingerprint(given, words.prompts, words.names)  # the names are part of the question
        return Card(
            "chat", config.model, encoder, words.prompts, words.names, asdict(fit), 0, {"identity": given}
        ), None
    from coreg_ray.annotation.clip import embed_text, load_model

    model = load_model(config.model, config.pretrained)
    text = embed_text(model, words, background)
    details: dict[str, Any] = {"identity": given, "scale": text.scale, "bias": text.bias, "background": background}
    shown = f"{config.model} {config.pretrained or ''}".strip()
    size = text.embeddings.shape[2]
    return Card("clip", shown, model.fingerprint, words.prompts, words.names, asdict(model.fit), size, details), text


def build(config: AnnotatorConfig, card: Card, text: TextTable | None, threads: int) -> Any:
    """A CLIP annotator itself: a callable batch -> batch.

    Raises:
        RuntimeError: the weights found here are not those of the card.
    """
    import torch

    from coreg_ray.annotation.clip import ClipAnnotator, load_model

    assert text is not None
    model = load_model(config.model, config.pretrained)
    if model.fingerprint != card.encoder:
        raise RuntimeError(
            f"{card.model} has other weights here ({model.fingerprint}) than at the start ({card.encoder})"
        )
    device = "cuda" if config.num_gpus else "cpu"
    if device == "cpu":
        torch.set_num_threads(threads)
    return ClipAnnotator(model, text, batch_size=config.batch_size, device=device, precision=config.precision)


def build_chat(config: AnnotatorConfig, card: Card, folders: list[Folder]) -> ChatAnnotator:
    """A chat annotator itself, whose budget is what its folders, one a split, leave of it."""
    from coreg_ray.annotation import ledger
    from coreg_ray.annotation.chat import ChatAnnotator
    from coreg_ray.annotation.parts import parts

    asked = sum(ledger.spent(folder).requests for folder in folders)
    proven = any(parts(folder) for folder in folders)
    return ChatAnnotator(config, Vocabulary(card.names, card.prompts), asked, proven)
