"""Neighbours as a third voice (`method.neighbours`): what is predicted of the rows nearest to a doubtful one.

Which rows those are is found once, before the first epoch, in a space that does not move: the features of a frozen
student, else the annotator's stored embeddings. It takes time in proportion to the square of the number of rows and
4 bytes a row and neighbour, in blocks: nothing has the size N x N.

The idea is AdaContrast's (Chen et al., CVPR 2022), whose neighbours are looked for anew in a moving network's space,
and alone make the label. What is predicted of them is a message of the other network, made when it judges all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.pure.soft_labels import mean_shares
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.soft import Soft

KEYS = 4096  # rows of each replica that all others are compared with at once
QUERIES = {"cpu": 512}  # rows that are compared with them at once: similarities of so many stay in a cache
ACCELERATOR_QUERIES = 16384


@torch.no_grad()
def nearest(space: Tensor, count: int, mesh: Mesh) -> Tensor | None:
    """The `count` nearest rows of the team to each of this replica's, by cosine: (N, D) -> (N, k) int32, nearest first.

    A row is none of its own neighbours; k is smaller where the team has too few rows, and a row that is alone has none:
    None. Rows are numbered through the team in the order of its replicas, as `Mesh.team_concat` puts them. Which of
    equally near ones are taken is not said, but alike wherever the same rows are held. Every replica calls this.
    """
    totals = mesh.team_stack(torch.tensor(len(space))).tolist()
    k = min(count, sum(totals) - 1)
    if k < 1:
        return None
    own = sum(totals[: mesh.replica]) + torch.arange(len(space), device=mesh.device)
    best = torch.full((len(space), k), -2.0, device=mesh.device)  # less than any cosine
    rows = torch.zeros(len(space), k, dtype=torch.int32, device=mesh.device)
    for start in range(0, max(totals), KEYS):
        block = torch.zeros(min(KEYS, max(totals) - start), space.shape[1], device=mesh.device)
        held = space[start : start + len(block)]
        block[: len(held)] = _unit(held, mesh)
        for replica, keys in enumerate(mesh.team_stack(block)):
            keys = keys[: max(totals[replica] - start, 0)]
            first = sum(totals[:replica]) + start
            numbers = torch.arange(first, first + len(keys), device=mesh.device, dtype=torch.int32)
            _keep_the_nearest(best, rows, space, own, keys, numbers, mesh)
    return rows.cpu()


def _keep_the_nearest(
    best: Tensor, rows: Tensor, space: Tensor, own: Tensor, keys: Tensor, numbers: Tensor, mesh: Mesh
) -> None:
    """Let some rows of the team in among the nearest so far, in place.

    Args:
        best, rows: (N, k) cosines and numbers. space: (N, D) and own: (N,) numbers of this replica's rows. keys: (m, D)
            unit and numbers: (m,) of those that are let in.
    """
    at_once, k = QUERIES.get(mesh.device.type, ACCELERATOR_QUERIES), best.shape[1]
    for start in range(0, len(space), at_once):
        some = slice(start, start + at_once)
        alike = _unit(space[some], mesh) @ keys.T
        alike.masked_fill_(own[some, None] == numbers, -torch.inf)
        best_now, place = torch.cat([best[some], alike], dim=1).topk(k, dim=1)
        known = torch.cat([rows[some], numbers.expand(len(alike), -1)], dim=1)
        best[some], rows[some] = best_now, known.gather(1, place)


def voice(neighbours: Tensor, predictions: Soft, num_classes: int, device: torch.device) -> Tensor:
    """The mean of what is predicted of B rows' neighbours (B, k): (B, K) float32; `predictions`: of the whole team."""
    classes, shares = (kept[neighbours.long()].to(device) for kept in (predictions.classes, predictions.shares))
    return mean_shares(classes, shares, num_classes)


def _unit(rows: Tensor, mesh: Mesh) -> Tensor:
    return F.normalize(rows.to(mesh.device).float(), dim=1)
