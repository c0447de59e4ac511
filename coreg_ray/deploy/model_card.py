"""The model card: what a person should know before trusting the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from coreg_ray.config.kinds import TITLES
from coreg_ray.config.student import ANNOTATOR
from coreg_ray.metrics import ACCURACY, ACCURACY_A, ACCURACY_B, LABEL_FREE, ZERO_SHOT
from coreg_ray.run.trust import trust_in_words
from coreg_ray.training.preact_resnets import PREACT_RESNETS

if TYPE_CHECKING:
    from coreg_ray.deploy.model import Model

_MOST_CLASSES = 200


def model_card(model: Model, extra_files: list[str], remarks: Sequence[str] = ()) -> str:
    """`README.md` of an artifact, in Markdown.

    Args:
        extra_files: names of the files besides model.json and model.safetensors. remarks: sentences about them.
    """
    came_from = model.provenance
    settings, metrics = came_from.get("configuration", {}), came_from.get("metrics", {})
    source, annotator = settings.get("source", {}), settings.get("annotator", {})
    shown = [f"`{_plain(name)}`" for name in model.classes[:_MOST_CLASSES]]
    more = f" and {len(model.classes) - len(shown)} more" if len(model.classes) > len(shown) else ""
    width = f", width {model.student.width}" if model.student.name in PREACT_RESNETS else ""
    networks = f"network {next(iter(model.networks))}" if len(model.networks) == 1 else "both networks, averaged"
    backbone = " The keys `backbone.*` are those of the frozen network that comes first." if model.backbone else ""
    lines = [
        "# Image classifier trained without manual labels",
        "",
        f"{len(model.classes)} classes: {', '.join(shown)}{more}.",
        "",
        f"A {_architecture(model)}{width} for {model.resolution} px images ({networks}), trained with "
        f"{_method(settings)} on candidate labels that {_who(annotator)} gave to images of kind "
        f"`{_plain(source.get('kind', 'unknown'))}`.",
        "",
        "## Use",
        "",
        "```python",
        "import coreg_ray",
        'classes, probabilities = coreg_ray.load("this/folder").predict(["image.jpg"])',
        "```",
        "",
        "`model.json` says how to use `model.safetensors` without this package: bring the shorter side of an RGB "
        f"image to {model.resolution} px (bicubic, antialiased), take the centre, divide by 255, subtract `mean`, "
        f"divide by `std`.{backbone}",
        *(_portable(name, model) for name in extra_files),
        "",
        "## How far to trust it",
        "",
        *_figures(metrics),
        *(f"- {remark}" for remark in remarks),
        f"- Probabilities are softmax(logits / {model.temperature:.3g}); the temperature was fitted without labels.",
        "- The classes are all the model knows: an image of anything else gets one of them too.",
        "- What the annotator confuses consistently, the model may have learned: look at the run's report.html.",
        "",
        "## Where it comes from",
        "",
        f"- run fingerprint `{came_from.get('fingerprint')}`, annotation `{came_from.get('annotation_fingerprint')}`, "
        f"epoch {came_from.get('epoch')}, seed {settings.get('seed')}",
        "- " + ", ".join(f"{name} {version}" for name, version in came_from.get("versions", {}).items()),
        "",
    ]
    return "\n".join(lines)


def for_the_hub(text: str, name: str, licence: str | None, labels: str | None) -> str:
    """A model card as a repository of the Hub shows it: with a head for machines, and the name to load it by.

    Args:
        text: of the card; one that has a head keeps it. name: ORG/NAME. licence: its identifier, None where nobody has
            said. labels: the repository of the labels, None where they are not there.
    """
    text = text.replace('load("this/folder")', f'load("hf://{name}")')
    if text.startswith("---\n"):
        return text
    head: dict[str, Any] = {"license": licence} if licence else {}
    head |= {"library_name": "coreg-ray", "pipeline_tag": "image-classification", "tags": ["weak-supervision"]}
    head |= {"datasets": [labels]} if labels else {}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{text}"


def _architecture(model: Model) -> str:
    if model.backbone is None:
        return model.student.name
    card = model.backbone.card
    if card.name == ANNOTATOR:
        return "small head on the image encoder of the annotator, which open_clip builds when the model is loaded,"
    return f"small head on a frozen {card.name}"


def _portable(name: str, model: Model) -> str:
    opset = f", opset {model.onnx['opset']}" if model.onnx else ""
    how = f"onnxruntime{opset}" if name.endswith(".onnx") else "`torch.export.load`"
    side = model.resolution
    return f"`{name}` ({how}) takes `images`, float32 (B, 3, {side}, {side}) in 0..1, and gives `probabilities`."


def _method(settings: dict[str, Any]) -> str:
    kind = settings.get("method", {}).get("kind", "coreg")
    return "Co-Reg (arXiv 2406.18550)" if kind == "coreg" else f"{TITLES.get(kind, kind)} (`method.kind {kind}`)"


def _figures(metrics: dict[str, Any]) -> list[str]:
    known = (
        (ACCURACY, "accuracy on the labelled test images, both networks"),
        (ACCURACY_A, "network a alone"),
        (ACCURACY_B, "network b alone"),
        (ZERO_SHOT, "the annotator alone on the same images"),
        (LABEL_FREE, "agreement of both networks on held-out images"),
    )
    lines = [f"- {metrics[name]:.3f} {meaning}" for name, meaning in known if metrics.get(name) is not None]
    trust = trust_in_words(metrics)
    return [*(lines or ["- Not measured: the run had no labelled test images."]), *([f"- {trust}"] if trust else [])]


def _plain(text: Any) -> str:
    """Text that cannot end a code span, start HTML or break a line."""
    return " ".join(str(text).replace("`", "'").replace("<", "&lt;").split())


def _who(annotator: dict[str, Any]) -> str:
    """Who answered, by the settings of the first annotator."""
    if annotator.get("kind") == "votes":
        return "the voters of a file"
    weights = _plain(annotator.get("pretrained") or "its own weights")
    return f"a vision-language model ({_plain(annotator.get('model', 'unknown'))}, {weights})"
