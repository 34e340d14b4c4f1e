"""Linear bounds, backward through the steps (Zhang et al. 2018, section 3.3).

A linear function of some step's values is at least another linear function of the
values before it: affine steps pass coefficients on, what bends is held between two
lines, which need bounds of what it reads. So bounds are made in the order of the steps,
each from those before. Only what is open is bounded closer: ReLU that the last bounds
already hold on one side of 0 is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from security.bounds.lowering import Program
from security.bounds.steps import Bend, Curve, Dense, Relu, Source

__all__ = ["Known", "Lines", "intervals", "linear_bounds"]

Floats = NDArray[np.float64]
Ends = tuple[Floats, Floats]
Held = tuple[Floats, Floats, Floats, Floats]

# Doubles in one array of coefficients: what a processor's cache still helps with.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the steps so far.

    Attributes:
        ends: of each what its values lie between, as a server computes them.
        noise: of each what its evaluation may be off by; None for nothing.
        lines: of steps that bend what they are held between, once that was needed.
    """

    ends: list[Ends] = field(default_factory=list)
    noise: list[Floats | None] = field(default_factory=list)
    lines: dict[int, Held] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Lines:
    """A lower bound of some linear functions of a step, for every row.

    Attributes:
        low: ``(n, specs)``.
        corners: by source step, ``(n, specs, width)``, whether the bound is reached at
            the upper end of a value.
    """

    low: Floats
    corners: dict[int, NDArray[np.bool_]] = field(default_factory=dict, repr=False)


def linear_bounds(
    program: Program,
    specs: Floats,
    known: Known,
    at: int,
    *,
    corners: bool = False,
) -> Lines:
    """The least that linear functions of a step can be.

    Args:
        program: steps of some rows.
        specs: coefficients ``(n or 1, specs, width)``.
        known: of the steps before, as `intervals` gives it.
        at: the step.
        corners: say also where the bound is reached.
    """
    open_: dict[int, Floats] = {at: specs}
    low = np.zeros((program.rows, specs.shape[1]))
    reached: dict[int, NDArray[np.bool_]] = {}
    for place in range(at, -1, -1):
        found, step = open_.pop(place, None), program.steps[place]
        if found is None:
            continue
        if isinstance(step, Source):
            low += _at_source(found, step)
            if corners:
                wide = np.broadcast_to(found, (program.rows, *found.shape[1:]))
                reached[place] = wide < 0
            continue
        noise = known.noise[place]
        if noise is not None:
            low -= (np.abs(found) @ noise[:, :, None])[:, :, 0]
        if isinstance(step, Relu | Curve):
            given, alone = _through(found, _lines(known, place, step))
        else:
            given, alone = step.backward(found)
        low += alone
        for source, own in zip(step.sources, given, strict=True):
            open_[source] = open_[source] + own if source in open_ else own
    return Lines(low, reached)


def _lines(known: Known, place: int, step: Bend) -> Held:
    """Of a step: what it reads has its last bounds before anything passes it."""
    if place not in known.lines:
        known.lines[place] = step.lines(known.ends[step.sources[0]])
    return known.lines[place]


def _through(found: Floats, lines: Held) -> tuple[list[Floats], Floats]:
    below, above, drop, shift = lines
    negative = np.minimum(found, 0.0)
    alone = (negative @ (shift - drop)[:, :, None])[:, :, 0]
    if drop.any():
        alone += (found @ drop[:, :, None])[:, :, 0]
    made = found * below[:, None, :]
    made += negative * (above - below)[:, None, :]
    return [made], alone


def _at_source(found: Floats, step: Source) -> Floats:
    middle, reach = (step.low + step.high) / 2, (step.high - step.low) / 2
    centre = found @ middle[:, :, None]
    spread = np.abs(found) @ reach[:, :, None]
    return np.asarray((centre - spread)[:, :, 0])


def intervals(program: Program, *, tight: bool) -> Known:
    """What each step's values lie between, for every row.

    Args:
        program: the steps.
        tight: by linear bounds where a step that bends reads a value; else intervals
            alone.
    """
    known = Known()
    bends = [step for step in program.steps if isinstance(step, Relu | Curve)]
    read = {step.sources[0]: step for step in bends}
    deep: list[int] = []  # layers before a step's values: one is bounded exactly
    for place, step in enumerate(program.steps):
        if isinstance(step, Source):
            known.ends.append((step.low, step.high))
            known.noise.append(None)
            deep.append(0)
            continue
        given = [known.ends[item] for item in step.sources]
        low, high = step.forward(given)
        noise = step.rounding(given) if program.safety else None
        if noise is not None:
            noise *= program.safety
            low, high = low - noise, high + noise
        known.ends.append((low, high))
        known.noise.append(noise)
        layers = int(isinstance(step, Dense)) + len(step.sources) - 1
        deep.append(layers + max(deep[item] for item in step.sources))
        if tight and place in read and deep[place] > 1:
            known.ends[place] = _closer(program, known, place, read[place])
    return known


def _closer(program: Program, known: Known, at: int, reader: Bend) -> Ends:
    """Linear bounds of the values that are open for some row."""
    low, high = (end.copy() for end in known.ends[at])
    open_ = np.flatnonzero(reader.open((low, high)).any(axis=0))
    wide = max(step.width for step in program.steps)
    size = max(1, _AT_ONCE // (2 * wide * program.rows))
    for first in range(0, len(open_), size):
        part = open_[first : first + size]
        ones = np.zeros((len(part), low.shape[1]))
        ones[np.arange(len(part)), part] = 1.0
        specs = np.concatenate([ones, -ones])[None]
        found = linear_bounds(program, specs, known, at).low
        count = len(part)
        low[:, part] = np.maximum(low[:, part], found[:, :count])
        high[:, part] = np.minimum(high[:, part], -found[:, count:])
    # Rounding of either bound may cross what is one point.
    return low, np.maximum(low, high)
