"""What the label model says of voters, for `voters.csv` and as warnings."""

from __future__ import annotations

from collections.abc import Sequence

from coreg_ray.annotation.card import Card
from coreg_ray.pure.label_model import LabelModel
from coreg_ray.pure.voters import Survey, voters
from coreg_ray.run.voters import VoterLine

_SHOWN = 5
_ABOUT_ALL = "the label model "  # begins a note that all voters have


def voter_lines(
    survey: Survey | None,
    model: LabelModel | None,
    cards: Sequence[Card],
    class_names: list[str],
    true_accuracy: Sequence[float | None],
) -> list[VoterLine]:
    """One line for each voter of all annotators, in their order; none without a label model.

    Args:
        cards: of the annotators. true_accuracy: (V,) where labels are known.
    """
    if survey is None or model is None:
        return []
    named = [(card.folder, prompt) for card in cards for prompt in card.prompts]
    several = len(cards) > 1
    names = [f"{prompt} ({folder})" if several else prompt for folder, prompt in named]
    estimates = voters(survey, model, names, class_names)
    return [
        VoterLine(folder, prompt, one.votes, one.accuracy, one.weight, one.note, true)
        for (folder, prompt), one, true in zip(named, estimates, true_accuracy, strict=True)
    ]


def about_voters(model: LabelModel, lines: Sequence[VoterLine]) -> list[str]:
    """What a person should know of the label model and the voters, in plain words."""
    told = [f"the label model {model.reason}"] if model.reason else []
    odd = []
    for line in lines:
        notes = "; ".join(note for note in line.note.split("; ") if not note.startswith(_ABOUT_ALL))
        if notes:
            odd.append(f"voter {line.voter!r}: {notes}")
    told += odd[:_SHOWN]
    if len(odd) > _SHOWN:
        told.append(f"{len(odd) - _SHOWN} more voters are odd; voters.csv says how")
    return told
