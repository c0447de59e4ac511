"""Co-Reg on Ray: from unlabelled images, class names and a vision-language model to a small classifier.

    model = coreg_ray.load("runs/digits/model")
    classes, probabilities = model.predict(["scan.png", "photo.jpg"])

Importing this package loads neither Ray nor open_clip, and torch only with the first model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coreg_ray.deploy.model import Model

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(folder: str | Path, device: str = "cpu") -> Model:
    """A trained model from its folder: a local path or a URI, such as `RUN/model` or `s3://bucket/run/model`.

    Raises:
        UserError: the folder holds no model, a damaged one, or one of a newer format.
    """
    from coreg_ray.deploy.model import Model

    return Model.load(folder, device)
