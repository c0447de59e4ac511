"""Digits drawn by a simulated pen and digitised the way the scans of the embedded set were.

The set's own description (UCI, "optical recognition of handwritten digits") says how a page became numbers: the
size-normalised digit is a 32x32 black-and-white bitmap, which is cut into 4x4 blocks, and the ink of each block is
counted: 8x8 numbers of 0..16. The same is done here to printed, typed, draughtsmen's and calculators' digits
(`strokes.yaml`), so that a model trained on these drawings knows how such scans come about and has seen none of them,
nor any handwriting: that gap is what makes the model an imperfect annotator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate, pairwise

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.embedded.digits import CLASS_NAMES

MEDIA = ("printed", "typewriter", "technical", "calculator")
STYLES = ("thin", "bold", "slanted", "narrow", "wide", "small", "blurry", "faint", *MEDIA)

_MEDIA_SHARES = (0.25, 0.25, 0.25, 0.25)
_SHAKE = 0.02  # how far points stray, standard deviation in box sides: no print is perfect
_ODD = 0.2  # share of drawings that are small, of those that are blurry, and of those that are faint
_BITMAP = 32  # side of the black-and-white bitmap, pixels
_BLOCK = 4  # side of the blocks whose ink is counted, pixels
_LINES_AT_ONCE = 8  # their distances to all pixels stay in a cache
_CURVE_POINTS = 64  # points on a digit's whole line: about as close together as the thinnest pen is wide


@dataclass(frozen=True)
class Drawings:
    """B drawings and what is true of them."""

    images: Tensor  # (B, 3, 32, 32) float in 0..1, white ink on black
    labels: Tensor  # (B,) int64, the digit
    styles: Tensor  # (B, len(STYLES)) bool: which style words describe the drawing


def draw(labels: Tensor, generator: torch.Generator) -> Drawings:
    """Draw the digits `labels` (B,) int64 in 0..9, each in a medium, shape, pen and scan quality of its own."""
    batch = len(labels)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    def normal(deviation: float) -> Tensor:
        return deviation * torch.randn(batch, generator=generator)

    def mostly(usual: float, odd: Tensor) -> Tensor:
        return torch.where(uniform(0, 1) < _ODD, odd, usual)

    medium = torch.multinomial(torch.tensor(_MEDIA_SHARES), batch, replacement=True, generator=generator)
    pen, aspect, slant, turn = uniform(2.2, 8.0), uniform(0.45, 1.0), normal(0.22), normal(0.12)
    height, blur, ink = mostly(1.0, uniform(0.6, 0.9)), mostly(0.4, uniform(1.0, 2.2)), mostly(1.0, uniform(0.4, 0.75))

    line = _shape(_lines(medium, labels, generator), aspect, slant, turn)
    line, width = _place(line, pen, height, centre=torch.stack([normal(1.0), normal(0.5)], dim=1) + _BITMAP / 2)
    scan = _scan(line, pen, blur) * ink[:, None, None]
    images = F.interpolate(scan[:, None], scale_factor=_BLOCK, mode="bicubic", antialias=True).clamp(0, 1)

    looks = [pen < 3, pen > 6.5, slant.abs() > 0.25, width < 12, width > 26, height < 0.95, blur > 0.5, ink < 0.95]
    styles = torch.cat([torch.stack(looks, dim=1), F.one_hot(medium, len(MEDIA)).bool()], dim=1)
    return Drawings(images.expand(-1, 3, -1, -1), labels, styles)


def _lines(medium: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Lines (B, L, 2) in the unit box: each digit in a random one of its ways, with a shaking hand."""
    ways = _ways()
    kind = medium * len(CLASS_NAMES) + labels
    choice = ways.first[kind] + (torch.rand(len(labels), generator=generator) * ways.count[kind]).long()
    points = ways.points[choice]
    return ways.smooth[choice] @ (points + _SHAKE * torch.randn(points.shape, generator=generator))


def _shape(line: Tensor, aspect: Tensor, slant: Tensor, turn: Tensor) -> Tensor:
    """Narrow, slant and rotate lines (B, L, 2) by `aspect`, `slant` (widths per height) and `turn` (radians), (B,)."""
    x, y = (line - 0.5).unbind(dim=2)
    x = x * aspect[:, None] - y * slant[:, None]
    cos, sin = torch.cos(turn)[:, None], torch.sin(turn)[:, None]
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=2)


