"""The sets of the paper's experiments: their class names, and which views their images bear (METHOD: section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Literal

import yaml

from coreg_ray.config import Config, StudentConfig


@dataclass(frozen=True)
class PaperSet:
    """One of the sets.

    Attributes:
        torchvision: the class of `torchvision.datasets` that reads it.
        class_names: K names where the paper did not take torchvision's own, else empty.
        mirror_changes_class: whether a mirrored image may belong to another class.
        views: its strong views; `hole`: crop, flip and one hole instead of colour and shape operations.
    """

    torchvision: str
    class_names: tuple[str, ...] = ()
    mirror_changes_class: bool = False
    views: Literal["randaugment", "hole"] = "randaugment"


def _read() -> dict[str, PaperSet]:
    text = resources.files(__package__).joinpath("paper_sets.yaml").read_text(encoding="utf-8")
    sets = yaml.safe_load(text)
    return {
        name: PaperSet(**{**entry, "class_names": tuple(entry.get("class_names", ()))}) for name, entry in sets.items()
    }


PAPER_SETS = _read()


def explicit_student(config: Config) -> StudentConfig:
    """The student section with `flip` and `views` filled in as the source demands (METHOD: section 5)."""
    student, paper = config.student, PAPER_SETS.get(config.source.name or "")
    mirrored = config.source.kind == "digits" or (paper is not None and paper.mirror_changes_class)
    flip = not mirrored if student.flip is None else student.flip
    views = student.views
    if views == "auto":
        views = paper.views if paper else "randaugment"
    return student.model_copy(update={"flip": flip, "views": views})
