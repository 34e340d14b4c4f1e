"""Medians of alternating rounds, so that a noisy machine disturbs all sides alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(
    cases: Mapping[str, Callable[[], object]], *, rounds: int, repeat: int
) -> dict[str, float]:
    """Seconds of CPU per call: the median over rounds in which every case runs once.

    Every other round runs backwards, and one before them is not counted: no case is
    always the one that pays for fresh memory or cold caches.
    """
    samples: dict[str, list[float]] = {name: [] for name in cases}
    forwards = list(cases.items())
    for call in cases.values():
        call()
    for number in range(rounds):
        for name, call in forwards if number % 2 else reversed(forwards):
            began = time.process_time()
            for _ in range(repeat):
                call()
            samples[name].append((time.process_time() - began) / repeat)
    return {name: statistics.median(values) for name, values in samples.items()}


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
