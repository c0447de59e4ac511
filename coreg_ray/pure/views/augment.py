"""Weak and strong views of uint8 images, in batches, and mixup (METHOD section 5). PURE: torch and numpy.

All randomness is passed in as *draws*: numbers in [0, 1), one row of them per image (`rng.uniform`). So a view
depends on its image and its draws alone, not on the batch it stands in or on the device. Draws are on the host: from
them the host chooses each row's operation and sends the device small tables, without ever waiting for it.

What differs from a pipeline that treats image by image:
1. Mirroring comes before cropping, which has the same distribution, because then a crop is a block of memory.
2. Rows are sorted by operation, so that those of one operation are a slice, treated at once; then put back in order.
3. On a processor, images that alone fill its cache are treated one by one after all (large.py).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from coreg_ray.pure.views import large
from coreg_ray.pure.views.geometry import Padded, cut, maps, parts, sent
from coreg_ray.pure.views.operations import Operation, magnitudes, recolour

Policy = Literal["randaugment", "hole", "weak"]  # what a strong view does to an image beside cropping and mirroring

WEAK_DRAWS = 3  # vertical and horizontal offset of the crop, mirroring
STRONG_DRAWS = 8  # the same, operation, magnitude, side of the hole, vertical and horizontal centre of the hole
FILL = (125, 123, 114)  # of the hole: the mean colour of CIFAR-10
GREY_FILL = (123,)  # of a grey image's


def weak(images: Tensor, draws: Tensor, *, padding: int | None = None, flip: bool = True) -> Tensor:
    """Random crop after zero padding, and mirroring of half the rows.

    images (B,C,H,W) uint8, C 1 or 3, any device; draws (B, WEAK_DRAWS) on the host
    -> (B,C,H,W) uint8 in channels-last memory.
    padding in pixels; None: an eighth of the shorter side, which is 4 at 32 px and 8 at 64 px.
    Raises ValueError for images or draws of another kind, and for a padding below 0.
    """
    numbers = _checked(images, draws, WEAK_DRAWS)
    operations = np.full(len(images), Operation.IDENTITY)
    return _render(images, numbers, padding, flip, operations, np.zeros(len(images))).permute(0, 3, 1, 2)


def strong(
    images: Tensor,
    draws: Tensor,
    *,
    padding: int | None = None,
    flip: bool = True,
    policy: Policy = "randaugment",
) -> Tensor:
    """The weak view, then one of 14 operations, then a hole of up to half the side.

    images (B,C,H,W) uint8, C 1 or 3, any device; draws (B, STRONG_DRAWS) on the host
    -> (B,C,H,W) uint8 in channels-last memory.
    The hole is a square centred on any pixel, clipped at the border, filled with FILL (GREY_FILL when C is 1).
    policy "hole": no operation, and a hole of exactly half the side; "weak": neither, another weak view.
    Raises ValueError as `weak` does, and for an unknown policy.
    """
    numbers = _checked(images, draws, STRONG_DRAWS)
    if policy == "weak":
        return weak(images, draws[:, :WEAK_DRAWS], padding=padding, flip=flip)
    side = min(images.shape[2:])
    if policy == "randaugment":
        operations = (numbers[:, 3] * len(Operation)).astype(np.int64)
        holes = np.floor(numbers[:, 5] * side / 2 + 0.5).astype(np.int32)
    elif policy == "hole":
        operations = np.full(len(images), Operation.IDENTITY)
        holes = np.full(len(images), side // 2, dtype=np.int32)
    else:
        raise ValueError(f"policy={policy!r} is unknown; use 'randaugment', 'hole' or 'weak'")
    views = _render(images, numbers, padding, flip, operations, magnitudes(operations, numbers[:, 4]))
    cut(views, holes, numbers[:, 6:], FILL if images.shape[1] == 3 else GREY_FILL)
    return views.permute(0, 3, 1, 2)


def apply_operation(images: Tensor, operation: int, magnitude: Tensor) -> Tensor:
    """One given `Operation` on every row: images (B,C,H,W) uint8, magnitude (B,) on the host, units as in `magnitudes`.

    Raises ValueError for images of another kind.
    """
    still = _checked(images, torch.zeros(len(images), WEAK_DRAWS), WEAK_DRAWS)
    operations = np.full(len(images), operation)
    return _render(images, still, 0, False, operations, magnitude.double().numpy()).permute(0, 3, 1, 2)


def mixup(inputs: Tensor, targets: Tensor, lam: float | Tensor, permutation: Tensor) -> tuple[Tensor, Tensor]:
    """Mix every row with another: lam * a + (1 - lam) * a[permutation], inputs and targets alike (METHOD section 3).

    inputs (B,...) float, targets (B,K) float, lam in [0.5, 1], one number or one for each row (B,), permutation (B,)
    int64 -> mixed inputs and targets, shapes and dtypes kept.
    """
    permutation = permutation.to(inputs.device, non_blocking=True)

    def mixed(rows: Tensor) -> Tensor:
        share = lam
        if isinstance(lam, Tensor):
            share = lam.to(rows, non_blocking=True).view(-1, *[1] * (rows.dim() - 1))
        return share * rows + (1 - share) * rows[permutation]

    return mixed(inputs), mixed(targets)


def _render(
    images: Tensor, numbers: np.ndarray, padding: int | None, flip: bool, operations: np.ndarray, magnitude: np.ndarray
) -> Tensor:
    """Crop and mirror by the first three numbers (B, 3 at least), then one operation a row: (B,H,W,C) contiguous."""
    pixels = images.permute(0, 2, 3, 1).contiguous()
    if not len(pixels):
        return pixels
    _, height, width, _ = pixels.shape
    padding = _padding(min(height, width), padding)
    offsets = (numbers[:, :2] * (2 * padding + 1)).astype(np.int64)
    mirrored = (numbers[:, 2] < 0.5) & flip
    if large.fits(pixels):
        affine = maps(operations, magnitude, height, width)
        shifts = offsets - padding
        return torch.from_numpy(large.render(pixels.numpy(), shifts, mirrored, operations, magnitude, affine))
    padded = Padded.of(pixels, mirrored, padding)

    order = np.argsort(operations, kind="stable")
    operations, magnitude = operations[order], magnitude[order]
    flat = int(np.searchsorted(operations, Operation.ROTATE))  # from here on geometric operations
    affine = np.zeros((6, len(order)), np.int32)
    affine[:, flat:] = maps(operations[flat:], magnitude[flat:], height, width)
    starts = padded.starts(order, offsets[order], padding)
    table = sent(np.stack([np.argsort(order).astype(np.int32), starts, *affine]), pixels.device)

    views = torch.empty_like(pixels)
    padded.crop(table[1, :flat], out=views[:flat])
    edges = np.searchsorted(operations, [Operation.ROTATE, Operation.SHEAR_X, Operation.SHEAR_Y, Operation.TRANSLATE_X])
    groups = map(slice, edges, [*edges[1:], len(order)])
    for rows, read in zip(groups, (padded.warp, padded.slide, padded.warp, padded.slide), strict=True):
        if rows.start < rows.stop:
            read(table[1, rows], table[2:, rows], out=views[rows])
    strength = sent(magnitude.astype(np.float32), pixels.device)
    for part in parts(views[:flat]):
        recolour(views[part], operations[part], strength[part])
    in_order = operations[0] == operations[-1]
    return views if in_order else views.index_select(0, table[0])


def _padding(side: int, padding: int | None) -> int:
    if padding is None:
        return round(side / 8)
    if padding < 0:
        raise ValueError(f"padding={padding} is below 0; use 0 for no crop")
    return padding


def _checked(images: Tensor, draws: Tensor, columns: int) -> np.ndarray:
    """The draws as an array (B, columns) float64, once images and draws are what views take."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; views take uint8 of shape (B,C,H,W) "
            "with 1 or 3 channels: make views first and convert them to float afterwards"
        )
    if draws.shape != (len(images), columns) or draws.device.type != "cpu":
        raise ValueError(
            f"draws have shape {tuple(draws.shape)} on {draws.device}; {len(images)} images take "
            f"({len(images)}, {columns}) on cpu: use rng.uniform(stream, counters, {columns}) with counters on cpu"
        )
    return draws.double().numpy()
