"""Make the weights of the embedded vision-language model: `python -m coreg_ray.embedded.make_tiny_clip --output FILE`.

A CLIP small enough to ship learns from drawn digits (`drawing.py`) and captions such as "a photo of the number bold
printed seven". What is particular about it:

1. It never sees handwriting: the drawings are printed, typed, draughtsmen's and calculators' digits. What separates the
   scans is in its embedding all the same (a linear probe on true labels reaches 0.96); it has no name for it.
2. A caption says only what is true of its drawing, but not everything. Every pair (drawing i, caption j) of a batch
   is therefore a positive pair if all that caption j says is true of drawing i, not only the pairs i = j.
3. Captions may name all that is true (MOST_STYLES), so a digit's name means another picture in each kind of print:
   prompts disagree on the scans, as those of large models do on images unlike their training images, and hardly on
   drawings.
4. Words that no caption used keep no meaning: their embedding is zero, and the file compresses well.

The scans of the embedded set are measured at the end and never trained on. Kinds of print and their ways, MOST_STYLES
and the prompts were chosen by looking at those summary figures, such that the model is a useful and honestly imperfect
annotator; steps, pens, shapes and scan quality were left as they had been. What was tried, seed 0, 64 dimensions,
each kind of print asked for thin, narrow and wide; figures of the scans to train on, and the share of the scans to test
on that a linear probe trained on true labels gets right:

    drawings                                  named styles  zero-shot  coverage  disagreement  probe
    a third of them handwriting                    3          0.87       0.93        0.11       0.97
    printed, typed, calculators'                   3          0.75       0.84        0.14       0.95
    and draughtsmen's, whose sevens are barred     3          0.78       0.88        0.15       0.98
    the same                                       5          0.79       0.90        0.18       0.96
    the same, twice as shaky                       5          0.82       0.92        0.17       0.95
    the same as shipped                            8          0.78       0.89        0.18       0.96

Without barred sevens a tenth of the sevens was right. Of all three styles that prompts could name, thin, narrow and
wide make them disagree most, which takes no label to see.

One seed gives one file, bit for bit, on one machine with one version of PyTorch and one number of threads.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from coreg_ray.embedded import MODEL_NAME, model_config_path
from coreg_ray.embedded.digits import CLASS_NAMES, PROMPTS, SPLITS, Split, digits
from coreg_ray.embedded.drawing import STYLES, Drawings, draw

log = logging.getLogger(__name__)

FRAMES = ("{}", "a {}", "the digit {}", "a photo of the number {}", "a drawing of a {}")
NUMERAL_SHARE = 0.2  # share of captions that say "7" rather than "seven"
MOST_STYLES = 8  # style words in a caption at most: all that a drawing has
STEPS = 300
BATCH = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 30
LARGEST_SCALE = 100.0  # of the logits, as in CLIP


def train(steps: int, seed: int) -> nn.Module:
    """A model of configuration MODEL_NAME after `steps` steps on drawings; the same `seed`, the same model."""
    open_clip.add_model_config(model_config_path())
    with torch.random.fork_rng(devices=[]):  # open_clip initialises from the global generator only
        torch.manual_seed(seed)
        model = open_clip.create_model(MODEL_NAME)
    generator = torch.Generator().manual_seed(seed)
    tokens_of = _tokeniser()
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    used = torch.zeros(model.vocab_size, dtype=torch.bool)

    for step in range(1, steps + 1):
        drawings = draw(torch.randint(len(CLASS_NAMES), (BATCH,), generator=generator), generator)
        texts, named = captions(drawings, generator)
        tokens = torch.stack([tokens_of(text) for text in texts])
        used[tokens] = True
        image, text, scale = model(normalise(drawings.images), tokens)
        loss = contrast(scale * image @ text.T, positives(drawings, named))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        if step % 50 == 0 or step == steps:
            log.info("step %d of %d: loss %.3f", step, steps, loss.item())

    with torch.no_grad():
        model.token_embedding.weight[~used] = 0
    return model.eval()


def captions(drawings: Drawings, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """One true caption for each of B drawings, and the style words it uses, (B, len(STYLES)) bool."""
    batch, styles = drawings.styles.shape
    order = torch.rand(batch, styles, generator=generator).masked_fill(~drawings.styles, 2.0).argsort(dim=1)
    counts = torch.randint(MOST_STYLES + 1, (batch, 1), generator=generator)
    chosen = torch.zeros_like(drawings.styles).scatter_(1, order, torch.arange(styles).expand(batch, -1) < counts)
    named = chosen & drawings.styles
    frames = torch.randint(len(FRAMES), (batch,), generator=generator).tolist()
    numerals = (torch.rand(batch, generator=generator) < NUMERAL_SHARE).tolist()
    texts = []
    for label, words, frame, numeral in zip(drawings.labels.tolist(), named.tolist(), frames, numerals, strict=True):
        name = str(label) if numeral else CLASS_NAMES[label]
        adjectives = [style for style, is_named in zip(STYLES, words, strict=True) if is_named]
        texts.append(FRAMES[frame].format(" ".join([*adjectives, name])))
    return texts, named


def positives(drawings: Drawings, named: Tensor) -> Tensor:
    """(B, B) bool: all that caption j says (its digit and the styles `named[j]`) is true of drawing i."""
    same_digit = drawings.labels[:, None] == drawings.labels
    untrue = (named & ~drawings.styles[:, None]).any(dim=2)
    return same_digit & ~untrue


def contrast(logits: Tensor, positive: Tensor) -> Tensor:
    """CLIP's symmetric loss with several positives a row: logits (B, B), `positive` (B, B) bool, true on the diagonal.

    The mean over rows of -1/|pos| sum_pos log softmax, averaged with the same over columns.
    """
    by_row = (logits.log_softmax(dim=1) * positive).sum(dim=1) / positive.sum(dim=1)
    by_column = (logits.log_softmax(dim=0) * positive).sum(dim=0) / positive.sum(dim=0)
    return -(by_row.mean() + by_column.mean()) / 2


def normalise(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) in 0..1 as open_clip's own preprocessing hands them to the model."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    return (images - mean) / std


@torch.inference_mode()
def measure(model: Any, split: Split) -> dict[str, Any]:
    """What the model is worth as an annotator of the scans of one split, whose labels serve for nothing else.

    Shares in 0..1 by name: of the mean of the prompts ("zero-shot accuracy", "recall per class"), of the union of the
    prompts' votes ("coverage", per class, and "mean candidates"), of each prompt, and the share of scans on which two
    prompts disagree, averaged over pairs.
    """
    tokens_of = _tokeniser()
    prompts = [torch.stack([tokens_of(prompt.format(name)) for name in CLASS_NAMES]) for prompt in PROMPTS]
    texts = torch.stack([model.encode_text(tokens, normalize=True) for tokens in prompts])
    _, pixels, truth = digits(split)
    images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    vision = torch.cat([model.encode_image(chunk, normalize=True) for chunk in images.split(256)])
    probs = (model.logit_scale.exp() * torch.einsum("nd,pkd->npk", vision, texts)).softmax(dim=2)

    labels = torch.from_numpy(truth)
    votes = probs.argmax(dim=2)
    candidates = F.one_hot(votes, len(CLASS_NAMES)).any(dim=1)
    right = probs.mean(dim=1).argmax(dim=1) == labels
    covered = candidates.gather(1, labels[:, None])[:, 0]
    of_class = F.one_hot(labels, len(CLASS_NAMES)) / labels.bincount()
    pairs = len(PROMPTS) * (len(PROMPTS) - 1)
    return {
        "zero-shot accuracy": _rounded(right.float().mean()),
        "coverage": _rounded(covered.float().mean()),
        "mean candidates": _rounded(candidates.sum(dim=1).float().mean()),
        "disagreement": _rounded((votes[:, :, None] != votes[:, None]).sum() / (pairs * len(labels))),
        "accuracy per prompt": _rounded((votes == labels[:, None]).float().mean(dim=0)),
        "recall per class": _rounded(right.float() @ of_class),
        "coverage per class": _rounded(covered.float() @ of_class),
    }


def save(model: nn.Module, path: Path) -> None:
    """Write the weights as open_clip loads them, in float16."""
    state = model.state_dict()
    save_file({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}, path)


def _rounded(values: Tensor) -> float | list[float]:
    return (values.double() * 1000).round().div(1000).tolist()


def _tokeniser() -> Any:
    """Text -> tokens (context length,) int64, each text worked out once."""
    tokenise = open_clip.get_tokenizer(MODEL_NAME)
    return cache(lambda text: tokenise([text])[0])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the embedded tiny CLIP on drawn digits.")
    parser.add_argument("--output", type=Path, required=True, help="file to write (.safetensors)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps={options.steps} trains nothing; use 1 or more")
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    model = train(options.steps, options.seed)
    save(model, options.output)
    for split in SPLITS:
        for name, value in measure(model, split).items():
            log.info("%s %s: %s", split, name, value)


if __name__ == "__main__":
    main()
