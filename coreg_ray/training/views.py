"""Where a network's inputs come from, for some rows and a draw: the one place that knows of pixels and of features.

What `Images.take` gives is either pixels, of which a view is made on the spot (pure/views/augment.py), or what a frozen
backbone saw of each image and its views, of which one is picked (pure/views/stored.py). Nobody else asks which.

Strong views of features lack `student.dropout` of them, drawn anew each time. Where the image alone is stored (the
annotator's embeddings), weak views lack half of that share.
"""

from __future__ import annotations

from torch import Tensor

from coreg_ray.pure.rng import stream, uniform
from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, strong, weak
from coreg_ray.pure.views.stored import PICK_DRAWS, pick, thin, thin_draws
from coreg_ray.training.state import State


def plain(taken: Tensor) -> Tensor:
    """The images themselves, as a network takes them.

    taken (B, 3, S, S) uint8 -> the same; or (B, 1 + V, F) float16 -> (B, F) float32.
    """
    return taken if taken.dim() == 4 else taken[:, 0].float()


def weak_view(state: State, taken: Tensor, purpose: int, numbers: Tensor) -> Tensor:
    """A weak view of each row: `taken` as of `plain`, `purpose` a stream, numbers (B,) of the rows, on the host."""
    if taken.dim() == 4:
        return weak(taken, uniform(purpose, numbers, WEAK_DRAWS), flip=state.flip)
    features = pick(taken, uniform(purpose, numbers, PICK_DRAWS), strong=False)
    share = state.student.dropout / 2 if taken.shape[1] == 1 else 0.0
    return _thinned(features, purpose, numbers, share)


def strong_view(state: State, taken: Tensor, purpose: int, numbers: Tensor) -> Tensor:
    """A strong view of each row, as `weak_view`."""
    if taken.dim() == 4:
        return strong(taken, uniform(purpose, numbers, STRONG_DRAWS), flip=state.flip, policy=state.policy)
    features = pick(taken, uniform(purpose, numbers, PICK_DRAWS), strong=True)
    return _thinned(features, purpose, numbers, state.student.dropout)


def _thinned(features: Tensor, purpose: int, numbers: Tensor, share: float) -> Tensor:
    if not share:
        return features
    counters = numbers.to(features.device, non_blocking=True)  # every device draws alike
    return thin(features, uniform(stream(purpose, "dropout"), counters, thin_draws(features.shape[1])), share)