def _place(line: Tensor, pen: Tensor, height: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Size-normalise lines (B, L, 2) to pixels around `centre` (B, 2); also the width (B,) that the ink takes."""
    low, high = line.amin(dim=1), line.amax(dim=1)
    room = (_BITMAP - pen)[:, None] * torch.stack([torch.ones_like(height), height], dim=1)
    scale = (room / (high - low)).amin(dim=1)
    middle = (low + high) / 2
    return (line - middle[:, None]) * scale[:, None, None] + centre[:, None], (high - low)[:, 0] * scale + pen


def _scan(line: Tensor, pen: Tensor, blur: Tensor) -> Tensor:
    """Ink (B, 8, 8), in sixteenths, of lines (B, L, 2) drawn by a round pen; `pen` and `blur` (B,) in pixels."""
    axis = torch.arange(_BITMAP) + 0.5
    nearest = []
    for part in line.split(_LINES_AT_ONCE):
        across, down = ((axis - part[..., i, None]).square() for i in (0, 1))  # (n, L, 32) each
        nearest.append((down[..., :, None] + across[..., None, :]).amin(dim=1))
    distance = torch.cat(nearest).sqrt().flatten(1)
    bitmap = torch.sigmoid((pen[:, None] / 2 - distance) / (blur[:, None] / 2))
    share = F.avg_pool2d(bitmap.view(-1, 1, _BITMAP, _BITMAP), _BLOCK)[:, 0]
    return torch.round(share * _BLOCK**2) / _BLOCK**2


@dataclass(frozen=True)
class _Ways:
    """All W ways of writing. Kind = medium * 10 + digit; its ways are first[kind] .. first[kind] + count[kind] - 1."""

    points: Tensor  # (W, M, 2) points in the unit box, padded with zeros
    smooth: Tensor  # (W, L, M): line = smooth @ points
    first: Tensor  # (30,) int64
    count: Tensor  # (30,) int64


@cache
def _ways() -> _Ways:
    media = yaml.safe_load(resources.files(__package__).joinpath("strokes.yaml").read_text(encoding="utf-8"))
    kinds = [media[medium][name] for medium in MEDIA for name in CLASS_NAMES]
    counts = [len(kind) for kind in kinds]
    parsed = [_parse(way) for kind in kinds for way in kind]
    longest = max(len(points) for points, _ in parsed)
    return _Ways(
        points=torch.stack([F.pad(points, (0, 0, 0, longest - len(points))) for points, _ in parsed]),
        smooth=torch.stack([F.pad(smooth, (0, longest - smooth.shape[1])) for _, smooth in parsed]),
        first=torch.tensor([0, *accumulate(counts)][:-1]),
        count=torch.tensor(counts),
    )


def _parse(way: str) -> tuple[Tensor, Tensor]:
    """The points (M, 2) of one way of writing, and the matrix (L, M) that draws the smooth line through them."""
    points: list[list[float]] = []
    strokes: list[list[int]] = []  # per stroke the numbers of its points, a corner twice
    for stroke in way.split("/"):
        knots: list[int] = []
        for token in stroke.split():
            knots += [len(points)] * (2 if token.endswith("!") else 1)
            points.append([float(value) / 100 for value in token.rstrip("!").split(",")])
        strokes.append(knots)
    spans = [len(_spans(knots)) for knots in strokes]
    lengths = [_CURVE_POINTS * span // sum(spans) for span in spans]
    lengths[0] += _CURVE_POINTS - sum(lengths)
    rows = [_curve(knots, len(points), length) for knots, length in zip(strokes, lengths, strict=True)]
    return torch.tensor(points), torch.cat(rows)


def _curve(knots: list[int], points: int, length: int) -> Tensor:
    """The matrix (length, points) of a uniform Catmull-Rom spline through `knots`, which number some of the points."""
    spans = torch.tensor(_spans(knots))
    at = torch.linspace(0, len(spans), length)
    span = at.long().clamp(max=len(spans) - 1)
    t = at - span
    weights = torch.stack(
        [-(t**3) + 2 * t**2 - t, 3 * t**3 - 5 * t**2 + 2, -3 * t**3 + 4 * t**2 + t, t**3 - t**2], dim=1
    )
    around = (spans[span][:, None] + torch.arange(-1, 3)).clamp(0, len(knots) - 1)  # (length, 4): knots that pull
    return torch.zeros(length, points).scatter_add_(1, torch.tensor(knots)[around], weights / 2)


def _spans(knots: list[int]) -> list[int]:
    """The pieces of a stroke that have a length; piece i leads from knot i to the next, at a corner nowhere."""
    return [i for i, (here, there) in enumerate(pairwise(knots)) if here != there]
