"""What a busy machine may spoil once, and not each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from security.monitoring.windows import window_at

TRIES = 10
T = TypeVar("T")


class SpoiledError(AssertionError):
    """This try took too long; another one may not."""


def in_time(began: float, most_s: float, *, now: float | None = None) -> None:
    """End a try that took too long.

    Args:
        began: of `time.monotonic`, or of another clock.
        most_s: what it may take.
        now: of that clock.
    """
    took_s = (time.monotonic() if now is None else now) - began
    if took_s >= most_s:
        raise SpoiledError(f"{took_s:.3f} s, and not less than {most_s} s")


def once(scene: Callable[[], T]) -> T:
    """The result of the first of ten tries that nothing else on the machine spoils.

    What takes too long by itself does so in each of them. All else that a scene asserts
    must hold in every try.
    """
    for _ in range(TRIES - 1):
        try:
            return scene()
        except SpoiledError:
            continue
    return scene()


def clear_of_midnight(needed_s: float = 300.0) -> None:
    """Wait for the next day (UTC) where this one ends too soon for what comes now."""
    _clear_of_the_end("daily", needed_s)


def clear_of_sunday_night(needed_s: float = 1800.0) -> None:
    """Wait for the next week (UTC), in the same way."""
    _clear_of_the_end("weekly", needed_s)


def _clear_of_the_end(length: str, needed_s: float) -> None:
    now = time.time()
    left_s = window_at(length, now).end - now
    if left_s < needed_s:
        time.sleep(left_s + 1)
