"""Confidence intervals, two-sided, all at one stated level: the one place for them.

None has zero width: rows that all say the same bound a rate, they do not prove it, and
a policy believes what stands here. Where nothing can be said there is no interval, and
a policy that asks for one refuses. Every method is a closed form, or a root; nothing is
resampled.

Wilson, "Probable inference, the law of succession, and statistical inference" (1927);
Agresti and Coull, "Approximate is better than 'exact' for interval estimation of
binomial proportions" (1998);
Newcombe, "Interval estimation for the difference between independent proportions:
comparison of eleven methods" (1998), method 10;
Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney
statistic. Part 2" (2006), method 5;
Donner and Zou, "Closed-form confidence intervals for functions of the normal mean and
standard deviation" (2012), for quotients;
Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
proportions based on paired data" (2012);
Conover, "Practical nonparametric statistics" (1999), section 3.2, for medians.

Errors of a regression are skewed. Their means have Student's interval of the logarithm
(the delta method), which covers better than the plain one or Johnson's (1978): of
squared normal errors of 30 rows 93% against 91%, of Laplace's 88% against 85%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from models.report import Metric

__all__ = [
    "CONFIDENCE",
    "auc",
    "bounded_mean",
    "confidence_of_pairs",
    "difference",
    "geometric_mean",
    "largest_difference",
    "lower_bound",
    "mean",
    "mean_gap",
    "median",
    "paired_drop",
    "positive_mean",
    "proportion",
    "root",
    "smallest_ratio",
    "unexplained",
]

CONFIDENCE = 0.95

Floats = NDArray[np.float64]


class _Interval(NamedTuple):
    low: float
    high: float


def proportion(hits: int, total: int, confidence: float = CONFIDENCE) -> Metric:
    """A share with Wilson's interval, which stays honest near 0 and 1.

    >>> metric = proportion(95, 100)
    >>> round(metric.low, 3), round(metric.high, 3)
    (0.888, 0.978)
    """
    low, high = _wilson(np.array([hits]), np.array([total]), confidence)
    interval = _Interval(float(low[0]), float(high[0]))
    return _metric(hits / total, total, interval, confidence)


def lower_bound(hits: int, total: int, level: float) -> float:
    """Clopper's and Pearson's bound: a share is below it with chance ``level``."""
    return float(special.betaincinv(hits, total - hits + 1, level)) if hits else 0.0


def mean(values: Floats, confidence: float = CONFIDENCE) -> Metric:
    """A mean with Student's interval; with none where no two values differ."""
    centre, n = float(np.mean(values)), len(values)
    if np.ptp(values) == 0:
        return Metric(centre, n=n)
    spread = _student(values, confidence)
    interval = _Interval(centre - spread, centre + spread)
    return _metric(centre, n, interval, confidence)


def positive_mean(values: Floats, confidence: float = CONFIDENCE) -> Metric:
    """A mean of lengths with Student's interval of its logarithm.

    It has none where no two values differ.

    >>> metric = positive_mean(np.array([0.0, 1.0, 2.0, 5.0]))
    >>> 0 < metric.low < metric.value < metric.high
    True
    """
    centre, n = float(np.mean(values)), len(values)
    if np.ptp(values) == 0:
        return Metric(centre, n=n)
    return _metric(centre, n, _around(centre, _student(values, confidence)), confidence)


def root(metric: Metric) -> Metric:
    """The square root of a mean of squares, and of its interval's ends."""
    ends = [
        None if end is None else math.sqrt(end) for end in (metric.low, metric.high)
    ]
    return replace(metric, value=math.sqrt(metric.value), low=ends[0], high=ends[1])


def median(values: Floats) -> Metric:
    """A median between two of the sorted values, whatever their distribution."""
    n, ordered = len(values), np.sort(values)
    centre = float(np.median(ordered))
    below = _binomial_quantile(0.5 - CONFIDENCE / 2, n) - 1
    if below < 0 or ordered[below] == ordered[n - 1 - below]:
        return Metric(centre, n=n)
    interval = _Interval(float(ordered[below]), float(ordered[n - 1 - below]))
    return _metric(centre, n, interval)


def unexplained(errors: Floats, truth: Floats) -> Metric:
    """The share of the truth's variance that errors leave: 1 minus R squared.

    Its interval is Student's of the logarithm, by the influence of each row on the
    quotient (the delta method); none where no two errors differ.

    Args:
        errors: ``(n,)``.
        truth: ``(n,)``, of which two at least differ.
    """
    squares, around = errors**2, (truth - truth.mean()) ** 2
    share, n = float(squares.mean() / around.mean()), len(errors)
    influence = (squares - share * around) / around.mean()
    if np.ptp(influence) == 0 or share == 0:
        return Metric(share, n=n)
    return _metric(share, n, _around(share, _student(influence, CONFIDENCE)))


