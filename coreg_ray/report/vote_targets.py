"""What a student is taught where the answers are votes alone, without embeddings: the most votes, the label model."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.writer import read_card
from coreg_ray.run.folder import RunFolder
from coreg_ray.training.sample import Sample

MAJORITY, MODELLED = "Student of the most votes", "Student of the label model"


def only_votes(run: RunFolder) -> bool:
    """Whether votes from files are all that was said of the pool."""
    used = run.read_used("pool")
    return bool(used) and all(read_card(folder).kind == "votes" for folder in used)


def vote_targets(run: RunFolder, sample: Sample, mode: str) -> dict[str, Tensor]:
    """By the name of a way to learn from votes: its targets (M, K) for a sample of the pool, none of them a true label.

    Args:
        mode: `candidates.mode`; in mode `label_model` the candidates' scores are its posterior.
    """
    shape = (len(sample), sample.candidates.shape[1])
    votes, scores = torch.zeros(shape), torch.zeros(shape)
    order, sampled = np.argsort(sample.numbers), pa.array(sample.numbers)
    for name in run.candidates.entries():
        if not name.endswith(".parquet"):
            continue
        table = read_table(run.candidates, name, ["row", "candidates", "votes", "scores"])
        table = table.filter(pc.is_in(table["row"], sampled)).combine_chunks()
        places = order[np.searchsorted(sample.numbers[order], table["row"].to_numpy())]
        sizes = pc.list_value_length(table["candidates"]).to_numpy()
        at = torch.from_numpy(np.repeat(places, sizes))
        classes = torch.tensor(pc.list_flatten(table["candidates"]).to_numpy(), dtype=torch.int64)
        for target, column in ((votes, "votes"), (scores, "scores")):
            target[at, classes] = torch.tensor(pc.list_flatten(table[column]).to_numpy().astype(np.float32))
    most = torch.nn.functional.one_hot(votes.argmax(dim=1), shape[1]).float()
    modelled = {MODELLED: scores / scores.sum(dim=1, keepdim=True).clamp_min(1e-9)} if mode == "label_model" else {}
    return {MAJORITY: most, **modelled}
