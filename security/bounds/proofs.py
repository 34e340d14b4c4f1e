"""Rows whose decision no point of their box can change, and how far a number can move.

1. the graph becomes steps, its preprocessing intervals; both allow for what single
   precision rounds, somewhat more than once;
2. intervals alone, then linear bounds on them: most rows are proved by that;
3. a row of which the bound's own corner is decided otherwise is given up;
4. of the rows that are left every layer is bounded linearly;
5. a row is proved where its class leads by more than `Rule.floor`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from security.bounds.crown import Lines, intervals, linear_bounds
from security.bounds.files import Graph
from security.bounds.lowering import Program, ended, lower
from security.bounds.scores import Rule, number_of
from security.bounds.steps import Curve, Dense, Relu, Source
from security.errors import UnboundedModel

__all__ = ["SAFETY", "Margins", "bounds", "linear", "margins", "points", "work_of"]

Floats = NDArray[np.float64]

# Doubles of the coefficients of one layer for the rows that are bounded at once.
_AT_ONCE = 1 << 22
_MOST_ROWS = 256
# Multiplications of some hundred rows in one radius: a minute or so of one thread.
_MAX_WORK = 1e12
# What one step costs beside its arithmetic, as multiplications.
_STEP = 3e5
# Doubles of all values of the rows that are bounded at once.
_MAX_VALUES = 1 << 23
SAFETY = 1.25
"""How often rounding counts in a claim. Who recomputes takes less: then sums in another
order refuse no true claim."""


@dataclass(frozen=True, eq=False)
class Margins:
    """By how much each row's class leads, at least.

    Attributes:
        low: ``(n,)``, less `Rule.floor`: above 0 is proved.
        exact: ``(n,)``: the bound is reached, save for rounding.
    """

    low: Floats
    exact: NDArray[np.bool_] = field(repr=False)

    @property
    def proved(self) -> NDArray[np.bool_]:
        """Rows whose decision nothing in their box changes."""
        return np.asarray(self.low > 0)


def margins(
    graph: Graph,
    rule: Rule,
    low: Floats,
    high: Floats,
    labels: NDArray[np.int64],
    *,
    safety: float = SAFETY,
) -> Margins:
    """By how much each row's class leads everywhere in its box, at least.

    Args:
        graph: the model's.
        rule: what it decides by.
        low: ``(n, d)``, raw: lower ends of the boxes; NaN at both is a missing value.
        high: the upper ends.
        labels: ``(n,)``, the class that shall stay.
        safety: how often the rounding of single precision counts; 0 for not at all.

    Raises:
        UnboundedModel: an operator of which no bound is known, or too much work.
    """
    parts = [
        _margins(graph, rule, (low[part], high[part]), labels[part], safety)
        for part in _parts(graph, rule.value, low, high)
    ]
    if not parts:
        return Margins(np.zeros(0), np.zeros(0, bool))
    return Margins(*(np.concatenate(found) for found in zip(*parts, strict=True)))


def bounds(
    graph: Graph,
    output: str,
    low: Floats,
    high: Floats,
    *,
    safety: float = SAFETY,
) -> tuple[Floats, Floats]:
    """What a value lies between for each row's box, as a server computes it.

    Args:
        graph: the model's.
        output: name of a value; what the network's last value becomes, each by itself,
            may come after it: a logistic function, a power, a scale.
        low: ``(n, d)``, raw: lower ends of the boxes.
        high: the upper ends.
        safety: how often the rounding of single precision counts.

    Returns:
        Two arrays ``(n, width)``; NaN where nothing is known.

    Raises:
        UnboundedModel: an operator of which no bound is known, or too much work.
    """
    value = number_of(graph, output)
    lows, highs = [], []
    for part in _parts(graph, value, low, high):
        program = lower(graph, value, low[part], high[part], safety=safety)
        with np.errstate(all="ignore"):
            known = intervals(program, tight=True)
            ones = np.eye(program.steps[program.output].width)
            specs = np.concatenate([ones, -ones])[None]
            found = linear_bounds(program, specs, known, program.output).low
        ends = ended(
            graph, value, output, (found[:, : len(ones)], -found[:, len(ones) :])
        )
        lows.append(ends[0])
        highs.append(ends[1])
    return np.concatenate(lows), np.concatenate(highs)


def points(graph: Graph, value: str, rows: Floats) -> Floats:
    """A value for rows ``(n, d)`` themselves, in double precision.

    Raises:
        UnboundedModel: an operator of which no bound is known.
    """
    program = lower(graph, value, rows, rows, safety=0.0)
    with np.errstate(all="ignore"):
        low, high = intervals(program, tight=False).ends[program.output]
    return (low + high) / 2


def linear(graph: Graph, value: str, low: Floats, high: Floats) -> bool:
    """Whether bounds of these boxes are reached: no step bends, no interval is loose.

    Raises:
        UnboundedModel: an operator of which no bound is known.
    """
    program = lower(graph, value, low, high)
    return program.linear and not program.loose


def work_of(graph: Graph, value: str, low: Floats, high: Floats) -> float:
    """Multiplications that bounds of these rows take at most, about.

    Raises:
        UnboundedModel: an operator of which no bound is known.
    """
    if not len(low):
        return 0.0
    program = lower(graph, value, low[:1], high[:1])
    work, before, read, passed = 0.0, 0, 0, len(program.steps)
    for place, step in enumerate(program.steps):
        before += step.weight.size if isinstance(step, Dense) else 0
        if isinstance(step, Relu | Curve):
            work += 2.0 * step.width * (before if read else 0)
            passed += place if read else 0
            read += 1
    parts = math.ceil(len(low) / _at_once(program))
    return (work + before) * len(low) + _STEP * passed * parts


def _at_once(program: Program) -> int:
    """Rows that are bounded together."""
    wide = max(step.width for step in program.steps)
    size = min(_AT_ONCE // (2 * wide**2), _MAX_VALUES // max(1, program.size))
    return min(_MOST_ROWS, max(1, size))


def _parts(graph: Graph, value: str, low: Floats, high: Floats) -> Iterator[slice]:
    """Rows to bound at once.

    Raises:
        UnboundedModel: all of them take too long.
    """
    if not len(low):
        return
    program = lower(graph, value, low[:1], high[:1])
    widths = [step.width for step in program.steps]
    if work_of(graph, value, low, high) > _MAX_WORK:
        raise UnboundedModel(
            f"bounds of {sum(widths)} values in {len(low)} rows take too long"
        )
    size = _at_once(program)
    for first in range(0, len(low), size):
        yield slice(first, first + size)


def _margins(
    graph: Graph,
    rule: Rule,
    box: tuple[Floats, Floats],
    labels: NDArray[np.int64],
    safety: float,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Steps 1 to 5 of some rows."""
    low, high = box
    with np.errstate(all="ignore"):
        program = lower(graph, rule.value, low, high, safety=safety)
        found, lines = _bounded(program, rule, labels, tight=False)
        exact = np.full(len(low), program.linear and not program.loose)
        if program.linear:
            return found, exact
        left = np.flatnonzero(~(found > 0))
        left = left[~_broken(program, rule, labels, lines, left)]
        if len(left):
            closer = lower(graph, rule.value, low[left], high[left], safety=safety)
            own, _ = _bounded(closer, rule, labels[left], tight=True)
            found[left] = np.fmax(own, found[left])
    return found, exact


