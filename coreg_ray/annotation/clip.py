"""CLIP-like annotators: any model that open_clip can build, asked with several prompts about every image.

For prompt i and class j: t_ij = normalise(text(T_i(name_j))); for an image v = normalise(image(x));
P_i = softmax_j(scale * v.t_ij), with the model's own scale (METHOD section 1). What is stored is v in float16; votes
are computed from the stored v, so new prompts need no image and repeat old votes exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from coreg_ray.errors import UserError
from coreg_ray.images.decode import Fit
from coreg_ray.pure.candidates import NO_VOTE

if TYPE_CHECKING:
    from coreg_ray.annotation.vocabulary import Vocabulary

_TEXTS_AT_ONCE = 256
_LOGITS_AT_ONCE = 1 << 22  # 16 MB in float32: stays in a cache
_CPU_BATCH = 32  # more is not faster on CPUs
_GPU_BATCH = 1024  # halved until it fits
_DTYPES = {"auto": None, "float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}
_ROWS = 16  # from this many rows on, matrix products give a row the same bits whatever its neighbours are


@dataclass(frozen=True)
class Model:
    """A vision-language model in memory, in float32 on the CPU until moved.

    Attributes:
        network: open_clip's model.
        tokenizer: open_clip's tokenizer of that model.
        fit: how its images are resized.
        mean, std: (3,) its normalisation of pixels in 0..1.
        fingerprint: hash of weights, architecture and preprocessing.
    """

    network: Any
    tokenizer: Any
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str


@dataclass(frozen=True)
class TextTable:
    """What is known of the classes in the model's own space.

    Attributes:
        embeddings: (P, K, D) float32, normalised.
        background: (G, D) float32, normalised: texts about images of no class.
        scale: the model's logit scale (100 for CLIP).
        bias: the model's logit bias (SigLIP), else 0; it is the same for all classes, so no vote depends on it.

    Raises:
        UserError: one of them is not finite, so that every image would be given to the first class.
    """

    embeddings: Tensor
    background: Tensor
    scale: float
    bias: float

    def __post_init__(self) -> None:
        numbers = torch.cat([self.embeddings.flatten(), self.background.flatten()])
        if not (math.isfinite(self.scale) and math.isfinite(self.bias) and bool(numbers.isfinite().all())):
            raise UserError(
                "the annotator's embeddings of the prompts, or its scale, are not finite (NaN or infinite), so its "
                "weights are damaged; give other ones with --annotator.pretrained"
            )

    def to_bytes(self) -> bytes:
        """The embeddings as a safetensors file."""
        return save({"text": self.embeddings.contiguous(), "background": self.background.contiguous()})

    @classmethod
    def from_bytes(cls, content: bytes, scale: float, bias: float) -> TextTable:
        """What `to_bytes` wrote; scale and bias stand in the annotator's manifest."""
        tensors = load(content)
        return cls(tensors["text"], tensors["background"], scale, bias)


def load_model(name: str, pretrained: str | None) -> Model:
    """Build the model and load its weights, in float32 on the CPU.

    Args:
        name: `embedded`, an open_clip name, `hf-hub:ORG/REPO`, `local-dir:PATH`, or the path of a model
            configuration (JSON) in open_clip's format.
        pretrained: open_clip's tag or the path of a checkpoint; not for hub ids and local folders.

    Raises:
        UserError: the model or its weights cannot be found or do not fit each other.
    """
    import open_clip

    if name == "embedded":
        from coreg_ray import embedded

        open_clip.add_model_config(embedded.model_config_path())
        name, pretrained = embedded.MODEL_NAME, str(embedded.weights_path())
    elif name.endswith(".json"):
        if not Path(name).is_file():
            raise UserError(f"annotator.model={name} does not exist; give a model configuration or a model's name")
        open_clip.add_model_config(Path(name))
        name = Path(name).stem
    _check_choice(open_clip, name, pretrained)
    try:
        network = open_clip.create_model(name, pretrained=pretrained, precision="fp32", device="cpu").eval()
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip, its hub client and safetensors raise anything, assertions included
        raise UserError(
            f"annotator.model={name} with annotator.pretrained={pretrained} cannot be loaded: {error}"
        ) from error
    network.requires_grad_(False)
    settings = network.visual.preprocess_cfg
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    interpolation: Literal["bicubic", "bilinear"] = "bilinear" if settings["interpolation"] == "bilinear" else "bicubic"
    fit = Fit(height, width, settings["resize_mode"], interpolation, settings["fill_color"])
    mean, std = tuple(settings["mean"]), tuple(settings["std"])
    design = {"model": open_clip.get_model_config(name), "quick_gelu": _quick_gelu(network)}
    fingerprint = _fingerprint(network, {**design, "fit": asdict(fit), "mean": mean, "std": std})
    return Model(network, tokenizer, fit, mean, std, fingerprint)


