"""Attacks that only ask: for trees, endpoints, and graphs that do not convert."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from security.assessment.art_library import art, repeatable
from security.assessment.checks.estimators import asking_estimator
from security.assessment.checks.evasion.coordinate import (
    CoordinateSearch,
    coordinate_search,
    thresholds,
)
from security.assessment.checks.evasion.ledger import Ledger
from security.assessment.checks.evasion.plan import EvasionPlan
from security.assessment.checks.evasion.square import Search, square
from security.assessment.checks.evasion.starts import (
    NEIGHBOURS,
    ball_of,
    look,
    offer,
)

__all__ = ["BlackBox"]

Places = NDArray[np.int64]
Floats = NDArray[np.float64]

# Beyond this many columns one step of the coordinate search asks too much.
_MAX_COLUMNS = 256
_STEPS, _STARTS = 12, 3


class BlackBox:
    """Searches over scores or labels, for the rows of a ledger."""

    def __init__(self, ledger: Ledger, plan: EvasionPlan, key: str) -> None:
        self.ledger, self.plan, self.key = ledger, plan, key
        self.context = ledger.context
        # Points that were looked at and are nearest to another class.
        self.begin = ledger.z(np.arange(len(ledger)))
        self.labels_only = self.context.job.reading.form == "labels"
        if "thresholds" not in self.context.cache:
            job = self.context.job
            width = job.rows.shape[1]
            self.context.cache["thresholds"] = (
                [np.empty(0)] * width
                if job.remote
                else thresholds(job.source.model, width)
            )
        self.thresholds: list[Floats] = self.context.cache["thresholds"]

    @property
    def tree(self) -> bool:
        """Whether the values at which the model branches are known."""
        return any(len(values) for values in self.thresholds)

    def run(self) -> None:
        """The whole curve without gradients.

        Raises:
            BudgetError: queries or time ran out.
        """
        ledger, plan = self.ledger, self.plan
        if self.labels_only:
            self._boundary()
        for radius in plan.stated:
            self._look(radius)
            self.at(radius, plan.queries, ledger.standing(radius))
        largest = plan.stated[-1]
        above = [item for item in plan.curve if item > largest]
        self._descend(ledger.standing(largest), above)
        broken = ledger.within(np.flatnonzero(ledger.correct), largest)
        self._descend(broken, [item for item in plan.curve if item <= largest])
        if not self.context.job.remote:
            ledger.tighten(np.flatnonzero(ledger.correct))

    def at(self, radius: float, queries: int, rows: Places) -> int:
        """Attack some rows within a radius; how many broke."""
        left = rows
        for attack in (self._square, self._coordinates):
            self.context.check_time()
            left = self.ledger.beyond(left, radius)
            if len(left):
                attack(left, radius, queries)
        return len(rows) - len(self.ledger.beyond(left, radius))

    def _look(self, radius: float) -> None:
        """Points of every kind, asked about; an endpoint's questions are too dear."""
        self.context.check_time()
        ledger, space = self.ledger, self.context.job.space
        rows = ledger.standing(radius)
        if self.context.job.remote or not len(rows):
            return
        start, labels = ledger.start[rows], ledger.labels[rows]
        reach = ledger.reach(rows, radius)

        def evaluate(made: Tensor) -> Tensor:
            part = len(made)
            flat = made.reshape(-1, made.shape[2]).numpy()
            repeated = np.tile(start, (part, 1))
            sent = space.repair(flat, repeated, self.plan.norm, np.tile(reach, part))
            found = self._margins(sent, np.tile(labels, part))
            return torch.as_tensor(found.reshape(part, -1))

        looked = look(
            evaluate,
            ball_of(ledger, rows, radius, torch.float64),
            torch.as_tensor(ledger.of_other_classes(rows, NEIGHBOURS)),
            count=self.context.job.options.effort.looked,
            seed=self.context.seed(f"{self.key}/look/{radius}"),
        )
        self.begin[rows] = looked.best.numpy()
        offer(ledger, rows, looked, radius)

    def _descend(self, rows: Places, radii: list[float]) -> None:
        for radius in sorted(radii, reverse=True):
            if radius not in self.plan.stated:
                left = self.ledger.beyond(rows, radius)
                self.at(radius, self.plan.curve_queries, left)
            rows = self.ledger.within(rows, radius)

    def _square(self, rows: Places, radius: float, queries: int) -> None:
        space, start = self.context.job.space, self.ledger.start[rows]
        norm, labels = self.plan.norm, self.ledger.labels[rows]
        reach = self.ledger.reach(rows, radius)
        bound = reach if norm == "linf" else np.inf
        low, high = (space.to_z(item) for item in space.limits(start, bound))

        def evaluate(points: Floats, places: Places) -> Floats:
            made = space.repair(points, start[places], norm, reach[places])
            return self._margins(made, labels[places])

        search = Search(
            centre=space.to_z(start),
            low=low,
            high=high,
            radius=reach,
            norm=norm,
            image=self.plan.image,
            queries=queries,
        )
        random = self.context.random(f"{self.key}/square/{radius}")
        points, margins = square(search, evaluate, random)
        broken = margins < 0
        self.ledger.offer("square", rows[broken], points[broken], radius)
        self._count("square", rows, broken)

    def _coordinates(self, rows: Places, radius: float, queries: int) -> None:
        space, norm = self.context.job.space, self.plan.norm
        wide = space.low.size > _MAX_COLUMNS
        if (
            wide
            or self.labels_only
            or self.context.job.remote
            or not (self.tree or space.table)
        ):
            return
        start, labels = self.ledger.start[rows], self.ledger.labels[rows]
        reach = self.ledger.reach(rows, radius)
        low, high = space.limits(start, reach)

        def evaluate(points: Floats, places: Places) -> Floats:
            z = (points - space.low) / space.scale
            made = space.repair(z, start[places], norm, reach[places])
            return self._margins(made, labels[places])

        search = CoordinateSearch(
            centre=start.astype(np.float64),
            begin=np.clip(space.to_raw(self.begin[rows]), low, high),
            low=low,
            high=high,
            thresholds=self.thresholds,
            steps=_STEPS,
            starts=_STARTS if self.tree or queries >= self.plan.queries else 1,
        )
        random = self.context.random(f"{self.key}/coordinates/{radius}")
        points, margins = coordinate_search(search, evaluate, random)
        broken = margins < 0
        z = (points[broken] - space.low) / space.scale
        self.ledger.offer("coordinates", rows[broken], z, radius)
        self._count("coordinates", rows, broken)

    def _count(self, name: str, rows: Places, broken: NDArray[np.bool_]) -> None:
        self.ledger.tried[name] += len(rows) - int(broken.sum())

    def _margins(self, made: Any, labels: NDArray[np.int64]) -> Floats:
        self.context.check_time()
        answers = self.context.target.ask(made)
        margins = answers.margins(labels)
        # Saturated probabilities are equal to the last bit, though rows differ.
        return np.where(answers.labels < 0, np.nan, margins)

    def _boundary(self) -> None:
        """ART's HopSkipJump: labels alone, from a row of another class inwards."""
        rows = self.ledger.standing(0.0)
        rows = rows[: self.context.job.options.effort.boundary_rows]
        if not len(rows):
            return
        z, labels = self.ledger.z(rows), self.ledger.labels[rows]
        begin, found = self._other_class(rows)
        self.ledger.offer("transfer", rows[found], begin[found])
        rows, z, labels, begin = rows[found], z[found], labels[found], begin[found]
        if not len(rows):
            return
        space = self.context.job.space
        low, high = (space.to_z(item) for item in space.limits(self.ledger.start[rows]))
        classifier = asking_estimator(self.context)
        with repeatable(self.context.seed(f"{self.key}/boundary") % (1 << 32)):
            attack = art().HopSkipJump(
                classifier,
                norm=np.inf if self.plan.norm == "linf" else 2,
                max_iter=self._boundary_steps,
                max_eval=200,
                init_eval=20,
                batch_size=256,
                verbose=False,
            )
            made = attack.generate(
                x=z.astype(np.float32),
                y=labels,
                x_adv_init=begin.astype(np.float32),
                mask=(high > low).astype(np.float32),
            )
        self.ledger.offer("hop-skip-jump", rows, np.asarray(made, np.float64))

    @property
    def _boundary_steps(self) -> int:
        job = self.context.job
        if not job.remote:
            return 10 if job.options.profile == "quick" else 30
        return max(1, min(20, self.plan.queries // 250))

    def _other_class(self, rows: Places) -> tuple[Floats, NDArray[np.bool_]]:
        """For each row the nearest known row of another class, where it may go."""
        job = self.context.job
        space, start = job.space, self.ledger.start[rows]
        pool, given = space.to_z(job.rows), job.clean.labels
        begin = self.ledger.z(rows).copy()
        found = np.zeros(len(rows), dtype=bool)
        low, high = space.limits(start)
        for place, own in enumerate(self.ledger.labels[rows]):
            others = np.flatnonzero((given >= 0) & (given != own))
            gaps = np.abs(pool[others] - begin[place]).max(axis=1, initial=0)
            nearest = others[np.argsort(gaps, kind="stable")[:5]]
            if not len(nearest):
                continue
            z = np.clip(
                pool[nearest],
                (low[place] - space.low) / space.scale,
                (high[place] - space.low) / space.scale,
            )
            repeated = np.repeat(start[place : place + 1], len(nearest), axis=0)
            made = space.repair(z, repeated, self.plan.norm, np.inf)
            wrong = self.context.target.ask(made).wrong(np.full(len(made), own))
            if wrong.any():
                begin[place] = space.to_z(made[np.argmax(wrong)][None])[0]
                found[place] = True
        return begin, found
