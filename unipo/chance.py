"""Random numbers that depend only on what they are for, so that no order of work changes a random choice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLY_1 = -0x40A7B892E31B1A47  # 0xbf58476d1ce4e5b9 as a signed 64-bit integer
_MULTIPLY_2 = -0x6B2FB644ECCEEE15  # 0x94d049bb133111eb
_GAMMA = -0x61C8864680B583EB  # 0x9e3779b97f4a7c15


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def wrapped(number: int) -> int:
    """An integer of any size as the signed 64-bit one that tensors and generators can hold."""
    return (number + 2**63) % 2**64 - 2**63


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 -> int64, well mixed (Steele, Lea, Flood 2014)."""
    x = (x ^ _shift(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift(x, 27)) * _MULTIPLY_2
    return x ^ _shift(x, 31)


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """Float64 in [0, 1) from (seed, position). Both int64, same shape."""
    bits = mix(mix(seed + _GAMMA) + (position + 1) * _GAMMA)
    return _shift(bits, 11).to(torch.float64) * 2.0**-53


def normal(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal numbers in float32 that depend on `seed` and their place alone."""
    count = math.prod(shape)
    chance = uniform(mix(torch.tensor(seed)).expand(count), torch.arange(count))
    # The middle of each of the 2^53 intervals, so that the lower end is not infinite.
    return (math.sqrt(2) * torch.erfinv(2 * chance + 2.0**-53 - 1)).to(torch.float32).view(*shape)


def token_chances(sample_id: Tensor, position: Tensor, step: int, count: int) -> Tensor:
    """[n, count] uniform numbers for tokens, by response (unique in the run), place in it, and step."""
    draws = mix(torch.arange(1, count + 1, device=sample_id.device))
    seed = mix(mix(sample_id) + step)[:, None] ^ draws
    return uniform(seed, position[:, None].expand_as(seed))
