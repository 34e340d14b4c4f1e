"""Fixed windows of UTC time, in which everything is counted and released once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from security.errors import MonitoringError

__all__ = ["BELIEVED_S", "PER_YEAR", "Jumps", "Window", "window_at", "window_named"]

# Releases that fall into 365 days at most.
PER_YEAR = {"daily": 365, "weekly": 53, "monthly": 12}

# A clock that is further from where it was has jumped. After so long it is believed.
JUMP_S = 300.0
BELIEVED_S = 3600.0

_NAME = re.compile(r"(\d{4})-(?:W(\d\d)|(\d\d)(?:-(\d\d))?)")


@dataclass(frozen=True, order=True)
class Window:
    """From a moment to before another.

    Attributes:
        start, end: Unix seconds; the end is the next window's start.
        name: ``2026-12-01``, ``2026-W49`` (ISO 8601, from Monday) or ``2026-12``.
        length: "daily", "weekly" or "monthly".
    """

    start: int
    end: int
    name: str
    length: str

    @property
    def middle(self) -> datetime:
        """Of its time, UTC."""
        return datetime.fromtimestamp((self.start + self.end) / 2, UTC)

    @property
    def next(self) -> Window:
        """The one that follows."""
        return window_at(self.length, self.end)

    @property
    def last(self) -> Window:
        """The one before."""
        return window_at(self.length, self.start - 1)


def window_at(length: str, time_s: float) -> Window:
    """The window that a moment falls into.

    >>> window_at("weekly", 1796000000).name
    '2026-W49'

    Args:
        length: "daily", "weekly" or "monthly".
        time_s: Unix seconds.

    Raises:
        MonitoringError: no such length, or a moment beyond the calendar.
    """
    if length not in _KINDS:
        raise MonitoringError(f"no windows are {length}")
    try:
        moment = datetime.fromtimestamp(time_s, UTC)
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        start, end, form = _KINDS[length](day)
    except (OverflowError, ValueError, OSError):
        raise MonitoringError("a moment beyond the calendar") from None
    name = start.strftime(form)
    return Window(int(start.timestamp()), int(end.timestamp()), name, length)


def window_named(name: str) -> Window:
    """The window of a name.

    >>> window_named("2026-12").length
    'monthly'

    Raises:
        MonitoringError: no such name.
    """
    found = _NAME.fullmatch(name)
    if found is not None:
        year, week, month, day = (int(part or 0) for part in found.groups())
        try:
            moment = (
                datetime.fromisocalendar(year, week, 1)
                if found[2]
                else datetime(year, month, day or 1)  # noqa: DTZ001  (UTC follows)
            )
            length = "weekly" if found[2] else "daily" if found[4] else "monthly"
            window = window_at(length, moment.replace(tzinfo=UTC).timestamp())
            if window.name == name:
                return window
        except ValueError:
            pass
    raise MonitoringError(f"{name[:20]!r} is no window's name")


class Jumps:
    """Sees whether a clock is not where it was, so that no window can be told by it."""

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float]) -> None:
        """Believe the clock as it is now.

        Args:
            clock: Unix seconds.
            steady: seconds that go on also while the machine sleeps, and never jump.
        """
        self._clock, self._steady = clock, steady
        self._ahead = clock() - steady()
        self._since: float | None = None

    def seen(self) -> bool:
        """Whether the clock cannot be believed now."""
        steady, ahead = self._steady(), self._clock() - self._steady()
        if abs(ahead - self._ahead) <= JUMP_S:
            self._since = None
        elif self._since is None:
            self._since = steady
        elif steady - self._since > BELIEVED_S:
            self._ahead, self._since = ahead, None
        return self._since is not None


def _daily(day: datetime) -> tuple[datetime, datetime, str]:
    return day, day + timedelta(days=1), "%Y-%m-%d"


def _weekly(day: datetime) -> tuple[datetime, datetime, str]:
    monday = day - timedelta(days=day.weekday())
    return monday, monday + timedelta(days=7), "%G-W%V"


def _monthly(day: datetime) -> tuple[datetime, datetime, str]:
    first = day.replace(day=1)
    return first, (first + timedelta(days=31)).replace(day=1), "%Y-%m"


_KINDS: dict[str, Callable[[datetime], tuple[datetime, datetime, str]]] = {
    "daily": _daily,
    "weekly": _weekly,
    "monthly": _monthly,
}
