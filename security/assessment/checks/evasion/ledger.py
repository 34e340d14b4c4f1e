"""What counts as broken: asked of onnxruntime or the endpoint, inside ball and ranges.

Attacks only propose. A row is broken when the model as served gives it, strictly,
another class, on the very numbers that were sent, and these keep every rule and lie
within the distance that is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.checks.evasion.plan import EvasionPlan
from security.assessment.plan.context import Context

__all__ = ["Ledger", "parts"]

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Rows = NDArray[Any]

# An endpoint that answers at random must give the wrong class this often in a row.
_REPEATS = 3


def parts(context: Context, rows: Places, *, alone: bool) -> list[Places]:
    """Rows as they are asked about: all at once, or each alone; none for none.

    An endpoint makes its own batches.
    """
    if alone and not context.job.remote:
        return [*rows[:, None]]
    return [rows] if len(rows) else []


class Ledger:
    """The closest confirmed example of each row, and what each attack did.

    Attributes:
        start, labels: the rows, as sent, and their classes.
        own: ``(n,)``: what a radius of 1 is to each row.
        correct: rows that the model has right to begin with.
        distance: ``(n,)`` of the closest example; infinite for none.
        attack: ``(n,)``, its name's place in `names`; -1 for none.
        examples: ``(n, d)``; the row itself for none.
        names: of the attacks, as they were first used.
        finite: whether every proposal was made of numbers.
        strange: rows whose proposals got no usable answer.
    """

    def __init__(self, context: Context, places: Places, plan: EvasionPlan) -> None:
        job = context.job
        self.context, self.norm = context, plan.norm
        self.own = np.ones(len(places)) if plan.own is None else plan.own[places]
        self.start, self.labels = job.rows[places], job.labels[places]
        self.correct = ~(job.clean.labels[places] != self.labels)
        self.distance = np.full(len(places), np.inf)
        self.attack = np.full(len(places), -1, dtype=np.int64)
        self.examples = self.start.copy()
        self.names: list[str] = []
        self.tried: dict[str, int] = {}
        self.broken: dict[str, int] = {}
        self.finite = True
        self.strange = 0
        self.repeats = 1

    def __len__(self) -> int:
        return len(self.start)

    def z(self, rows: Places) -> Floats:
        """Attack coordinates of some rows."""
        return self.context.job.space.to_z(self.start[rows])

    def reach(self, rows: Places, radius: float) -> Floats:
        """How far some rows may go within a radius ``(n,)``."""
        return np.asarray(radius * self.own[rows])

    def standing(self, radius: float) -> Places:
        """Rows that are right, and unbroken within a radius."""
        every = np.arange(len(self))
        return self.beyond(every[self.correct], radius)

    def beyond(self, rows: Places, radius: float) -> Places:
        """Of some rows those without an example within a radius; it may be infinite."""
        own = self.distance[rows]
        return rows[~(np.isfinite(own) & (own <= self.reach(rows, radius)))]

    def of_other_classes(self, rows: Places, count: int) -> Floats:
        """The nearest known rows of other classes, ``(count or fewer, n, d)``.

        In attack coordinates, and only the model's word counts; none where it has one
        class only.
        """
        job = self.context.job
        pool, given = job.space.to_z(job.rows), job.clean.labels
        begin, classes = self.z(rows), self.labels[rows]
        # Column by column: the largest gap of each row is then a few passes.
        others = {
            own: np.ascontiguousarray(pool[(given >= 0) & (given != own)].T)
            for own in np.unique(classes)
        }
        near = [
            _nearest(others[own], z, count)
            for z, own in zip(begin, classes, strict=True)
        ]
        least = min((len(item) for item in near), default=0)
        made = [item[:least] for item in near]
        return np.stack(made, axis=1) if made else np.empty((0, *begin.shape))

    def within(self, rows: Places, radius: float) -> Places:
        """The others."""
        return np.setdiff1d(rows, self.beyond(rows, radius))

    def confirm_often(self) -> None:
        """Ask several times about every example: the model answers at random.

        Or by what else is in the batch, as one that is quantised as it runs: then an
        example counts that holds alone, as it will be sent.
        """
        self.repeats = _REPEATS

    def offer(
        self, name: str, rows: Places, proposals: Floats, radius: float = np.inf
    ) -> int:
        """Proposals in attack coordinates, for some rows; how many count."""
        space = self.context.job.space
        self.finite &= bool(np.isfinite(proposals).all())
        reach = self.reach(rows, radius)
        made = space.repair(proposals, self.start[rows], self.norm, reach)
        return self.offer_rows(name, rows, made, radius)

    def offer_rows(
        self, name: str, rows: Places, made: Rows, radius: float = np.inf
    ) -> int:
        """The same, of raw rows in the model's type."""
        if name not in self.names:
            self.names.append(name)
            self.tried[name] = self.broken[name] = 0
        self.tried[name] += len(rows)
        if not len(rows):
            return 0
        start = self.start[rows]
        space = self.context.job.space
        distance = space.distance(made, start, self.norm)
        good = (distance <= self.reach(rows, radius)) & space.allowed(made, start)
        good &= distance < self.distance[rows]
        good[good] = self._wrong(made[good], self.labels[rows[good]])
        self._write(name, rows[good], made[good], distance[good])
        self.broken[name] += int(good.sum())
        return int(good.sum())

    def tighten(self, rows: Places, rounds: int = 8) -> None:
        """Bring examples closer along the line to their rows, by halving."""
        rows = rows[np.isfinite(self.distance[rows]) & (self.distance[rows] > 0)]
        z = self.z(rows)
        far = self.context.job.space.to_z(self.examples[rows]) - z
        low, high = np.zeros((len(rows), 1)), np.ones((len(rows), 1))
        for _ in range(rounds if len(rows) else 0):
            middle = (low + high) / 2
            before = self.distance[rows].copy()
            names = self.attack[rows].copy()
            self._closer(rows, z + middle * far)
            self.attack[rows] = names
            nearer = (self.distance[rows] < before)[:, None]
            low, high = np.where(nearer, low, middle), np.where(nearer, middle, high)

    def _closer(self, rows: Places, proposals: Floats) -> None:
        space, start = self.context.job.space, self.start[rows]
        made = space.repair(proposals, start, self.norm, np.inf)
        distance = space.distance(made, start, self.norm)
        good = (distance < self.distance[rows]) & space.allowed(made, start)
        good[good] = self._wrong(made[good], self.labels[rows[good]])
        self.distance[rows[good]] = distance[good]
        self.examples[rows[good]] = made[good]

    def _wrong(self, made: Rows, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        wrong = np.ones(len(made), dtype=bool)
        for _ in range(self.repeats):
            left = np.flatnonzero(wrong)
            for part in parts(self.context, left, alone=self.repeats > 1):
                answers = self.context.target.ask(made[part])
                self.strange += int((~answers.finite).sum())
                wrong[part] = answers.wrong(labels[part])
        return wrong

    def _write(self, name: str, rows: Places, made: Rows, distance: Floats) -> None:
        self.distance[rows] = distance
        self.attack[rows] = self.names.index(name)
        self.examples[rows] = made

    def counts(self) -> Mapping[str, Any]:
        """What each attack tried and confirmed, JSON."""
        return {
            name: {"tried": self.tried[name], "broken": self.broken[name]}
            for name in self.names
        }


def _nearest(pool: Floats, z: Floats, count: int) -> Floats:
    """The nearest rows by L-infinity, ``(count or fewer, d)``; ties in order.

    Args:
        pool: of these columns ``(d, n)``.
        z: the row ``(d,)``.
        count: of rows.
    """
    gaps = pool - z[:, None]
    gaps = np.abs(gaps, out=gaps).max(axis=0, initial=0)
    if count < len(gaps):  # the others need no order
        close = np.flatnonzero(~(gaps > np.partition(gaps, count - 1)[count - 1]))
    else:
        close = np.arange(len(gaps))
    return pool[:, close[np.argsort(gaps[close], kind="stable")[:count]]].T
