"""Views against Pillow, operation by operation, and the laws of the draws."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from coreg_ray.pure.rng import stream, uniform
from coreg_ray.pure.views import augment as views
from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, apply_operation, mixup, strong, weak
from coreg_ray.pure.views.operations import Operation, magnitudes

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RANGES = {
    Operation.AUTO_CONTRAST: (0, 0),
    Operation.EQUALIZE: (0, 0),
    Operation.IDENTITY: (0, 0),
    Operation.POSTERIZE: (4, 8),
    Operation.SOLARIZE: (0, 256),
    Operation.ROTATE: (-30, 30),
    **dict.fromkeys((Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS), (0.05, 0.95)),
    **dict.fromkeys((Operation.SHEAR_X, Operation.SHEAR_Y, Operation.TRANSLATE_X, Operation.TRANSLATE_Y), (-0.3, 0.3)),
}


def _pictures(count: int, side: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Smooth pictures of varied contrast, noise, and flat ones: (B,C,H,W) uint8 in channels-last memory."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.random((count, channels, 4, 4), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").numpy()
    low, high = np.sort(random.integers(0, 256, (2, count, channels, 1, 1)), axis=0)
    pictures = (low + (high - low) * smooth).astype(np.uint8)
    pictures[::5] = random.integers(0, 256, pictures[::5].shape)
    pictures[1::5] = pictures[1::5, :, :1, :1]
    pictures[2::5, :, : side // 2] = 0
    return torch.from_numpy(pictures).contiguous(memory_format=torch.channels_last)


def _draws(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    return uniform(stream(seed, "test"), torch.arange(count), columns)


def _pillow(image: torch.Tensor, operation: Operation, magnitude: float) -> np.ndarray:
    """The operation by Pillow on one image (C,H,W) -> (C,H,W)."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
    width, height = picture.size

    def affine(*coefficients: float) -> Image.Image:
        return picture.transform(picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)

    result = {
        Operation.AUTO_CONTRAST: lambda: ImageOps.autocontrast(picture),
        Operation.EQUALIZE: lambda: ImageOps.equalize(picture),
        Operation.POSTERIZE: lambda: ImageOps.posterize(picture, int(magnitude)),
        Operation.SOLARIZE: lambda: ImageOps.solarize(picture, cast(int, magnitude)),
        Operation.BRIGHTNESS: lambda: ImageEnhance.Brightness(picture).enhance(magnitude),
        Operation.CONTRAST: lambda: ImageEnhance.Contrast(picture).enhance(magnitude),
        Operation.COLOR: lambda: ImageEnhance.Color(picture).enhance(magnitude),
        Operation.SHARPNESS: lambda: ImageEnhance.Sharpness(picture).enhance(magnitude),
        Operation.IDENTITY: lambda: picture,
        Operation.ROTATE: lambda: picture.rotate(magnitude, Image.Resampling.NEAREST),
        Operation.SHEAR_X: lambda: affine(1, magnitude, 0, 0, 1, 0),
        Operation.SHEAR_Y: lambda: affine(1, 0, 0, magnitude, 1, 0),
        Operation.TRANSLATE_X: lambda: affine(1, 0, magnitude * width, 0, 1, 0),
        Operation.TRANSLATE_Y: lambda: affine(1, 0, 0, 0, 1, magnitude * height),
    }[operation]()
    return np.asarray(result).reshape(height, width, -1).transpose(2, 0, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (32, 1), (20, 3), (16, 1), (64, 3), (128, 3), (101, 1)])
@pytest.mark.parametrize("operation", Operation)
def test_operation_equals_pillow(operation, side, channels, device):
    count = 40
    images = _pictures(count, side, channels, seed=side)
    low, high = RANGES[operation]
    magnitude = torch.from_numpy(np.random.default_rng(1).uniform(low, high, count)).float()
    if operation is Operation.POSTERIZE:
        magnitude = magnitude.round()
    changed = apply_operation(images.to(device), operation, magnitude).cpu()
    expected = np.stack([_pillow(image, operation, float(m)) for image, m in zip(images, magnitude, strict=True)])
    assert np.array_equal(changed.numpy(), expected)
    assert changed.is_contiguous(memory_format=torch.channels_last)


