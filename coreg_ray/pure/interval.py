"""What some reviewed images allow to say about the rest: Wilson's interval for a share."""

from __future__ import annotations

import math

Z = 1.959963985  # 95 %
FEWEST = 100  # images below which nothing is said


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of which `right` of `count` were seen (Wilson 1927); count at least 1."""
    share = right / count
    centre = share + Z**2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    whole = 1 + Z**2 / count
    return max(0.0, (centre - spread) / whole), min(1.0, (centre + spread) / whole)
