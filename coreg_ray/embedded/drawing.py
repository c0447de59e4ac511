"""Digits drawn by a simulated pen and digitised the way the scans of the embedded set were.

The set's own description (UCI, "optical recognition of handwritten digits") says how a page became numbers: the
size-normalised digit is a 32x32 black-and-white bitmap, which is cut into 4x4 blocks, and the ink of each block is
counted: 8x8 numbers of 0..16. The same is done here to pen strokes (`strokes.yaml`), so that a model trained on these
drawings knows how such scans come about and has seen none of them. The hands are few on purpose: people write digits
in more ways than `strokes.yaml` lists, and that gap is what makes the model an imperfect annotator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.embedded.digits import CLASS_NAMES

MEDIA = ("handwritten", "printed", "calculator")
STYLES = ("thin", "bold", "slanted", "narrow", "wide", "small", "blurry", "faint", *MEDIA)

_MEDIA_SHARES = (0.3, 0.35, 0.35)
_MEDIA_SHAKE = (0.05, 0.02, 0.02)  # how far points stray, standard deviation in box sides
_ODD = 0.2  # share of drawings that are small, of those that are blurry, and of those that are faint
_BITMAP = 32  # side of the black-and-white bitmap, pixels
_BLOCK = 4  # side of the blocks whose ink is counted, pixels
_CURVE_POINTS = 64  # points on a digit's whole line: closer together than the thinnest pen is wide


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
    shake = torch.tensor(_MEDIA_SHAKE)[medium][:, None, None]
    return ways.smooth[choice] @ (points + shake * torch.randn(points.shape, generator=generator))


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
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=2).view(1, -1, 2)
    distance = torch.cdist(pixels.expand(len(line), -1, -1), line).amin(dim=2)
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
    spans = [len(knots) - 1 for knots in strokes]
    lengths = [_CURVE_POINTS * span // sum(spans) for span in spans]
    lengths[0] += _CURVE_POINTS - sum(lengths)
    rows = [_curve(knots, len(points), length) for knots, length in zip(strokes, lengths, strict=True)]
    return torch.tensor(points), torch.cat(rows)


def _curve(knots: list[int], points: int, length: int) -> Tensor:
    """The matrix (length, points) of a uniform Catmull-Rom spline through `knots`, which number some of the points."""
    last = len(knots) - 1
    at = torch.linspace(0, last, length)
    piece = at.long().clamp(max=last - 1)
    t = at - piece
    weights = torch.stack(
        [-(t**3) + 2 * t**2 - t, 3 * t**3 - 5 * t**2 + 2, -3 * t**3 + 4 * t**2 + t, t**3 - t**2], dim=1
    )
    around = (piece[:, None] + torch.arange(-1, 3)).clamp(0, last)  # (length, 4): the knots that pull on each place
    return torch.zeros(length, points).scatter_add_(1, torch.tensor(knots)[around], weights / 2)
