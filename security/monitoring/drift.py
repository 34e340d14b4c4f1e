"""Whether released counts differ from a reference, with the noise of both counted in.

Two tests for each histogram, of the last window and of the running sum of some:

* a chi-square whose covariance holds sampling, the noise, the reference's sampling and
  its noise;
* for numbers and scores, the contrast along a shift of the mean, by generalised least
  squares: a third fewer subjects find the same shift.

All tests of a month share one false-alarm rate (Bonferroni), which is stated for
independent rows: seasons, and rows of a series, are drift to it. The population
stability index is a size, never a test: noise alone makes it large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from security.errors import MonitoringError
from security.monitoring.layout import Histogram, described
from security.monitoring.windows import PER_YEAR, Window

if TYPE_CHECKING:  # a gate that looks at a reference needs no ledger
    from security.monitoring.release import Release

__all__ = [
    "RUNNING",
    "SEASONS",
    "Counted",
    "Finding",
    "Reference",
    "chi_square_tail",
    "compare",
    "find_drift",
    "season_of",
]

# Windows of a running sum.
RUNNING = 4
SEASONS = ("none", "month", "weekday")
# A bin whose variance is less joins another: no normal distribution is near it.
_LEAST_VARIANCE = 5.0

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Counted:
    """Counts of one histogram, noisy or not.

    Attributes:
        counts: by code, as `layout` has them.
        sigma: of the noise on each; 0 without.
    """

    counts: Vector
    sigma: float

    @classmethod
    def of(cls, counts: ArrayLike, sigma: float) -> Counted:
        """Of any numbers."""
        return cls(np.asarray(counts, dtype=np.float64), float(sigma))

    def __add__(self, other: Counted) -> Counted:
        sigma = math.hypot(self.sigma, other.sigma)
        return Counted(self.counts + other.counts, sigma)


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model's histograms are held against.

    Attributes:
        season: of `SEASONS`: what the parts are of.
        parts: counts by season's key ("" for none, "01" to "12", or "1" to "7" from
            Monday), then by histogram.
        sigma: of the noise on each of them.
    """

    season: str
    parts: Mapping[str, Mapping[str, Sequence[int]]]
    sigma: float

    def counted(self, histogram: str, window: Window) -> Counted | None:
        """What a window's histogram is held against; None if there is nothing."""
        part = self.parts.get(season_of(window, self.season), {})
        found = part.get(histogram)
        return None if found is None else Counted.of(found, self.sigma)


@dataclass(frozen=True)
class Finding:
    """One histogram, tested.

    Attributes:
        histogram: its name.
        windows: how many were added up.
        last: the last of them.
        p_value: the smaller one of the tests', times their number.
        by: "chi-square" or "shift": which that was.
        shift: where it is a number: by how many bins its mean moved, and the standard
            error of that.
        psi: the population stability index, as a size.
        alarm: whether it is below the month's share for each.
    """

    histogram: str
    windows: int
    last: str
    p_value: float
    by: str
    shift: tuple[float, float] | None
    psi: float
    alarm: bool

    def to_object(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "shift": self.shift and list(self.shift)}


def season_of(window: Window, season: str) -> str:
    """The key of the part of a reference that a window belongs to.

    >>> from security.monitoring.windows import window_named
    >>> season_of(window_named("2026-W49"), "month")
    '12'

    Raises:
        MonitoringError: no such season, or weekdays of longer windows.
    """
    if season not in SEASONS or (season == "weekday" and window.length != "daily"):
        raise MonitoringError(f"{window.length} windows have no reference by {season}")
    middle = window.middle
    return {"none": "", "month": f"{middle:%m}", "weekday": f"{middle:%u}"}[season]


def find_drift(
    releases: Sequence[Release], reference: Reference, *, rate: float = 0.01
) -> list[Finding]:
    """Test the last window of a version, and the running sum, for all histograms.

    Args:
        releases: of one version, the oldest first; those without counts do not count.
        reference: of the same histograms.
        rate: how often a month without drift may have an alarm, of all histograms.

    Returns:
        For each histogram one or two; none without counts, or without a reference.
    """
    usable = [item for item in releases if item.counts][-RUNNING:]
    if not usable:
        return []
    last = usable[-1].about.window
    histograms = _histograms(usable[-1])
    sums = [usable[-1:]] + ([usable] if len(usable) > 1 else [])
    # As many tests as a month of such windows has; those of one histogram and sum are
    # one, since the smaller of their p-values is multiplied by their number.
    tests = len(histograms) * 2 * max(1.0, PER_YEAR[last.length] / 12)
    findings = []
    for some in sums:
        for item in histograms:
            pairs = _pairs(some, reference, item.name)
            if pairs:
                findings.append(_tested(item, pairs, last.name, rate / tests))
    return findings