def _bounded(
    program: Program, rule: Rule, labels: NDArray[np.int64], *, tight: bool
) -> tuple[Floats, Lines]:
    """The least lead of each row, and the bounds that it is the least of."""
    known = intervals(program, tight=tight)
    specs, shifts = rule.specs(labels, program.steps[program.output].width)
    lines = linear_bounds(program, specs, known, program.output, corners=not tight)
    leads = lines.low + shifts - rule.floor
    return leads.min(axis=1), lines


def _broken(
    program: Program,
    rule: Rule,
    labels: NDArray[np.int64],
    lines: Lines,
    rows: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Rows that the corner at which a bound is reached turns: no proof can exist.

    The corners are of the boxes that the network sees, which is what is bounded.
    """
    if not len(rows):
        return np.zeros(0, dtype=bool)
    width = program.steps[program.output].width
    specs, shifts = rule.specs(labels, width)
    count = specs.shape[1]
    own = np.repeat(rows, count)
    steps = list(program.steps)
    for place, upper in lines.corners.items():
        step = steps[place]
        if isinstance(step, Source):
            at = upper[rows].reshape(len(own), -1)
            spot = np.where(at, step.high[own], step.low[own])
            steps[place] = Source(spot, spot)
    for place, step in enumerate(steps):
        if isinstance(step, Source) and place not in lines.corners:
            steps[place] = Source(step.low[own], step.high[own])
    there = Program(tuple(steps), program.output, program.shape, len(own))
    value = intervals(there, tight=False).ends[there.output][0]
    leads = (specs[own] @ value[:, :, None])[:, :, 0] + shifts[own]
    return np.asarray((leads.min(axis=1) < 0).reshape(len(rows), count).any(axis=1))
