"""What of the method nobody has set, from the number of images: so that 800 photos and 800,000 both start sensibly.

Each value depends on the images alone, and on the epochs what has to fit into them: giving one setting moves no other
but those. How the rules were found: docs/results.md.
"""

from __future__ import annotations

import math

from coreg_ray.config.method import MethodConfig, MethodSettings
from coreg_ray.config.tree import Config


def resolved(method: MethodSettings, images: int, frozen: bool, warm_start: int = 0) -> MethodConfig:
    """The method with all that is empty fitted to a pool.

    Args:
        images: of the pool. frozen: whether heads learn from features of a network that stays as it is.
        warm_start: epochs in which one that does not is held; as many more follow at least.
    """
    given = {name: value for name, value in method.model_dump().items() if value is not None}
    batch = min(_power_of_two(images / 40, 64, 256), max(2, images // 4))
    epochs = method.epochs or max(_epochs(images, frozen), 2 * (method.warmup_epochs or 0), 2 * warm_start)
    warmup = round(0.3 * epochs)
    fitted = {
        "epochs": epochs,
        "warmup_epochs": warmup,
        "contrast_delay": epochs // 10,
        "ramp_epochs": epochs // 5,
        "batch_size": batch,
        "warmup_batch_size": batch,
        "learning_rate": _learning_rate(images, frozen),
        "key_momentum": 0.99 if images < 10_000 else 0.999,
        "queue_size": _power_of_two(0.7 * images, 256, 8192),
    }
    return MethodConfig.model_validate(fitted | given)


def fitted_to_pool(config: Config, images: int, begun: Config | None = None) -> Config:
    """A configuration whose method is whole: what is empty is as the run was begun with, else fitted to its pool.

    Args:
        images: of the pool. begun: what the run was begun with, which may lack the same.
    """
    config = as_begun(config, begun)
    method = resolved(config.method, images, config.student.on_features, config.student.warm_start)
    return config.model_copy(update={"method": MethodSettings(**method.model_dump())})


def as_begun(config: Config, begun: Config | None) -> Config:
    """A configuration with what of its method is empty as the run was begun with, if it was, and had it."""
    kept = {name: getattr(begun.method, name) for name in config.method.empty} if begun else {}
    return config.model_copy(update={"method": config.method.model_copy(update=kept)})


def _epochs(images: int, frozen: bool) -> int:
    """As many as small pools need for some hundred steps; of large ones a bounded number of rows in all.

    Networks that see pixels: the paper's 100 for 50,000 images.
    """
    images = max(images, 1)
    if frozen:
        few = min(100, max(30, 24_000 / images))
        return round(max(10, min(few, 300_000 / images)))
    few = min(100, max(24_000 / images, 30 + images / 700))
    return round(max(20, min(few, 5_000_000 / images)))


def _learning_rate(images: int, frozen: bool) -> float:
    """Networks: from that of small pools to the paper's for 50,000 images."""
    if frozen:
        return 0.02
    return round(max(0.01, min(0.04, 0.04 * (1500 / max(images, 1)) ** 0.4)), 4)


def _power_of_two(number: float, least: int, most: int) -> int:
    """The power of two next to a number, within limits."""
    return min(most, max(least, 2 ** round(math.log2(max(number, 1)))))
