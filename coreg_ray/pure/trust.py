"""Whether networks and votes together are more right than the votes alone. PURE: torch only.

Nobody knows that for certain without labels; where a person has reviewed ENOUGH images, those decide. What the rest
goes by, and where the limits come from: docs/results.md.

1. A label model that is believed has found voters who err independently, so its posterior says how sure to be of every
   vote, and networks can only move labels that are in doubt. They must have learned something: on images that they
   were not trained on they name the votes' class for a fair share of the surest half, held against how sure the votes
   are of these. But where they do so much oftener than the votes claim to be right, the votes are better than the label
   model dares to say, or wrong together with the networks: either way networks are then heard too much.
2. Where many images have no class with the most votes, votes alone take whichever comes first. Networks that have
   learned something know better.
3. Otherwise only the networks can tell that votes are wrong, and they learn what votes have in common. Then they must
   find few candidate sets unsound and agree with most of the surest half, or, where they find more unsound, with nearly
   all of it. Networks that were never asked about candidate sets cannot tell.

Networks that find nearly half of the candidate sets unsound are never trusted above the votes: either they have learned
little, or the annotators are worth so little that nobody can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coreg_ray.pure import interval

if TYPE_CHECKING:  # commands that only speak of it need no torch
    from torch import Tensor

ENOUGH = interval.FEWEST  # reviewed images that decide
FEWEST = 10  # images that agreement is told from
LEARNED = 0.45  # least agreement, as a share of what the votes are sure of, where networks only have to have learned
SURER = 1.2  # most agreement, as such a share: as often as the votes are sure of, and what chance may add
LOST = 0.4  # doubt from which on they contradict the votes more than they can know
TIED = 0.2  # share of images without a class with the most votes from which on networks are better at choosing
EQUAL = 1e-3  # probabilities that differ by less
ALIKE = ((0.8, 0.2), (0.9, 0.3))  # of other pools: least agreement, and the largest doubt that it makes up for


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on.

    Attributes:
        believed: whether the votes' side is the posterior of a label model that is believed.
        doubt: share of the candidate sets that the networks find unsound, None where they were never asked.
        agreement: of both networks together with the votes, on the surest half of `images` that no network was trained
            on; None where these are too few.
        sureness: how sure the votes are of those. tied: share of all images that have no one likeliest class.
    """

    believed: bool
    doubt: float | None
    agreement: float | None
    images: int
    sureness: float = 1.0
    tied: float = 0.0

    @property
    def improved(self) -> bool:
        """Whether the labels of networks and votes together are to be trusted above those of the votes alone."""
        if self.agreement is None or (self.doubt or 0.0) >= LOST:
            return False
        if self.believed and self.agreement > SURER * self.sureness:
            return False
        if self.believed or self.tied >= TIED:
            return self.agreement >= LEARNED * self.sureness
        if self.doubt is None:
            return False
        return any(self.agreement >= least and self.doubt <= most for least, most in ALIKE)


@dataclass(frozen=True)
class Reviewed:
    """Images whose true class a person has told.

    Attributes:
        images: how many. mended: of them, only networks and votes together are right. spoilt: only the votes alone are.
    """

    images: int
    mended: int
    spoilt: int

    @property
    def enough(self) -> bool:
        """Whether they are asked at all."""
        return self.images >= ENOUGH

    @property
    def gain(self) -> tuple[float, float]:
        """What networks and votes together have more right than the votes alone, as a share of such images: a 95 %
        interval, by Wilson's for the share of `mended` among the images on which one alone is right (as in McNemar's
        test the others say nothing)."""
        differ = self.mended + self.spoilt
        if not differ:
            return 0.0, 0.0
        low, high = ((2 * share - 1) * differ / self.images for share in interval.wilson(self.mended, differ))
        return low, high

    @property
    def improved(self) -> bool | None:
        """The verdict; None where too few images were reviewed, or where they allow both."""
        low, high = self.gain
        if not self.enough or low <= 0 <= high:
            return None
        return low > 0


def weigh(annotator: Tensor, logits: Tensor, apart: Tensor, believed: bool, doubt: float | None) -> Evidence:
    """The evidence in a sample of B images.

    Args:
        annotator: (B, K) distributions of the votes' side. logits: (n, B, K) of n networks. apart: (B,) bool, which
            images no network was trained on. believed, doubt: as `Evidence` has them.
    """
    if not len(annotator):
        return Evidence(believed, doubt, None, 0)
    first, second = annotator.topk(2, dim=1).values.T if annotator.shape[1] > 1 else (annotator[:, 0], 0.0)
    tied = float((first - second < EQUAL).double().mean())
    counted = apart & (first >= first.median())
    images = int(counted.sum())
    if images < FEWEST:
        return Evidence(believed, doubt, None, images, tied=tied)
    same = logits.sum(dim=0).argmax(dim=1) == annotator.argmax(dim=1)
    agreement, sureness = (float(value[counted].double().mean()) for value in (same, first))
    return Evidence(believed, doubt, agreement, images, sureness, tied)
