"""Who talks to whom: processes as (network x replica), or the identity when alone.

The replicas of one network are a *team* (contiguous ranks); the two processes with the same replica number are a
*pair*. A world of one holds both networks, and every operation below returns what it was given.
This is the only file that communicates through `torch.distributed`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from coreg_ray.errors import UserError

_TEXT = 2000  # bytes of a message that all processes learn of


class Mesh:
    """This process's place among all, and the few ways in which it may communicate.

    Attributes:
        networks: the networks this process trains: (0, 1) when alone, else (0,) or (1,).
        replica, replicas: which part of the rows it holds, of how many.
        rank, world: as usual.
        seconds: time spent communicating since `take_seconds` was last called.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Join the default process group if there is one.

        Raises:
            UserError: the world is odd and larger than one, so two equal teams are impossible.
        """
        self.device = torch.device(device)
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.seconds = 0.0
        self._graded: list[Tensor] = []
        if self.world == 1:
            self.networks: tuple[int, ...] = (0, 1)
            self.replica, self.replicas = 0, 1
            return
        if self.world % 2:
            raise UserError(f"num_workers={self.world} cannot hold two equal teams; use 1 or an even number")
        self.replicas = self.world // 2
        network, self.replica = divmod(self.rank, self.replicas)
        self.networks = (network,)
        grid = init_device_mesh(self.device.type, (2, self.replicas), mesh_dim_names=("network", "replica"))
        self._team = grid.get_group("replica")
        self._pair = grid.get_group("network")

    # Inside a team: the replicas of one network.

    def team_sum(self, tensor: Tensor) -> Tensor:
        """The sum over the team, of any shape; every member gets it."""
        return self._reduce(tensor, dist.ReduceOp.SUM, team=True)

    def team_max(self, tensor: Tensor) -> Tensor:
        """The element-wise maximum over the team."""
        return self._reduce(tensor, dist.ReduceOp.MAX, team=True)

    def team_stack(self, tensor: Tensor) -> Tensor:
        """Every member's tensor, all of one shape, stacked in replica order: (...) -> (replicas, ...)."""
        if self.replicas == 1:
            return tensor[None]
        start = time.perf_counter()
        mine = self._sendable(tensor).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.replicas)]
        dist.all_gather(parts, mine, group=self._team)
        self.seconds += time.perf_counter() - start
        return torch.stack(parts).to(tensor.device)

    def team_concat(self, tensor: Tensor) -> list[Tensor]:
        """Every member's tensor in replica order; their lengths may differ. Once an epoch, not in a step."""
        if self.replicas == 1:
            return [tensor]
        lengths = self.team_stack(torch.tensor(len(tensor))).tolist()
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return [part[:length] for part, length in zip(self.team_stack(padded), lengths, strict=True)]

    def reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the team's gradients, in place, in one flat message.

        Losses are already divided by the whole team's rows, so the sum is the gradient of the team's batch. A replica
        without rows in this step sends zeros for what had a gradient in its last step; a parameter without gradient
        stays without one.
        """
        if self.replicas == 1:
            return
        graded = [parameter for parameter in parameters if parameter.grad is not None]
        if graded:
            self._graded = graded
        for parameter in self._graded:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._graded if parameter.grad is not None]
        flat = self.team_sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    # Inside a pair: the two networks over the same rows.

    def swap(self, messages: dict[int, Tensor]) -> dict[int, Tensor]:
        """Hand each held network the other's message: {network: its own} -> {network: the other's}.

        Both messages have one shape, since the members of a pair hold the same rows and the same architecture.
        """
        if self.world == 1:
            return {0: messages[1].clone(), 1: messages[0].clone()}
        start = time.perf_counter()
        (network,) = self.networks
        mine = self._sendable(messages[network]).contiguous()
        both = [torch.empty_like(mine), torch.empty_like(mine)]
        dist.all_gather(both, mine, group=self._pair)
        self.seconds += time.perf_counter() - start
        return {network: both[1 - network].to(messages[network].device)}

    # All together.

    def world_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduce(tensor, dist.ReduceOp.SUM, team=False)

    def world_max(self, tensor: Tensor) -> Tensor:
        """The element-wise maximum over all processes."""
        return self._reduce(tensor, dist.ReduceOp.MAX, team=False)

    def barrier(self) -> None:
        """Return when every process has come here."""
        self.world_sum(torch.zeros(1))

    def first_text(self, text: str | None) -> str | None:
        """The text of the lowest rank that has one, on every process; None where none has."""
        speaker = -int(self.world_max(torch.tensor(-self.rank if text else -self.world)))
        if speaker == self.world:
            return None
        letters = torch.zeros(_TEXT, dtype=torch.int32)
        if text and self.rank == speaker:
            own = torch.tensor(list(text.encode()[:_TEXT]), dtype=torch.int32)
            letters[: len(own)] = own
        return bytes(self.world_sum(letters).tolist()).rstrip(b"\0").decode(errors="replace")

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one process cannot do, for example write to a disk that is full, none goes on to do.

        All processes leave the block together, each with the UserError of the first that raised one in it. Nothing in
        the block may communicate where one of them may have failed already.
        """
        refusal = None
        try:
            yield
        except UserError as error:
            refusal = str(error)
            if self.world > 1:
                refusal += f" (said by worker {self.rank} of {self.world} on {socket.gethostname()})"
        refusal = self.first_text(refusal)
        if refusal is not None:
            raise UserError(refusal)

    def decide(self, choose: Callable[[], str | None]) -> str | None:
        """What rank 0 chooses, on every process, so that none sees another state of a folder than the rest.

        Raises:
            UserError: `choose` did; on every process alike.
        """
        with self.together():
            choice = choose() if self.rank == 0 else None
        return self.first_text(choice)

    def take_seconds(self) -> float:
        """Seconds spent communicating since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType, team: bool) -> Tensor:
        if (self.replicas if team else self.world) == 1:
            return tensor
        start = time.perf_counter()
        result = self._sendable(tensor).clone()
        dist.all_reduce(result, operation, group=self._team if team else None)
        self.seconds += time.perf_counter() - start
        return result.to(tensor.device)

    def _sendable(self, tensor: Tensor) -> Tensor:
        """NCCL sends what lies on the GPU, gloo what lies in memory."""
        return tensor.to(self.device)
