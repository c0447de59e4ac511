"""What asynchronous successive halving (ASHA) would have spent on trials whose full histories are known.

The rule is that of Ray Tune's ASHAScheduler: at each rung a trial goes on if its score is not below the quantile
1 - 1/reduction of the scores that were recorded there before, and the first one always does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coreg_ray.search.objective import settled


@dataclass(frozen=True)
class Replay:
    """What a search with early stopping comes to.

    Attributes:
        epochs: that each trial trained, in the order of the trials.
        winner: number of the trial that a search ranks first among those that ran to their end.
    """

    epochs: list[int]
    winner: int


def rungs(longest: int, grace: int, reduction: float) -> list[float]:
    """The epochs at which trials are compared: grace, grace * reduction, ... up to `longest`."""
    epochs = [float(grace)]
    while epochs[-1] * reduction <= longest:
        epochs.append(epochs[-1] * reduction)
    return epochs


def replay(histories: Sequence[Sequence[float]], grace: int, reduction: float = 4, at_once: int = 2) -> Replay:
    """Run trials of known scores as Ray Tune would, `at_once` at a time, all epochs taking equally long.

    Args:
        histories: for each trial, in the order in which they start, its score after every epoch.
    """
    longest = max(map(len, histories))
    recorded: dict[float, dict[int, float]] = {rung: {} for rung in rungs(longest, grace, reduction)}
    waiting = list(range(len(histories)))
    running: list[int] = []
    epochs = [0] * len(histories)
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop(0))
        for trial in list(running):
            score = histories[trial][epochs[trial]]
            epochs[trial] += 1
            if _stops(recorded, trial, epochs[trial], score, reduction) or epochs[trial] == len(histories[trial]):
                running.remove(trial)
    ended = [trial for trial, history in enumerate(histories) if epochs[trial] == len(history)]
    return Replay(epochs, max(ended, key=lambda trial: settled(histories[trial])))


def _stops(recorded: dict[float, dict[int, float]], trial: int, epoch: int, score: float, reduction: float) -> bool:
    """Whether a trial ends at the highest rung that it has reached and not been recorded at; records it there."""
    for rung in sorted(recorded, reverse=True):
        there = recorded[rung]
        if epoch < rung or trial in there:
            continue
        stops = bool(there) and score < np.nanpercentile(list(there.values()), (1 - 1 / reduction) * 100)
        there[trial] = score
        return stops
    return False
