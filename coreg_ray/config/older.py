"""Configurations that older versions wrote: what they lack, and what they meant by it."""

from __future__ import annotations

import copy
from typing import Any

# Settings in the order in which they were added, each with the value that reproduces the versions without it.
# A new setting that decides a result gets its line here, and a test.
ADDED: dict[str, Any] = {
    "method.weak_views": 2,  # pseudo-labels were made from two weak views a network, as the paper has it
    "source.subset": None,  # a Hugging Face set had to have one configuration alone
    "test.subset": None,
    "student.frozen": False,  # every network was trained whole, by one learning rate
    "student.frozen_views": 8,
    "student.dropout": 0.2,
    "student.backbone_learning_rate": None,
    "annotator.votes": None,  # there were no answers but a model's
    "annotator.voters": None,
    "annotator.scores": "votes",
    "candidates.align": "none",
    "candidates.weighted": False,  # every candidate of a set counted alike
    "source.descriptions": None,  # classes were known by their names alone
    "source.description_votes": "each",
    "method.kind": "coreg",
    "method.labels": "candidates",
    "method.clean": "mixture",
    "student.batch_norm": "trained",  # of a timm model that learned, nothing was held
    "student.warm_start": 0,
    "method.neighbours": 0,  # nobody but the two networks made labels
    "method.distil.prompt": None,  # it learned the mean of all prompts
}


def completed(tree: dict[str, Any]) -> dict[str, Any]:
    """A run's stored settings, with those that its version lacked at the values that reproduce it; a copy."""
    whole = copy.deepcopy(tree)
    for key, value in ADDED.items():
        *sections, name = key.split(".")
        branch = whole
        for section in sections:
            branch = branch.setdefault(section, {})
        for one in [branch, *alike(whole, sections)]:
            one.setdefault(name, value)
    return whole


def alike(tree: dict[str, Any], sections: list[str]) -> list[dict[str, Any]]:
    """The further annotators of a tree where the sections are the annotator's: they have its settings."""
    return list(tree.get("further_annotators", [])) if sections == ["annotator"] else []
