"""Records that anyone could cause: bounded, and counted beyond the bound.

A stranger needs no token to be refused, and a caller beyond a quota none that is valid
for more. One record for each of their refusals would let them fill the disk. So within
an interval the first refusals are recorded one by one, and the others counted: one
record for each kind says how many there were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from security.audit.records import Scalar

__all__ = ["Tally", "TallyLimits"]


@dataclass(frozen=True)
class TallyLimits:
    """How much of what anyone could cause is recorded one by one.

    Attributes:
        interval_s: for which refusals are counted together.
        singles: recorded one by one in an interval, all kinds together.
        max_kinds: kinds that are told apart in an interval; the others are one more.
    """

    interval_s: float = 60.0
    singles: int = 60
    max_kinds: int = 256


class Tally:
    """Counts refusals by what their records have in common."""

    def __init__(
        self,
        limits: TallyLimits = TallyLimits(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._monotonic = monotonic
        self._begin()

    def _begin(self) -> None:
        self._started = self._monotonic()
        self._singles = 0
        self._counts: dict[tuple[tuple[str, Scalar], ...], int] = {}

    def take(self, kind: Mapping[str, Scalar]) -> bool:
        """Whether a refusal is to be recorded by itself; otherwise it is counted.

        Args:
            kind: what is common to the refusals that are counted together.
        """
        if not self._counts and self.due_in_s == 0:
            self._begin()
        if self._singles < self._limits.singles:
            self._singles += 1
            return True
        key = tuple(kind.items())
        if key not in self._counts and len(self._counts) >= self._limits.max_kinds:
            key = (("reason", "other"),)
        self._counts[key] = self._counts.get(key, 0) + 1
        return False

    @property
    def due_in_s(self) -> float:
        """Seconds until the interval ends; 0 when it has."""
        age = self._monotonic() - self._started
        return max(0.0, self._limits.interval_s - age)

    def drain(self) -> list[dict[str, Scalar]]:
        """What was counted, as the fields of records, and begin a new interval."""
        records = [{**dict(key), "count": n} for key, n in self._counts.items()]
        self._begin()
        return records