def paired_drop(
    lost: int, won: int, total: int, confidence: float = CONFIDENCE
) -> Metric:
    """By how much a share of the same rows fell, with Bonett's and Price's interval.

    Args:
        lost: rows that counted before, and do not now.
        won: the other way round.
        total: all rows.
        confidence: of the interval.
    """
    down, up = (lost + 1) / (total + 2), (won + 1) / (total + 2)
    spread = _z(confidence) * math.sqrt((down + up - (down - up) ** 2) / (total + 2))
    ends = _Interval(max(-1.0, down - up - spread), min(1.0, down - up + spread))
    return _metric((lost - won) / total, total, ends, confidence)


def difference(first: Metric, second: Metric) -> Metric:
    """How much larger one figure is than another, with Newcombe's interval.

    It treats the samples as independent; on the same rows that is the cautious choice.

    Args:
        first: with an interval.
        second: likewise, at the same level.

    >>> gap = difference(proportion(90, 100), proportion(80, 100))
    >>> round(gap.low, 3), round(gap.high, 3)
    (-0.001, 0.199)
    """
    gap = first.value - second.value
    low_1, high_1, low_2, high_2 = (
        item.value if end is None else end
        for item in (first, second)
        for end in (item.low, item.high)
    )
    under = math.hypot(first.value - low_1, high_2 - second.value)
    over = math.hypot(high_1 - first.value, second.value - low_2)
    n = None if first.n is None or second.n is None else min(first.n, second.n)
    interval = _Interval(gap - under, gap + over)
    return replace(_metric(gap, 0, interval, first.confidence or CONFIDENCE), n=n)


def geometric_mean(n: int, logs: float, squares: float) -> Metric:
    """A geometric mean with Student's interval of the logarithm, from sums.

    It has none of fewer than two values, or where no two differ.

    Args:
        n: how many values, at least 1.
        logs: the sum of their natural logarithms.
        squares: the sum of the squares of these.

    >>> metric = geometric_mean(2, math.log(2) + math.log(8), 2 * 2.4)
    >>> round(metric.value, 6), metric.low < 4 < metric.high
    (4.0, True)
    """
    centre = logs / n
    variance = (squares - n * centre**2) / max(1, n - 1)
    if n < 2 or not variance > 0:
        return Metric(math.exp(centre), n=n)
    quantile = float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    spread = quantile * math.sqrt(variance / n)
    ends = (math.exp(min(700.0, centre + sign * spread)) for sign in (-1, 1))
    return _metric(math.exp(centre), n, _Interval(*ends))


def bounded_mean(
    values: Floats, low: float, high: float, confidence: float = CONFIDENCE
) -> Metric:
    """A mean of values that have a known range.

    As Agresti and Coull do for shares, about two rows are added at either end of the
    range before the normal interval is computed.

    Args:
        values: ``(n,)``, all in the range.
        low: the range's lower end.
        high: its upper end.
        confidence: of the interval.
    """
    added = _z(confidence) ** 2
    n, ends = len(values) + added, np.array([low, high])
    centre = (values.sum() + added / 2 * ends.sum()) / n
    squares = ((values - centre) ** 2).sum() + added / 2 * ((ends - centre) ** 2).sum()
    spread = _z(confidence) * math.sqrt(squares) / n
    interval = _Interval(max(low, centre - spread), min(high, centre + spread))
    return _metric(float(np.mean(values)), len(values), interval, confidence)


def auc(positive: Floats, negative: Floats) -> Metric:
    """Area under the ROC curve with Newcombe's interval, a score interval.

    Args:
        positive: scores of positives, higher for more likely positive.
        negative: scores of negatives.
    """
    sizes = len(positive), len(negative)
    ranks = _ranks(np.concatenate([positive, negative]))
    least = sizes[0] * (sizes[0] + 1) / 2
    area = float((ranks[: sizes[0]].sum() - least) / math.prod(sizes))
    # The method is the same seen from either class.
    interval = _Interval(1 - _auc_high(1 - area, *sizes), _auc_high(area, *sizes))
    return _metric(area, sum(sizes), interval)


def confidence_of_pairs(groups: int) -> float:
    """The level at which groups enter `largest_difference` and `smallest_ratio`.

    Bonferroni's: each pair may be the one that is stated, so all must hold at once.

    >>> confidence_of_pairs(2), confidence_of_pairs(5)
    (0.95, 0.995)
    """
    return 1 - (1 - CONFIDENCE) / max(1, math.comb(groups, 2))


def largest_difference(parts: Sequence[Metric]) -> Metric:
    """The largest of some independent shares, or means, minus the smallest.

    Newcombe's interval of each pair, from the intervals of its two parts; of all pairs
    the largest lower and the largest upper end.

    Args:
        parts: two or more, with intervals at the level of `confidence_of_pairs`.
    """
    value, low, high = _columns(parts)
    gap = value[:, None] - value
    under = gap - np.hypot((value - low)[:, None], high - value)
    over = gap + np.hypot((high - value)[:, None], value - low)
    pairs = ~np.eye(len(parts), dtype=bool)
    interval = _Interval(max(0.0, under[pairs].max()), float(over[pairs].max()))
    return _metric(float(gap.max()), _rows(parts), interval)