def compare(
    histogram: Histogram, pairs: Sequence[tuple[Counted, Counted]]
) -> tuple[float, str, tuple[float, float] | None]:
    """Test counts against references; windows that share a reference come as one pair.

    Args:
        histogram: what the codes are of.
        pairs: counts, and what they are held against.

    Returns:
        As `Finding`: p-value, by which test, and the shift.
    """
    parts = [_residual(counted, against) for counted, against in pairs]
    residual = np.sum([part[0] for part in parts], axis=0)
    covariance = np.sum([part[1] for part in parts], axis=0)
    direction = np.sum([part[2] for part in parts], axis=0)
    join = _joined(covariance)
    residual, covariance = join @ residual, join @ covariance @ join.T
    # The residuals add up to nothing: one of them says nothing new.
    inner, free = covariance[:-1, :-1], len(residual) - 1
    if free < 1:
        return 1.0, "chi-square", None
    solved = np.linalg.solve(inner, residual[:-1])
    chi = chi_square_tail(float(residual[:-1] @ solved), free)
    if histogram.kind not in ("number", "score"):
        return chi, "chi-square", None
    slope = (join @ direction)[:-1]
    weight = np.linalg.solve(inner, slope)
    precision = float(slope @ weight)
    if precision <= 0.0:
        return chi, "chi-square", None
    moved = float(weight @ residual[:-1]) / precision
    error = precision**-0.5
    along = math.erfc(abs(moved) / error / math.sqrt(2.0))
    least, by = min((chi, "chi-square"), (along, "shift"))
    return min(1.0, 2.0 * least), by, (moved, error)


def chi_square_tail(value: float, degrees: int) -> float:
    """P(chi-square of so many degrees > value), by its finite sums.

    >>> round(chi_square_tail(3.841, 1), 4)
    0.05

    Abramowitz and Stegun 26.4.4 and 26.4.5.
    """
    half = max(0.0, value) / 2.0
    if degrees % 2:
        total = math.erfc(math.sqrt(half))
        term = math.sqrt(half / math.pi) * 2.0 * math.exp(-half)
        first = 1.5
    else:
        total = term = math.exp(-half)
        term *= half
        first = 2.0
    for step in range((degrees - 1) // 2):
        total += term
        term *= half / (first + step)
    return min(1.0, total)


def _tested(
    histogram: Histogram,
    pairs: Sequence[tuple[Counted, Counted, int]],
    last: str,
    threshold: float,
) -> Finding:
    p_value, by, shift = compare(histogram, [pair[:2] for pair in pairs])
    counts = np.sum([pair[0].counts for pair in pairs], axis=0)
    wanted = [_shares(against) * some.counts.sum() for some, against, _ in pairs]
    return Finding(
        histogram=histogram.name,
        windows=sum(pair[2] for pair in pairs),
        last=last,
        p_value=p_value,
        by=by,
        shift=shift,
        psi=_stability(counts, np.sum(wanted, axis=0)),
        alarm=p_value < threshold,
    )


def _pairs(
    releases: Sequence[Release], reference: Reference, name: str
) -> list[tuple[Counted, Counted, int]]:
    """Windows of one season, added up, with what they are held against."""
    found: dict[str, tuple[Counted, Counted, int]] = {}
    for item in releases:
        counts, window = item.counts.get(name), item.about.window
        against = reference.counted(name, window)
        if counts is None or against is None or len(counts) != len(against.counts):
            continue
        counted, key = (
            Counted.of(counts, item.sigma),
            season_of(window, reference.season),
        )
        before = found.get(key)
        if before is None:
            found[key] = counted, against, 1
        else:
            found[key] = before[0] + counted, against, before[2] + 1
    return list(found.values())


def _residual(counted: Counted, against: Counted) -> tuple[Vector, Vector, Vector]:
    """What is not expected, its covariance, and where a shift would show."""
    total = max(1.0, float(counted.counts.sum()))
    rows = max(1.0, float(against.counts.sum()))
    shares = _shares(against)
    raw = against.counts / rows
    residual = counted.counts - raw * counted.counts.sum()
    keep = np.eye(len(shares)) - np.outer(shares, np.ones(len(shares)))
    sampling = np.diag(total * shares + counted.sigma**2)
    spread = total**2 * (np.diag(shares) - np.outer(shares, shares)) / rows
    noise = (total / rows * against.sigma) ** 2 * keep @ keep.T
    covariance = keep @ sampling @ keep.T + spread + noise
    return residual, covariance, total * _direction(shares)


def _shares(against: Counted) -> Vector:
    """Shares of the reference, none of which is negative."""
    some = np.maximum(against.counts, 0.0)
    return some / max(1.0, float(some.sum()))


def _direction(shares: Vector) -> Vector:
    """How shares change when everything moves up by one bin's small part.

    What leaves a bin is taken between it and the next one; nothing becomes missing.
    """
    flow = (shares[1:-1] + shares[2:]) / 2.0
    change = np.zeros_like(shares)
    change[1:-1] -= flow
    change[2:] += flow
    return change


def _joined(covariance: Vector) -> Vector:
    """What adds bins of too small a variance to the next one, shape (fewer, bins)."""
    groups: list[list[int]] = []
    variance = np.diag(covariance)
    open_group: list[int] = []
    for at in range(len(variance)):
        open_group.append(at)
        if float(variance[open_group].sum()) >= _LEAST_VARIANCE:
            groups.append(open_group)
            open_group = []
    if open_group and groups:
        groups[-1] += open_group
    join = np.zeros((len(groups), len(variance)))
    for row, group in enumerate(groups):
        join[row, group] = 1.0
    return join


def _stability(counts: Vector, expected: Vector) -> float:
    """The population stability index, shares of at least half an event."""
    least = 0.5 / max(1.0, float(expected.sum()))
    found, wanted = (
        np.maximum(item / max(1.0, float(item.sum())), least)
        for item in (counts, expected)
    )
    return float(((found - wanted) * np.log(found / wanted)).sum())


def _histograms(item: Release) -> list[Histogram]:
    found = described(item.details.get("histograms"))
    return [one for one in found if one.name in item.counts]
