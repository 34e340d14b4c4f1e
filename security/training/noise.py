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
from numpy.typing import NDArray

__all__ = [
    "FastRandomness",
    "Randomness",
    "SeededRandomness",
    "SystemRandomness",
    "gaussian",
]

_BITS = 53  # of a double's significand
_TERMS = 4


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
    secure mode, whose generator no longer installs).
    """
    total = np.zeros(count)
    for _ in range(_TERMS):
        total += _box_muller(source, count)
    return total / math.sqrt(_TERMS)


def _box_muller(source: Randomness, count: int) -> NDArray[np.float64]:
    # 1 - u is in (0, 1]: the logarithm is finite, the tail reaches 8.5 deviations.
    radius = np.sqrt(-2.0 * np.log(1.0 - source.uniform(count)))
    angle = 2.0 * np.pi * source.uniform(count)
    result: NDArray[np.float64] = radius * np.cos(angle)
    return result
