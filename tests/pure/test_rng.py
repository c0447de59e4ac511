"""Counter-based randomness: stable, independent of batch and order, and of the quality that views need."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coreg_ray.pure.rng import generator, stream, uniform

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROWS = 20_000


def _sample(columns: int = 8) -> torch.Tensor:
    return uniform(stream(0, "sample"), torch.arange(ROWS), columns)


def _splitmix(state: int) -> int:
    """One finaliser of splitmix64 in Python's own whole numbers."""
    state %= 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)


def test_key_is_stable_across_processes_and_versions():
    assert stream(7, "weak", 3, -1) == 6539236793424412124


def test_key_tells_parts_apart_and_fits_63_bits():
    parts = [(), (0,), ("0",), (0, 0), ("ab", "c"), ("a", "bc"), ("abc",), (-1,), (1,)]
    keys = {stream(0, *some) for some in parts} | {stream(1)}
    assert len(keys) == len(parts) + 1
    assert all(0 <= some < 2**63 for some in keys)
    with pytest.raises(ValueError, match=r"1\.5"):
        stream(0, 1.5)


@pytest.mark.parametrize("device", DEVICES)
def test_uniform_equals_the_hash_written_in_whole_numbers(device):
    counters = [0, 1, 2**40, 2**63 - 1, -5]
    some_key, gamma = stream(3, "x"), 0x9E3779B97F4A7C15
    expected = [
        [(_splitmix(_splitmix(some_key + counter * gamma) + column * gamma) >> 40) / 2**24 for column in (1, 2, 3)]
        for counter in counters
    ]
    drawn = uniform(some_key, torch.tensor(counters, device=device), 3)
    assert drawn.dtype == torch.float32
    assert drawn.device.type == device
    assert drawn.tolist() == expected


def test_uniform_depends_on_key_and_counter_only():
    whole = _sample()
    shuffled = torch.randperm(ROWS, generator=generator(0))
    assert torch.equal(uniform(stream(0, "sample"), shuffled, 8), whole[shuffled])
    assert torch.equal(_sample(3), whole[:, :3])
    assert (uniform(stream(1, "sample"), torch.arange(ROWS), 8) == whole).float().mean() < 1e-3


def test_uniform_never_reaches_one():
    values = uniform(stream(0, "edge"), torch.arange(2_000_000), 4)
    assert values.min() >= 0
    assert values.max() < 1
    assert values.max() > 1 - 1e-6


def test_uniform_mean_variance_and_histogram():
    values = _sample().double().numpy()
    deviation = np.sqrt(1 / 12 / ROWS)
    assert np.abs(values.mean(0) - 0.5).max() < 4.5 * deviation
    assert np.abs(values.var(0) - 1 / 12).max() < 4.5 * np.sqrt(1 / 180 / ROWS)
    for column in values.T:
        counts = np.histogram(column, bins=100, range=(0, 1))[0]
        chi_square = ((counts - ROWS / 100) ** 2 / (ROWS / 100)).sum()
        assert 45 < chi_square < 170  # 99 degrees of freedom: 1e-5 on either side


def test_uniform_columns_neighbours_and_keys_are_uncorrelated():
    values = _sample().double().numpy()
    other = uniform(stream(0, "sample", 1), torch.arange(ROWS), 8).double().numpy()
    stacked = np.concatenate([values[1:], values[:-1], other[1:]], axis=1)
    correlation = np.corrcoef(stacked.T) - np.eye(stacked.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(ROWS)


def test_uniform_pairs_fill_the_square():
    values = _sample().double().numpy()
    for first, second in [
        (values[:, 0], values[:, 1]),
        (values[:-1, 0], values[1:, 0]),
        (values[:-2, 7], values[2:, 7]),
    ]:
        counts = np.histogram2d(first, second, bins=10, range=((0, 1), (0, 1)))[0]
        expected = len(first) / 100
        assert 45 < ((counts - expected) ** 2 / expected).sum() < 170


def test_uniform_refuses_other_counters():
    with pytest.raises(ValueError, match="int32"):
        uniform(0, torch.arange(3, dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        uniform(0, torch.arange(3)[:, None], 2)


def test_generator_repeats_itself():
    assert torch.equal(
        torch.randperm(50, generator=generator(stream(1))), torch.randperm(50, generator=generator(stream(1)))
    )
    assert not torch.equal(
        torch.randperm(50, generator=generator(stream(1))), torch.randperm(50, generator=generator(stream(2)))
    )