def test_operations_are_the_fourteen_and_change_pictures():
    assert len(Operation) == len(RANGES) == 14
    images = _pictures(30, 32)
    some = {Operation.POSTERIZE: 4.0, Operation.ROTATE: 20.0}
    for operation in Operation:
        magnitude = torch.full((30,), some.get(operation, 0.25))
        changed = not torch.equal(apply_operation(images, operation, magnitude), images)
        assert changed == (operation is not Operation.IDENTITY), operation.name


@pytest.mark.parametrize("operation", Operation)
def test_magnitudes_are_uniform_over_their_range(operation):
    draws = np.arange(100_000) / 100_000
    amounts = magnitudes(np.full(100_000, operation), draws)
    low, high = RANGES[operation]
    if operation is Operation.POSTERIZE:
        assert np.array_equal(np.unique(amounts, return_counts=True), ([4, 5, 6, 7, 8], [20_000] * 5))
    else:
        assert np.allclose(amounts, low + (high - low) * draws)


# ---- crop and mirror: a picture whose pixels tell where they stood ----


def _positions(count: int, side: int) -> torch.Tensor:
    """Pixel (y, x) holds (y + 1, x + 1, 255): (B,3,H,W)."""
    y, x = torch.meshgrid(torch.arange(1, side + 1), torch.arange(1, side + 1), indexing="ij")
    return torch.stack([y, x, torch.full_like(x, 255)]).to(torch.uint8).expand(count, -1, -1, -1).clone()