def _check_choice(open_clip: Any, name: str, pretrained: str | None) -> None:
    if ":" in name:  # a hub id or a local folder brings its own weights
        return
    if name not in open_clip.list_models():
        raise UserError(
            f"annotator.model={name} is not known to open_clip; use `embedded`, one of open_clip.list_models(), "
            "hf-hub:ORG/REPO, local-dir:PATH or the path of a model configuration (JSON)"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        known = f"one of {', '.join(tags)}" if tags else "the path of a checkpoint"
        raise UserError(f"annotator.model={name} without annotator.pretrained would have random weights; give {known}")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise UserError(
            f"annotator.pretrained={pretrained} is neither a file nor a tag of {name}; "
            f"give the path of a checkpoint{' or one of ' + ', '.join(tags) if tags else ''}"
        )


def _quick_gelu(network: nn.Module) -> bool:
    return any(type(module).__name__ == "QuickGELU" for module in network.modules())


def _fingerprint(network: nn.Module, design: dict[str, Any]) -> str:
    """16 hex digits over all that an embedding depends on."""
    digest = blake2b(json.dumps(design, sort_keys=True, default=str).encode(), digest_size=8)
    for name, weights in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def embed_text(model: Model, vocabulary: Vocabulary, background: Sequence[str] = ()) -> TextTable:
    """Encode every prompt with every name, and every description; several of a class are averaged after normalising."""
    names, prompts = vocabulary.names, len(vocabulary.prompts)
    asked = [tuple(tuple(prompt.replace("{}", name) for name in entry) for entry in names)
             for prompt in vocabulary.templates] + [*vocabulary.descriptions]  # fmt: skip
    cells = [texts for prompt in asked for texts in prompt]  # P times K
    texts = [text for cell in cells for text in cell]
    features = _encode(model, [*texts, *background])
    owner = torch.tensor([number for number, cell in enumerate(cells) for _ in cell])
    sums = features.new_zeros(len(cells), features.shape[1]).index_add_(0, owner, features[: len(texts)])
    sums = sums.view(prompts, len(names), -1)
    scale, bias = model.network.logit_scale.exp().item(), getattr(model.network, "logit_bias", None)
    return TextTable(F.normalize(sums, dim=-1), features[len(texts) :], scale, 0.0 if bias is None else bias.item())


@torch.inference_mode()
def _encode(model: Model, texts: Sequence[str]) -> Tensor:
    """Normalised text features (len(texts), D) float32."""
    parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    features = [model.network.encode_text(model.tokenizer(list(part))).float() for part in parts]
    return F.normalize(torch.cat(features), dim=-1)


class ClipAnnotator:
    """Embeds images and lets every prompt vote.

    Runs in half precision on a GPU and in float32 on CPUs unless `precision` says otherwise. A batch that does not fit
    into the GPU's memory is halved until it does, and stays so.
    """

    def __init__(
        self,
        model: Model,
        text: TextTable,
        *,
        batch_size: int | None = None,
        device: str | torch.device = "cpu",
        precision: str = "auto",
    ) -> None:
        self.device = torch.device(device)
        self._dtype = _DTYPES[precision] or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self.batch_size = batch_size or (_GPU_BATCH if self.device.type == "cuda" else _CPU_BATCH)
        self.text = text
        self._network = model.network.to(self.device)
        self._mean = torch.tensor(model.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(model.std, device=self.device).view(1, 3, 1, 1)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Replace `image` (B, S, S, 3) uint8 by `embedding` (B, D) float16 and `votes` (B, P) int32."""
        rest = {name: values for name, values in batch.items() if name != "image"}
        embedding = self.embed(torch.from_numpy(np.ascontiguousarray(batch["image"])))
        return {**rest, "embedding": embedding.numpy(), "votes": votes(embedding, self.text).numpy()}

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Images (B, S, S, 3) uint8 -> normalised embeddings (B, D) float16 on the CPU."""
        done: list[Tensor] = []
        start = 0
        while start < len(images):
            part = images[start : start + self.batch_size]
            try:
                done.append(self._forward(part))
            except torch.OutOfMemoryError:
                if self.batch_size <= _ROWS:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                continue
            start += len(part)
        return torch.cat(done)

    def _forward(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, D) float16; the batch is padded so that a row's bits do not depend on its size."""
        rows = len(images)
        padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -rows % _ROWS)).to(self.device, non_blocking=True)
        pixels = (padded.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        half = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype if half else None, enabled=half):
            features = self._network.encode_image(pixels)
        return F.normalize(features.float(), dim=-1)[:rows].half().cpu()


