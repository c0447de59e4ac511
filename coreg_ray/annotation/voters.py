"""What the label model says of voters, for `voters.csv` and as warnings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coreg_ray.annotation.card import Card
from coreg_ray.pure.label_model import LabelModel
from coreg_ray.pure.voters import Survey, voters
from coreg_ray.run.voters import Mistake, VoterLine, Voters

_SHOWN, _MISTAKES = 5, 3
_MOST_CLASSES, _MOST_CELLS = 20, 10_000  # of tables that are drawn
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


def voters_for_the_report(lines: Sequence[VoterLine], model: LabelModel, class_names: list[str]) -> Voters:
    """What `candidates/voters.json` holds: the lines, and whom each voter takes for whom by the label model."""
    table, classes = model.table, len(class_names)
    if table.ndim == 2 or not lines:
        return Voters(list(lines), model.reason)
    wrong = table * (1 - torch.eye(classes, dtype=table.dtype))
    often = (model.prior[:, None] * wrong).flatten(start_dim=1)  # (V, K K)
    mistakes = []
    for line, voter, worst in zip(lines, table, often.topk(min(_MISTAKES, classes**2)).indices, strict=True):
        cells = [(voter[k // classes, k % classes].item(), k // classes, k % classes) for k in worst.tolist()]
        known = [Mistake(class_names[c], class_names[v], round(share, 4)) for share, c, v in cells if c != v]
        mistakes.append(known if line.votes else [])
    small = classes <= _MOST_CLASSES and table.numel() <= _MOST_CELLS
    return Voters(list(lines), model.reason, mistakes, (100 * table).round().int().tolist() if small else None)


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
