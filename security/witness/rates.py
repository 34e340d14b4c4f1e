"""How often each log may have a checkpoint cosigned."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Rate", "Rates"]


@dataclass(frozen=True)
class Rate:
    """A bucket of tokens.

    Attributes:
        burst: how many it holds; it begins full.
        every_s: how long until there is another one.
    """

    burst: int = 30
    every_s: float = 5.0


class Rates:
    """A bucket for each log. What it holds is forgotten at a restart."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        # Of each origin: how many tokens there were at a time.
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, origin: str, now_s: float) -> float:
        """How long until the log has a token; 0 if it has one."""
        return max(0.0, 1 - self._tokens(origin, now_s)) * self._rate.every_s

    def take(self, origin: str, now_s: float) -> None:
        """Take one. The caller knows that there is one."""
        self._buckets[origin] = self._tokens(origin, now_s) - 1, now_s

    def _tokens(self, origin: str, now_s: float) -> float:
        tokens, then_s = self._buckets.get(origin, (float(self._rate.burst), now_s))
        # A clock that is put back gives nothing.
        fresh = max(0.0, now_s - then_s) / self._rate.every_s
        return min(float(self._rate.burst), tokens + fresh)
