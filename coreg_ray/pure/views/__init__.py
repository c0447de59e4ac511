"""Weak and strong views of uint8 images, in batches, on any device."""

from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, Policy, mixup, strong, weak

__all__ = ["STRONG_DRAWS", "WEAK_DRAWS", "Policy", "mixup", "strong", "weak"]
