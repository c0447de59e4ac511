"""Rows of thousands of classes, and how large the tensors become that a method makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coreg_ray.pure.rng import generator
from coreg_ray.training.rows import Rows


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation gives."""

    nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        for tensor in answer if isinstance(answer, list | tuple) else [answer]:
            if isinstance(tensor, Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return answer


def many_classes(count: int, num_classes: int) -> Rows:
    sizes = torch.tensor([1, 2]).repeat(count // 2)
    return Rows(
        numbers=torch.arange(count),
        pixels=torch.randint(0, 256, (count, 8, 8, 3), generator=generator(0)).to(torch.uint8),
        num_classes=num_classes,
        indptr=torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        indices=(torch.arange(int(sizes.sum())) % num_classes).int(),
        trusted=torch.zeros(count, dtype=torch.bool),
    )
