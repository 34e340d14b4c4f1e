"""Medians of alternating rounds, so that a noisy machine disturbs all sides alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(
    cases: Mapping[str, Callable[[], object]], *, rounds: int, repeat: int
) -> dict[str, float]:
    """Seconds of CPU per call: the median over rounds in which every case runs once."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
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
