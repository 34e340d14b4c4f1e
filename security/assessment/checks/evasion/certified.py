"""The certified end of robust accuracy: rows that no change within a radius can turn.

Attacks say what they found; bounds (`security.bounds`) say what nobody can find, of the
very ball that attacks move in: `Space.limits`. What is between is not known. Nothing
here imports torch: `admit --rows` recomputes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.plan.context import Job
from security.assessment.targets.answers import Reading
from security.bounds.files import Graph, read_graph
from security.bounds.proofs import (
    SAFETY,
    bounds,
    linear,
    margins,
    points,
    work_of,
)
from security.bounds.scores import Rule, head_of, number_of
from security.errors import UnboundedModel

__all__ = ["AGAIN", "Prover", "Reached", "categories_of", "prover_of", "space_digest"]

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]

AGAIN = 1.05
"""How often rounding counts when a claim is recomputed: less than when it is made."""

# Up to so much work for all rows, the whole curve is certified, not stated radii alone.
_CHEAP = 2e10
_COMPARED = 500
_SAME = 1e-3
# Bound and corner of a linear model: double precision, relative to what is added up.
_MEETS = 1e-9
_CORNER_ROWS = 8
_MAX_CORNERS = 1 << 14


@dataclass(frozen=True)
class Reached:
    """The self-test of a linear model: its bound is reached at a corner.

    Attributes:
        rows: that were tried.
        gap: the largest difference of bound and corner, relative.
        unlike: corners that the served model decides otherwise than the bound says.
    """

    rows: int
    gap: float
    unlike: int

    @property
    def holds(self) -> bool:
        """Whether bound and attack meet."""
        return self.gap <= _MEETS and not self.unlike


@dataclass(frozen=True, eq=False)
class Prover:
    """What can be proved of a job's rows.

    Attributes:
        job: with rows and the space that they may move in.
        graph: of the model.
        rule: what it decides by; None of a model that predicts a number.
    """

    job: Job
    graph: Graph = field(repr=False)
    rule: Rule | None

    def ball(self, places: Places, radius: float) -> tuple[Floats, Floats]:
        """The box of each row within a radius, as attacks have it, ``(n, d)`` each."""
        start = self.job.rows[places]
        own = self.job.radii.get("linf")
        reach: Any = radius if own is None else radius * own[places]
        low, high = self.job.space.limits(start, reach)
        raw = np.asarray(start, np.float64)
        missing = ~np.isfinite(raw)
        return np.where(missing, raw, low), np.where(missing, raw, high)

    def radii(
        self, places: Places, stated: Sequence[float], curve: Sequence[float]
    ) -> tuple[float, ...]:
        """Which radii are certified: the stated ones, and the curve's where cheap."""
        finite = sorted({*(r for r in curve if np.isfinite(r)), *stated})
        low, high = self.ball(places, finite[-1])
        cheap = work_of(self.graph, self._value, low, high) <= _CHEAP
        return tuple(finite if cheap else sorted(stated))

    @property
    def _value(self) -> str:
        if self.rule is not None:
            return self.rule.value
        return number_of(self.graph, self.job.reading.output)

    def proved(
        self, places: Places, radii: Sequence[float], *, safety: float = SAFETY
    ) -> Mask:
        """Rows whose class, the true one, stays: ``(n, radii)``.

        Args:
            places: rows of the job; those that are wrong to begin with are not proved.
            radii: ascending; what is not proved in a ball is not tried in a larger one.
            safety: how often rounding counts; as often as claims are made with.
        """
        if self.rule is None:
            raise TypeError("a number is not decided")
        job = self.job
        found = np.zeros((len(places), len(radii)), dtype=bool)
        left = np.flatnonzero(job.clean.labels[places] == job.labels[places])
        for column, radius in enumerate(radii):
            own = places[left]
            low, high = self.ball(own, radius)
            made = margins(
                self.graph, self.rule, low, high, job.labels[own], safety=safety
            )
            left = left[made.proved]
            found[left, column] = True
        return found

    def changes(
        self, places: Places, radii: Sequence[float], *, safety: float = SAFETY
    ) -> Floats:
        """How far a predicted number can move at most ``(radii, n)``; NaN: unknown."""
        clean = self.job.clean.numbers[places]
        made = []
        for radius in radii:
            ball = self.ball(places, radius)
            name = self.job.reading.output
            low, high = bounds(self.graph, name, *ball, safety=safety)
            made.append(np.maximum(high[:, 0] - clean, clean - low[:, 0]))
        return np.array(made)

    def differs(self, places: Places) -> tuple[int, int]:
        """Of some rows, how many the bounds read otherwise than the served model.

        Returns:
            How many were compared, and how many have another class or other scores.
        """
        own = places[:_COMPARED]
        rows = np.asarray(self.job.rows[own], np.float64)
        clean = self.job.clean
        if self.rule is None:
            low, high = bounds(self.graph, self.job.reading.output, rows, rows)
            numbers = clean.numbers[own]
            near = _SAME * (1 + np.abs(numbers))
            unlike = (numbers < low[:, 0] - near) | (numbers > high[:, 0] + near)
            return len(own), int(unlike.sum())
        known = np.flatnonzero(clean.labels[own] >= 0)
        labels = clean.labels[own][known]
        lead = margins(
            self.graph, self.rule, rows[known], rows[known], labels, safety=0.0
        ).low
        # Rows between two classes may be decided either way; NaN is never proved.
        return len(known), int((lead < -2 * self.rule.floor - _SAME).sum())

    def reached(self, places: Places, radius: float, target: Any) -> Reached | None:
        """The self-test of a linear model; None where bounds need not be reached.

        Each column is moved by itself to the end that takes more of the lead; all of
        them together are the worst point. The bound must be what it gives there, and
        the served model must decide as the bound says.
        """
        job = self.job
        right = places[job.clean.labels[places] == job.labels[places]]
        most = max(1, _MAX_CORNERS // (2 * job.rows.shape[1] + 1))
        own = right[: min(_CORNER_ROWS, most)]
        if self.rule is None or not len(own) or job.space.integer.any():
            return None
        low, high = self.ball(own, radius)
        if not linear(self.graph, self.rule.value, low, high):
            return None
        labels = job.labels[own]
        found = margins(self.graph, self.rule, low, high, labels, safety=0.0).low
        worst, least, size = _corners(self.graph, self.rule, low, high, labels)
        gap = float((np.abs(found - (least - self.rule.floor)) / (1 + size)).max())
        made = job.space.repair(
            job.space.to_z(worst), job.rows[own], "linf", self._reach(own, radius)
        )
        wrong = target.ask(made).wrong(labels)
        near = _SAME * (1 + size)
        unlike = ((least < -near) & ~wrong) | ((least > near) & wrong)
        return Reached(len(own), gap, int(unlike.sum()))

    def _reach(self, places: Places, radius: float) -> Any:
        own = self.job.radii.get("linf")
        return radius if own is None else radius * own[places]


def prover_of(job: Job) -> Prover:
    """What can be proved of a job's rows.

    Raises:
        UnboundedModel: why nothing can.
    """
    kind = job.source.kind
    if kind not in ("onnx", "bundle"):
        raise UnboundedModel("there is no graph to bound, only answers")
    if job.spec.parts:
        raise UnboundedModel("several inputs, or texts, have no bound here")
    if job.space.ranges_from == "data":
        raise UnboundedModel("the ranges are those of these rows, not public ones")
    try:
        graph = read_graph(job.source.model)
    except (ValueError, KeyError, TypeError) as error:
        raise UnboundedModel(f"the graph cannot be read: {error}") from None
    reading = job.reading
    prover = Prover(job, graph, None if reading.number else _rule(graph, reading))
    first = np.zeros(1, dtype=np.int64)
    radius = 0.0 if "linf" not in job.radii else 1.0
    low, high = prover.ball(first, radius)
    if prover.rule is None:
        bounds(graph, reading.output, low, high)
    else:
        margins(graph, prover.rule, low, high, np.zeros(1, np.int64))
    return prover


def _rule(graph: Graph, reading: Reading) -> Rule:
    if reading.form == "labels":
        raise UnboundedModel("the model answers labels alone, and no scores")
    places = {name: place for place, name in enumerate(reading.classes)}
    if reading.label_output is not None and len(places) != len(reading.classes):
        raise UnboundedModel("classes of one name")
    middle = 1.0 if reading.form == "probabilities" else 0.0
    return head_of(
        graph,
        reading.output,
        label=reading.label_output,
        lead=2 * reading.threshold - middle if reading.single else 0.0,
        single=reading.single,
        swapped=reading.swapped,
        probabilities=reading.form == "probabilities",
    )


def _corners(
    graph: Graph, rule: Rule, low: Floats, high: Floats, labels: NDArray[np.int64]
) -> tuple[Floats, Floats, Floats]:
    """The worst point of each row's box, its lead there, and the size of the scores."""
    found, leads, sizes = [], [], []
    width = low.shape[1]
    for one, label in enumerate(labels):
        # NaN is no number to move: where both ends are one, nothing is.
        tried = np.repeat(low[one][None], width + 1, axis=0)
        tried[np.arange(width), np.arange(width)] = high[one]
        values = points(graph, rule.value, tried)
        specs, shifts = rule.specs(np.array([label]), values.shape[1])
        lead = values @ specs[0].T + shifts
        rises = lead[:width] > lead[width]
        corners = np.where(rises.T, low[one], high[one])
        there = points(graph, rule.value, corners)
        own = np.sum(there * specs[0], axis=1) + shifts[0]
        worst = int(np.argmin(own))
        found.append(corners[worst])
        leads.append(own[worst])
        sizes.append(np.abs(there).max())
    return np.array(found), np.array(leads), np.array(sizes)


def categories_of(job: Job) -> str:
    """How categories stand in the ball: as attacks have them, so do bounds."""
    coded = {column.name for column in job.source.columns if column.categories}
    rules = job.space.rules
    held = [
        fixed
        for rule, fixed in zip(rules, job.space.held, strict=True)
        if rule.kind == "category" or rule.group or rule.name in coded
    ]
    if not held:
        return "none"
    return "held_fixed" if all(held) else "any_code_in_reach_or_none"


def space_digest(job: Job) -> str:
    """SHA-256 of the space that rows move in: ranges, units, what is held or whole."""
    space = job.space
    parts = [space.low, space.high, space.scale, space.held, space.integer]
    digest = hashlib.sha256(space.units.encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    digest.update(repr([rule.change for rule in space.rules]).encode())
    return digest.hexdigest()
