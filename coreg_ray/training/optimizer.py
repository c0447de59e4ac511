"""Stochastic gradient descent with momentum, of one learning rate or of another for a network's encoder.

The arithmetic is torch's own. Its `torch.optim.SGD` around it imports torch's compiler when it is made, which took a
second or two of the start of every worker and of every trial of a search.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.sgd import sgd


class SGD:
    """As `torch.optim.SGD` for one group of parameters, or for two whose learning rates keep their ratio.

    Attributes:
        learning_rate: of the next step; set it at will.
        momenta: the momentum buffer of every parameter that ever had a gradient, by parameter.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        other: Collection[Parameter] = (),
        ratio: float = 1.0,
    ) -> None:
        """`other`: those of the parameters whose learning rate is `ratio` times as high."""
        self._parameters = list(parameters)
        self._other, self._ratio = set(other), ratio
        self.learning_rate = learning_rate
        self.momenta: dict[Parameter, Tensor] = {}
        self._momentum, self._weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient."""
        moving = [parameter for parameter in self._parameters if parameter.grad is not None]
        self._move([parameter for parameter in moving if parameter not in self._other], self.learning_rate)
        self._move([parameter for parameter in moving if parameter in self._other], self.learning_rate * self._ratio)

    def _move(self, moved: list[Parameter], learning_rate: float) -> None:
        if not moved:
            return
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        buffers = [self.momenta.get(parameter) for parameter in moved]
        sgd(
            list(moved), gradients, buffers, lr=learning_rate, momentum=self._momentum, dampening=0.0,
            weight_decay=self._weight_decay, nesterov=False, maximize=False,
        )  # fmt: skip
        if self._momentum:  # the first step made the buffers
            self.momenta.update((moved[i], buffer) for i, buffer in enumerate(buffers) if buffer is not None)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None