def look_alike(text: TextTable, names: Sequence[str], limit: float = 0.98) -> list[tuple[str, str]]:
    """Pairs of classes whose mean text embeddings have a cosine of at least `limit`: likely two names of one class."""
    mean = F.normalize(text.embeddings.mean(dim=0), dim=-1)  # (K, D)
    pairs, rows = [], max(1, _LOGITS_AT_ONCE // len(mean))  # all K x K at once would be gigabytes
    for start in range(0, len(mean), rows):
        close = (mean[start : start + rows] @ mean[start:].T).triu(diagonal=1) >= limit
        pairs += [(names[start + one], names[start + other]) for one, other in close.nonzero().tolist()]
    return pairs


def votes(embedding: Tensor, text: TextTable) -> Tensor:
    """The best class of each prompt: embedding (N, D) float16 -> (N, P) int32. Of equals the lower class wins.

    A prompt whose logits are not finite has no vote: -1.
    """
    parts = [_best(logits) for logits in _logits(embedding, text)]
    return torch.cat(parts) if parts else torch.zeros(0, len(text.embeddings), dtype=torch.int32)


def _best(logits: Tensor) -> Tensor:
    """(n, P, K) -> (n, P) int32. To argmax NaN is more than anything, so that the best tells of all."""
    best = logits.argmax(dim=-1)
    finite = logits.gather(-1, best[..., None])[..., 0].isfinite()
    return torch.where(finite, best, NO_VOTE).to(torch.int32)


def probabilities(embedding: Tensor, text: TextTable) -> Iterator[Tensor]:
    """P_i = softmax_j(scale * v.t_ij) in float32: embedding (N, D) float16 -> blocks (n, P, K) that fit a cache."""
    return (logits.softmax(dim=-1) for logits in _logits(embedding, text))


def _logits(embedding: Tensor, text: TextTable) -> Iterator[Tensor]:
    """Blocks (n, P, K) of scale * v.t_ij, each row with the same bits whatever its neighbours are."""
    prompts, classes, _ = text.embeddings.shape
    table = text.embeddings.flatten(0, 1).T * text.scale  # (D, P * K)
    rows = max(_ROWS, _LOGITS_AT_ONCE // (prompts * classes) // _ROWS * _ROWS)
    for part in embedding.split(rows):
        padded = F.pad(part.float(), (0, 0, 0, -len(part) % _ROWS))
        yield (padded @ table).view(-1, prompts, classes)[: len(part)]
