"""Medians of alternating rounds, so that a noisy machine disturbs all sides alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """What several rounds gave: their median, their least and most, their number."""

    median: float
    least: float
    most: float
    rounds: int


def spread_of(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def alternate(
    cases: Mapping[str, Callable[[], object]], *, rounds: int, repeat: int
) -> dict[str, float]:
    """Seconds of CPU per call: the median over rounds in which every case runs once.

    The rounds are those of `rounds_of`.
    """
    samples = cpu_rounds(cases, rounds=rounds, repeat=repeat)
    return {name: statistics.median(values) for name, values in samples.items()}


def cpu_rounds(
    cases: Mapping[Name, Callable[[], object]], *, rounds: int, repeat: int
) -> dict[Name, list[float]]:
    """Seconds of this process's CPU per call, a value for each round."""

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            began = time.process_time()
            for _ in range(repeat):
                call()
            return (time.process_time() - began) / repeat

        return run

    return rounds_of({name: timed(call) for name, call in cases.items()}, rounds=rounds)


def rounds_of(
    cases: Mapping[Name, Callable[[], float]], *, rounds: int
) -> dict[Name, list[float]]:
    """What each case gives, a value for each round, in which every case runs once.

    Every other round runs backwards, and one before them is not counted: no case is
    always the one that pays for fresh memory or cold caches.
    """
    samples: dict[Name, list[float]] = {name: [] for name in cases}
    forwards = list(cases.items())
    for call in cases.values():
        call()
    for number in range(rounds):
        for name, call in forwards if number % 2 else reversed(forwards):
            samples[name].append(call())
    return samples


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
