"""Windows are fixed in UTC, follow each other without a gap, and have one name."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from security.errors import MonitoringError
from security.monitoring.windows import PER_YEAR, window_at, window_named


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("length", "moment", "name", "start", "end"),
    [
        ("daily", "2026-12-01T23:59:59", "2026-12-01", "2026-12-01", "2026-12-02"),
        ("weekly", "2026-12-06T23:59:59", "2026-W49", "2026-11-30", "2026-12-07"),
        ("weekly", "2027-01-01T00:00:00", "2026-W53", "2026-12-28", "2027-01-04"),
        ("monthly", "2028-02-29T12:00:00", "2028-02", "2028-02-01", "2028-03-01"),
        ("monthly", "2026-12-31T23:59:59", "2026-12", "2026-12-01", "2027-01-01"),
    ],
)
def test_a_moment_falls_into_one_window(
    length: str, moment: str, name: str, start: str, end: str
) -> None:
    window = window_at(length, at(moment))
    assert (window.name, window.start, window.end) == (name, at(start), at(end))
    assert window_named(name) == window


@pytest.mark.parametrize("length", sorted(PER_YEAR))
def test_windows_follow_each_other(length: str) -> None:
    window = window_at(length, at("2026-01-01"))
    for _ in range(800):
        assert window.next.start == window.end
        assert window.next.last == window
        assert window_at(length, window.end - 1) == window
        window = window.next


@pytest.mark.parametrize("length", sorted(PER_YEAR))
def test_no_year_has_more_windows_than_it_is_budgeted_for(length: str) -> None:
    """Of ends, after which a window is released, in any 365 days."""
    window, ends = window_at(length, at("2023-01-01")), []
    for _ in range(2000):
        ends.append(window.end)
        window = window.next
    for first in ends[:800]:
        within = [end for end in ends if first <= end < first + 365 * 86_400]
        assert len(within) <= PER_YEAR[length]


@pytest.mark.parametrize(
    "name", ["", "2026", "2026-13", "2026-W54", "2026-02-30", "2026-W1", "x" * 99]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(MonitoringError):
        window_named(name)


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), 1e18, -1e18])
def test_moments_beyond_the_calendar_are_refused(moment: float) -> None:
    with pytest.raises(MonitoringError):
        window_at("daily", moment)