def _placement(view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vertical shift, horizontal shift and mirroring of views (B,3,H,W) of `_positions`, read off their middles."""
    side = view.shape[-1]
    middle = side // 2
    y, x, right = (
        view[:, 0, middle, middle].int(),
        view[:, 1, middle, middle].int(),
        view[:, 1, middle, middle + 1].int(),
    )
    mirrored = right < x
    return y - middle - 1, torch.where(mirrored, x - (side - middle), x - middle - 1), mirrored


@pytest.mark.parametrize(
    ("side", "padding", "expected"),
    [(32, None, 4), (28, None, 4), (16, None, 2), (64, None, 8), (96, None, 12), (32, 2, 2), (16, 0, 0)],
)
def test_crop_offsets_are_uniform_and_half_the_rows_are_mirrored(side, padding, expected):
    count, values = 4_000 if side < 64 else 1_500, 2 * expected + 1
    shown = weak(_positions(1, side).expand(count, -1, -1, -1), _draws(count, WEAK_DRAWS), padding=padding)
    down, across, mirrored = _placement(shown)
    for shift in (down, across):
        occurred, counts = shift.unique(return_counts=True)
        assert occurred.tolist() == list(range(-expected, expected + 1))
        assert ((counts - count / values) ** 2 / (count / values)).sum() < values + 6 * values**0.5 + 6
    assert abs(mirrored.float().mean() - 0.5) < 0.045
    together = torch.stack([down.float(), across.float(), mirrored.float()])[[0, 1, 2] if expected else [2]]
    assert expected == 0 or (torch.corrcoef(together) - torch.eye(3)).abs().max() < 0.1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (16, 16, 1), (24, 17, 3)])
def test_weak_view_is_a_zero_padded_crop_maybe_mirrored(height, width, channels, device):
    count, padding = 60, 4
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=random)
    shown = weak(images.to(device), _draws(count, WEAK_DRAWS)).cpu()
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    windows = (
        padded.unfold(2, height, 1)
        .unfold(3, width, 1)
        .permute(0, 2, 3, 1, 4, 5)
        .reshape(count, -1, channels, height, width)
    )
    candidates = torch.cat([windows, windows.flip(-1)], dim=1)
    assert (candidates == shown[:, None]).flatten(2).all(2).any(1).all()
    assert shown.is_contiguous(memory_format=torch.channels_last)


def test_no_mirroring_where_told():
    images = _positions(500, 32)
    assert not _placement(weak(images, _draws(500, WEAK_DRAWS), flip=False))[2].any()
    assert not _placement(strong(images, torch.zeros(500, STRONG_DRAWS), flip=False))[2].any()


# ---- strong views ----


def test_strong_is_weak_then_operation_then_hole():
    """Each step by hand, from the same draws; the composed reads must equal the steps one after the other."""
    count = 280
    images = _pictures(count, 32)
    draws = _draws(count, STRONG_DRAWS)
    shown = strong(images, draws)
    base = weak(images, draws[:, :WEAK_DRAWS].contiguous())
    operations = (draws[:, 3].double() * 14).long()
    assert len(operations.unique()) == 14
    for row in range(count):
        operation = Operation(int(operations[row]))
        magnitude = magnitudes(np.array([operation]), draws[row : row + 1, 4].double().numpy())[0]
        expected = _pillow(
            base[row], operation, float(np.float32(magnitude)) if operation < Operation.ROTATE else magnitude
        ).copy()
        size = int(np.floor(float(draws[row, 5]) * 16 + 0.5))
        top, left = (int(float(draws[row, column]) * 32) - size // 2 for column in (6, 7))
        expected[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = np.array(
            [[[125]], [[123]], [[114]]]
        )
        assert np.array_equal(shown[row].numpy(), expected), operation.name


def test_operations_are_drawn_uniformly():
    """A spy on the drawing itself: which operation a row gets, over many rows."""
    count = 14_000
    seen = []
    original = views.magnitudes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            views, "magnitudes", lambda operations, draws: (seen.append(operations), original(operations, draws))[1]
        )
        strong(torch.zeros(count, 1, 16, 16, dtype=torch.uint8), _draws(count, STRONG_DRAWS))
    counts = np.bincount(seen[0], minlength=14)
    assert len(counts) == 14
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # 13 degrees of freedom: 2e-5


@pytest.mark.parametrize(("channels", "fill"), [(3, (125, 123, 114)), (1, (123,))])
def test_hole_area_place_and_fill(channels, fill):
    count, side = 4_000, 32
    draws = _draws(count, STRONG_DRAWS)
    draws[:, :3] = 0.5  # no shift, no mirroring
    draws[:, 3] = (Operation.IDENTITY + 0.5) / 14
    shown = strong(torch.full((count, channels, side, side), 7, dtype=torch.uint8), draws)
    changed = shown != 7
    assert (shown.movedim(1, -1)[changed[:, 0]] == torch.tensor(fill, dtype=torch.uint8)).all()
    assert (changed == changed[:, :1]).all()
    tall, wide = (changed[:, 0].any(dim).sum(1) for dim in (2, 1))
    assert torch.equal(changed[:, 0].sum((1, 2)), tall * wide)
    assert max(tall.max(), wide.max()) == side // 2
    # a side of s pixels sticks out with chance s / side, and then loses s / 4 on average
    sides = torch.floor(draws[:, 5] * 16 + 0.5)
    expected = (sides - sides**2 / (4 * side)).mean()
    assert abs(tall.float().mean() - expected) < 0.25
    assert abs(wide.float().mean() - expected) < 0.25
    coverage = changed[:, 0].float().mean(0)
    assert coverage[8:24, 8:24].mean() > 1.5 * coverage[[0, 0, -1, -1], [0, -1, 0, -1]].mean() > 0


def test_policy_hole_is_the_weak_view_with_one_hole_of_half_the_side():
    count = 200
    images = _pictures(count, 32, 1)
    draws = _draws(count, STRONG_DRAWS)
    base = weak(images, draws[:, :WEAK_DRAWS].contiguous())
    shown = strong(images, draws, policy="hole")
    for row in range(count):
        expected = base[row].clone()
        top, left = (int(float(draws[row, column]) * 32) - 8 for column in (6, 7))
        expected[:, max(top, 0) : top + 16, max(left, 0) : left + 16] = 123
        assert torch.equal(shown[row], expected)


def test_policy_weak_is_the_weak_view():
    images, draws = _pictures(50, 32, 1), _draws(50, STRONG_DRAWS)
    shown = strong(images, draws, policy="weak")
    assert torch.equal(shown, weak(images, draws[:, :WEAK_DRAWS]))
    assert not torch.equal(shown, strong(images, draws))


# ---- laws ----


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (16, 1), (20, 3), (224, 3)])
def test_views_do_not_depend_on_the_batch(side, channels, device):
    count = 200 if side < 64 else 20
    images = _pictures(count, side, channels).to(device)
    for function, columns in ((weak, WEAK_DRAWS), (strong, STRONG_DRAWS)):
        draws = _draws(count, columns)
        whole = function(images, draws)
        assert torch.equal(function(images, draws), whole)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
        assert torch.equal(function(images[order.to(device)], draws[order]), whole[order.to(device)])
        alone = torch.cat([function(images[row : row + 1], draws[row : row + 1]) for row in range(count)])
        assert torch.equal(alone, whole)
        assert torch.equal(function(images.contiguous(), draws), whole)
        assert whole.shape == images.shape
        assert whole.dtype == torch.uint8
        assert whole.is_contiguous(memory_format=torch.channels_last)


def test_images_are_left_as_they_are():
    images = _pictures(100, 32)
    before = images.clone()
    weak(images, _draws(100, WEAK_DRAWS))
    strong(images, _draws(100, STRONG_DRAWS))
    strong(images, _draws(100, STRONG_DRAWS), padding=0, flip=False, policy="hole")
    assert torch.equal(images, before)


def test_an_empty_batch_has_empty_views():
    images = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    assert (
        weak(images, torch.zeros(0, WEAK_DRAWS)).shape
        == strong(images, torch.zeros(0, STRONG_DRAWS)).shape
        == images.shape
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_processor_without_waiting():
    images = _pictures(300, 32)
    draws = _draws(300, STRONG_DRAWS)
    there = images.cuda()
    strong(there, draws)
    torch.cuda.set_sync_debug_mode("error")
    try:
        shown = strong(there, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(shown.cpu(), strong(images, draws))


def test_other_images_and_draws_are_refused():
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"float32.*uint8.*float afterwards"):
        weak(images.float(), _draws(4, WEAK_DRAWS))
    with pytest.raises(ValueError, match=r"\(4, 2, 32, 32\)"):
        strong(images[:, :2], _draws(4, STRONG_DRAWS))
    with pytest.raises(ValueError, match=rf"\(4, {STRONG_DRAWS}\).*\(4, {WEAK_DRAWS}\)"):
        weak(images, _draws(4, STRONG_DRAWS))
    with pytest.raises(ValueError, match=r"\(3, "):
        strong(images, _draws(3, STRONG_DRAWS))
    with pytest.raises(ValueError, match="padding=-1"):
        weak(images, _draws(4, WEAK_DRAWS), padding=-1)
    with pytest.raises(ValueError, match="'cutmix'"):
        strong(images, _draws(4, STRONG_DRAWS), policy="cutmix")


# ---- mixup ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixup_is_the_weighted_mean(dtype):
    random = torch.Generator().manual_seed(0)
    inputs = torch.rand(6, 3, 8, 8, generator=random).to(dtype).contiguous(memory_format=torch.channels_last)
    targets = torch.rand(6, 5, generator=random).softmax(1)
    permutation = torch.tensor([1, 2, 0, 3, 5, 4])
    each = torch.linspace(0.5, 1, 6)
    for lam, shares in ((0.7, [0.7] * 6), (torch.tensor(0.7), [0.7] * 6), (each, each.tolist())):
        mixed_inputs, mixed_targets = mixup(inputs, targets, lam, permutation)
        assert mixed_inputs.dtype == dtype
        assert mixed_inputs.is_contiguous(memory_format=torch.channels_last)
        for row, (other, share) in enumerate(zip(permutation.tolist(), shares, strict=True)):
            for mixed, source in ((mixed_inputs, inputs.float()), (mixed_targets, targets)):
                expected = share * source[row] + (1 - share) * source[other]
                assert torch.allclose(mixed[row].float(), expected, atol=1e-6 if mixed.dtype == torch.float32 else 1e-2)
    assert torch.allclose(mixed_targets.sum(1), torch.ones(6))
    unmixed = mixup(inputs, targets, 1.0, permutation)
    assert torch.equal(unmixed[0], inputs)
    assert torch.equal(unmixed[1], targets)


@pytest.mark.parametrize("operation", [o for o in Operation if o >= Operation.ROTATE])
@pytest.mark.parametrize("corner", [(0.0, 0.0), (0.9999, 0.0), (0.0, 0.9999), (0.9999, 0.9999)])
@pytest.mark.parametrize("strength", [0.0, 0.9999])
def test_maps_see_the_crop_alone_wherever_it_lies(
    operation: Operation, corner: tuple[float, float], strength: float
) -> None:
    images = _pictures(3, 17) | 1  # no level is zero, so that a pixel from beyond the crop would show
    draws = torch.tensor([[*corner, 0.9, (operation + 0.5) / len(Operation), strength, 0.0, 0.5, 0.5]]).repeat(3, 1)
    magnitude = torch.from_numpy(magnitudes(np.array([operation] * 3), draws[:, 4].double().numpy()))
    expected = apply_operation(weak(images, draws[:, :WEAK_DRAWS]), operation, magnitude)
    assert torch.equal(strong(images, draws), expected)
