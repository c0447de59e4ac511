"""Co-Reg on Ray: from unlabelled images, class names and a vision-language model to a small classifier.

    run = coreg_ray.train("runs/digits", preset="digits")
    classes, probabilities = run.model().predict(["scan.png", "photo.jpg"])
    model = coreg_ray.load("runs/digits/model")

Importing this package loads neither Ray nor open_clip, and torch only with the first model.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreg_ray.commands.api import annotate, compare, labels, train
    from coreg_ray.commands.results import Comparison, Labels, Run
    from coreg_ray.config import Config
    from coreg_ray.deploy.model import Model
    from coreg_ray.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Config",
    "Labels",
    "Run",
    "UserError",
    "__version__",
    "annotate",
    "compare",
    "labels",
    "load",
    "train",
]
_LATE = {  # public names -> the module that has them, loaded with the first use
    **dict.fromkeys(("annotate", "compare", "labels", "train"), "coreg_ray.commands.api"),
    **dict.fromkeys(("Comparison", "Labels", "Run"), "coreg_ray.commands.results"),
    "Config": "coreg_ray.config",
    "UserError": "coreg_ray.errors",
}


def load(folder: str | Path, device: str = "cpu") -> Model:
    """A trained model from its folder: a local path or a URI, such as `RUN/model` or `s3://bucket/run/model`.

    `hf://ORG/NAME` and `hf://ORG/NAME@REVISION` are on the Hugging Face Hub (extra `hub`); what was fetched once is
    read from the Hub's cache without a network.

    Raises:
        UserError: the folder holds no model, a damaged one, or one of a newer format; or the Hub cannot be reached.
    """
    from coreg_ray.deploy.model import Model

    return Model.load(folder, device)


if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
