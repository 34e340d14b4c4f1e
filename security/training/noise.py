"""Randomness of the mechanism.

The guarantee assumes that nobody can predict the noise or the batches. Torch seeds its
CPU generator with 32 bits, which can be tried one by one, so randomness comes from the
operating system, and a seed exists for tests only.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "FastRandomness",
    "Randomness",
    "SeededRandomness",
    "SystemRandomness",
    "gaussian",
]

_BITS = 53  # of a double's significand
_TERMS = 4
_PIECE = 1 << 14  # pairs drawn at once: they stay in the cache


class Randomness(Protocol):
    """A source of uniform numbers, with a name for the evidence."""

    @property
    def name(self) -> str:
        """What the evidence calls it."""

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Independent numbers in [0, 1), multiples of 2^-53, shape ``(count,)``."""


class SystemRandomness:
    """The operating system's cryptographic generator."""

    name = "os_urandom"

    def uniform(self, count: int) -> NDArray[np.float64]:
        """See `Randomness.uniform`."""
        words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
        whole = (words >> np.uint64(64 - _BITS)).astype(np.float64)
        return whole * np.float64(2.0**-_BITS)


class FastRandomness:
    """A fast generator whose state its outputs reveal: for benchmarks only."""

    name = "pcg64_not_secure"

    def __init__(self) -> None:
        self._generator = np.random.default_rng(int.from_bytes(os.urandom(16), "big"))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """See `Randomness.uniform`."""
        return self._generator.random(count)


class SeededRandomness:
    """Repeatable, so not private: for tests. The evidence says which one was used."""

    name = "seeded_not_private"

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """See `Randomness.uniform`."""
        return self._generator.random(count)


def gaussian(source: Randomness, count: int) -> NDArray[np.float64]:
    """Standard normal numbers, shape ``(count,)``.

    One floating-point Gaussian leaks: which doubles it can take reveals what it was
    added to (Mironov 2012). Each number here is the scaled sum of four, so that an
    observer must invert all of them at once (Holohan and Braghin 2021, as in Opacus'
    secure mode, whose generator no longer installs). As there, both numbers that
    Box and Muller's method makes of a pair are used, in different sums: two results
    are functions of eight uniform numbers, 424 bits of which they show 106 at most.
    """
    half = -(-count // 2)
    parts = [_sums(source, min(_PIECE, half - at)) for at in range(0, half, _PIECE)]
    total = torch.cat(parts, dim=1) if parts else torch.zeros(2, 0)
    result: NDArray[np.float64] = total.flatten()[:count].numpy()
    return result


def _sums(source: Randomness, half: int) -> Tensor:
    """Scaled sums of four, each of other pairs, shape ``(2, half)``.

    In torch: its cosine is seven times as fast as numpy's.
    """
    uniform = torch.from_numpy(source.uniform(2 * _TERMS * half))
    first, second = uniform.view(2, _TERMS, half)
    # 1 - u is in (0, 1]: the logarithm is finite, the tail reaches 8.5 deviations.
    radius = (1.0 - first).log_().mul_(-2.0 / _TERMS).sqrt_()
    angle = second * (2.0 * math.pi)
    return torch.stack(((radius * angle.cos()).sum(0), (radius * angle.sin()).sum(0)))