def smallest_ratio(parts: Sequence[Metric]) -> Metric:
    """The smallest of some independent shares divided by the largest.

    Args:
        parts: as of `largest_difference`; one at least is above 0.
    """
    value, low, high = _columns(parts)
    under = _quotients(value, low, high)[~np.eye(len(parts), dtype=bool)]
    # The upper end of a quotient is the lower end of its inverse, inverted.
    highest = float(min(1.0, 1 / under.max())) if under.max() > 0 else 1.0
    interval = _Interval(float(under.min()), highest)
    return _metric(float(value.min() / value.max()), _rows(parts), interval)


def mean_gap(
    hits: NDArray[np.int64], totals: NDArray[np.int64], expected: Floats
) -> Metric:
    """How far shares are from what was expected of them, on the mean over all rows.

    The gaps are lengths, so that chance alone makes their sum larger, never smaller:
    the lower end sums what no part's interval explains (Bonferroni over the parts),
    the upper end adds the parts' intervals as squares, like Newcombe.

    Args:
        hits: of each part ``(k,)``.
        totals: rows of each part, above 0.
        expected: the share of each part that was expected.
    """
    weights = totals / totals.sum()
    gaps = weights * np.abs(hits / totals - expected)
    under, over = _wilson(hits, totals, 1 - (1 - CONFIDENCE) / len(totals))
    low = np.maximum(0.0, np.maximum(under - expected, expected - over))
    under, over = _wilson(hits, totals, CONFIDENCE)
    high = np.maximum(over - expected, expected - under)
    value = float(gaps.sum())
    spread = float(np.sqrt(((weights * high - gaps) ** 2).sum()))
    interval = _Interval(float((weights * low).sum()), min(1.0, value + spread))
    return _metric(value, int(totals.sum()), interval)


def _student(values: Floats, confidence: float) -> float:
    """Half the width of Student's interval of a mean."""
    quantile = float(special.stdtrit(len(values) - 1, 0.5 + confidence / 2))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _around(centre: float, spread: float) -> _Interval:
    """An interval of the logarithm, as wide there as a spread is for the value."""
    factor = math.exp(min(spread / centre, 700.0))
    return _Interval(centre / factor, centre * factor)


def _wilson(
    hits: NDArray[np.int64], totals: NDArray[np.int64], confidence: float
) -> tuple[Floats, Floats]:
    z, share = _z(confidence), hits / totals
    spread = z * np.sqrt(share * (1 - share) / totals + z**2 / (4 * totals**2))
    centre, scale = share + z**2 / (2 * totals), 1 + z**2 / totals
    # Clamped: at 0 and 1 rounding may put an end a hair on the wrong side.
    low = np.maximum(0.0, np.minimum(share, (centre - spread) / scale))
    high = np.minimum(1.0, np.maximum(share, (centre + spread) / scale))
    return low, high


def _auc_high(area: float, positives: int, negatives: int) -> float:
    """The largest true area that would give this one."""
    more = (positives + negatives) / 2 - 1

    def beyond(true: float) -> float:
        shape = (1 - true) / (2 - true) + true / (1 + true)
        variance = true * (1 - true) * (1 + more * shape) / (positives * negatives)
        return (area - true) ** 2 - _z(CONFIDENCE) ** 2 * variance

    # At 0 and 1 the area itself is a root, but not the one that is sought.
    low, high = area + 1e-12, 1.0
    if low >= high:
        return 1.0
    # Halved until no number lies between: beyond is below 0 at low, above it at high.
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if beyond(middle) < 0 else (low, middle)
    return high


def _ranks(values: Floats) -> Floats:
    """Each value's rank from 1; equal ones share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place])


def _binomial_quantile(chance: float, n: int) -> int:
    """The fewest heads, of n, that a fair coin stays at or below with a chance."""
    above = math.ceil(special.bdtrik(chance, n, 0.5))
    below = max(0, above - 1)
    return below if special.bdtr(below, n, 0.5) >= chance else above


def _quotients(value: Floats, low: Floats, high: Floats) -> Floats:
    """The lower end of each part divided by each other ``(k, k)``.

    It is the factor at which Newcombe's interval of one part, minus that many times the
    other, begins to hold 0: the smaller root of a quadratic equation, written so that
    no coefficient may be 0.
    """
    squared = high * (2 * value - high)
    middle = value[:, None] * value
    last = np.broadcast_to((low * (2 * value - low))[:, None], middle.shape)
    inner = np.maximum(0.0, middle**2 - squared * last)
    known = last > 0
    below = np.where(known, middle + np.sqrt(inner), 1.0)
    return np.asarray(np.where(known, last / below, 0.0))


def _columns(parts: Sequence[Metric]) -> tuple[Floats, Floats, Floats]:
    rows = [(part.value, part.low, part.high) for part in parts]
    value, low, high = np.array(rows, dtype=np.float64).T
    return value, low, high


def _rows(parts: Sequence[Metric]) -> int:
    return sum(part.n or 0 for part in parts)


def _z(confidence: float) -> float:
    return float(special.ndtri(0.5 + confidence / 2))


def _metric(
    value: float, n: int, interval: _Interval, confidence: float = CONFIDENCE
) -> Metric:
    return Metric(
        value=value,
        n=n,
        low=min(value, interval.low),
        high=max(value, interval.high),
        confidence=confidence,
    )
