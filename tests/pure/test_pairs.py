"""The masks of contrast, entry by entry."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from coreg_ray.pure import pairs

VALID = torch.tensor([True, False, True, True])


def test_masks() -> None:
    own, rest, older = (make(3, VALID) for make in (pairs.own_keys, pairs.all_but_itself, pairs.older))
    for i in range(3):
        assert own[i].tolist() == [j == 3 + i for j in range(10)]
        assert older[i].tolist() == [j >= 6 and bool(VALID[j - 6]) for j in range(10)]
        assert rest[i].tolist() == [j != i and (j < 6 or bool(VALID[j - 6])) for j in range(10)]


def test_nearest_entries_are_those_of_highest_cosine_that_count() -> None:
    random = torch.Generator().manual_seed(0)
    queries, others = (F.normalize(torch.randn(count, 5, generator=random), dim=1) for count in (3, 7))
    entries, counted = torch.cat([queries, others]), pairs.all_but_itself(3, VALID)
    near = pairs.nearest(queries, entries, counted, 4)
    for i in range(3):
        ranking = sorted((j for j in range(10) if counted[i, j]), key=lambda j: -float(queries[i] @ entries[j]))
        assert near[i].nonzero()[:, 0].tolist() == sorted(ranking[:4])
    assert torch.equal(pairs.nearest(queries, entries, counted, 50), counted)
