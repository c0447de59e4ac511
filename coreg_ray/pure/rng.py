"""Random numbers that depend only on what they are for, never on placement, batch order or device.

A *stream* is one purpose (seed, "weak", epoch, ...), a *counter* names the row; their hash is the number. So a row's
view is the same in any batch, on any worker, after any restart. The hash is splitmix64 (Steele, Lea, Flood: "Fast
splittable pseudorandom number generators", OOPSLA 2014) in wrapping int64 arithmetic, which every device computes
alike. PURE: torch only.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MANTISSA = 24  # bits of a float32: k / 2**24 is exact and never 1.0


def stream(seed: int, *parts: int | str) -> int:
    """A 63-bit number for one purpose, the same in every process and version: blake2b of the seed and the parts.

    The number 1 and the text "1" are different parts, and so are ("ab", "c") and ("a", "bc").
    Raises ValueError when a part is neither a whole number nor text.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *parts):
        if not isinstance(part, int | str):
            raise ValueError(f"stream part {part!r} is a {type(part).__name__}; parts are int or str: convert it first")
        text = f"{'s' if isinstance(part, str) else 'i'}{part}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def uniform(stream: int, counters: Tensor, count: int) -> Tensor:
    """Uniform numbers for rows: counters (B,) int64 -> (B, count) float32 in [0, 1), on the counters' device.

    Row b holds the numbers of `(stream, counters[b])` and of nothing else; column c does not depend on `count`.
    Raises ValueError for counters that are not (B,) int64.
    """
    if counters.dtype != torch.int64 or counters.dim() != 1:
        raise ValueError(f"counters are {counters.dtype} of shape {tuple(counters.shape)}; pass int64 of shape (B,)")
    columns = torch.arange(1, count + 1, device=counters.device) * _GAMMA
    rows = _mix(counters * _GAMMA + _signed(stream))
    bits = _shifted(_mix(rows[:, None] + columns), 64 - _MANTISSA)
    return bits.to(torch.float32) * 2.0**-_MANTISSA


def generator(stream: int) -> torch.Generator:
    """A CPU generator seeded from the stream, for what needs a stream: permutations, beta draws."""
    return torch.Generator().manual_seed(stream)


def _mix(state: Tensor) -> Tensor:
    """The splitmix64 finaliser (variant 13 of Stafford): every input bit moves every output bit. Any shape, int64."""
    state = (state ^ _shifted(state, 30)) * _MULTIPLIER_1
    state = (state ^ _shifted(state, 27)) * _MULTIPLIER_2
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign of an int64."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """A 64-bit pattern as the int64 that has it."""
    return (number + 2**63) % 2**64 - 2**63


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)
