"""The highest and the lowest answer that is found in each row's ball.

Every answer counts only as onnxruntime, or the endpoint, gives it, on the very numbers
that were sent, inside the ball, the ranges and every rule. With a gradient Auto-PGD
climbs up and down; without one, Square (Andriushchenko et al. 2020) and a sweep over
the columns, one after the other, on both sides of each threshold of a tree. What was
found within a radius holds within every larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from security.assessment.checks.evasion.cascade import white_box_of
from security.assessment.checks.evasion.coordinate import thresholds
from security.assessment.checks.evasion.gradient import Ball, apgd, single_step
from security.assessment.checks.evasion.plan import EvasionPlan
from security.assessment.checks.evasion.square import Search, square
from security.assessment.plan.context import Context

__all__ = ["Extremes", "search"]

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

_SIGNS = (1.0, -1.0)
# Beyond this many columns a sweep asks too much.
_MAX_COLUMNS = 256
_SWEEPS, _VALUES = 2, 8
# Square stops where a margin is negative: no answer is so many times what is usual.
_UNREACHED = 1e9


class Extremes:
    """The highest and lowest answers known of some rows, and where they are.

    Attributes:
        start: ``(n, d)``, the rows as sent.
        values: ``(2, n)``, highest and lowest answers so far.
        examples: ``(2, n, d)``, rows that get them.
        tried, moved: rows asked and extremes moved, by attack.
        strange: rows that got no usable answer.
        finite: whether every proposal was made of numbers.
    """

    def __init__(self, context: Context, places: Places, norm: str) -> None:
        self.context, self.norm = context, norm
        self.start = context.job.rows[places]
        clean = context.job.clean.numbers[places]
        self.values = np.stack([clean, clean])
        self.examples = np.stack([self.start, self.start])
        self.tried: dict[str, int] = {}
        self.moved: dict[str, int] = {}
        self.strange = 0
        self.finite = True

    def look(self, name: str, rows: Places, z: Floats, radius: float) -> Floats:
        """Ask about candidates in attack coordinates; their answers, NaN for none."""
        self.context.check_time()
        space, start = self.context.job.space, self.start[rows]
        self.finite &= bool(np.isfinite(z).all())
        made = space.repair(z, start, self.norm, radius)
        inside = space.distance(made, start, self.norm) <= radius
        inside &= space.allowed(made, start)
        numbers = self.context.target.ask(made).numbers
        self.strange += int((~np.isfinite(numbers)).sum())
        numbers = np.where(inside, numbers, np.nan)
        self.tried[name] = self.tried.get(name, 0) + len(rows)
        moved = sum(
            self._keep(side, rows, made, numbers) for side in range(len(_SIGNS))
        )
        self.moved[name] = self.moved.get(name, 0) + moved
        return numbers

    def z(self, side: int, rows: Places) -> Floats:
        """Attack coordinates of the best rows so far."""
        return self.context.job.space.to_z(self.examples[side, rows])

    def _keep(self, side: int, rows: Places, made: Any, numbers: Floats) -> int:
        """Take over what lies further to one side; how many rows did."""
        sign = _SIGNS[side]
        # One row may be asked about several times at once: the best of these counts.
        height = np.where(np.isfinite(numbers), sign * numbers, -np.inf)
        order = np.argsort(height, kind="stable")
        better = order[height[order] > sign * self.values[side, rows[order]]]
        self.values[side, rows[better]] = numbers[better]
        self.examples[side, rows[better]] = made[better]
        return len(np.unique(rows[better]))


def search(
    context: Context,
    places: Places,
    plan: EvasionPlan,
    radii: Sequence[float],
    key: str,
) -> tuple[Extremes, Floats, dict[str, int]]:
    """Search each radius, the smallest first.

    Returns:
        What is known at the end; highest and lowest answers by radius ``(r, 2, n)``;
        and counts for the checks of the search itself.

    Raises:
        BudgetError: queries or time ran out.
    """
    found = Extremes(context, places, plan.norm)
    notes: dict[str, int] = {}
    attack = _Attack(found, plan, key)
    levels = []
    for radius in radii:
        if attack.white is None:
            attack.without_gradient(np.arange(len(places)), radius)
        else:
            attack.with_gradient(radius)
        if radius == plan.radius and attack.white is not None:
            notes = attack.checked(radius)
        levels.append(found.values.copy())
    return found, np.stack(levels), notes


class _Attack:
    """The searches on the rows of one `Extremes`."""

    def __init__(self, found: Extremes, plan: EvasionPlan, key: str) -> None:
        self.found, self.plan, self.key = found, plan, key
        self.context = context = found.context
        self.white, _ = white_box_of(context)
        job = context.job
        self._scale = float(np.std(job.labels)) or 1.0
        width = job.rows.shape[1]
        if "thresholds" not in context.cache:
            known = [np.empty(0)] * width
            if not job.remote:
                known = thresholds(job.source.model, width)
            context.cache["thresholds"] = known
        self._thresholds: list[Floats] = context.cache["thresholds"]

    def with_gradient(self, radius: float) -> None:
        """Auto-PGD up and down, from a random point and from what is known."""
        effort, stated = self.context.job.options.effort, radius == self.plan.radius
        steps = effort.iterations if stated else effort.curve_iterations
        rows = np.arange(self.found.values.shape[1])
        for side, sign in enumerate(_SIGNS):
            for start in (None, self.found.z(side, rows)) if stated else (None,):
                made = self._climbed(rows, radius, sign, steps, start)
                self.found.look("apgd", rows, made, radius)

    def without_gradient(self, rows: Places, radius: float) -> None:
        """Square, and the sweep where rows are those of a table."""
        stated = radius == self.plan.radius
        queries = self.plan.queries if stated else self.plan.curve_queries
        for side, sign in enumerate(_SIGNS):
            self._square(rows, radius, sign, max(2, queries // len(_SIGNS)))
            if self._sweeps:
                self._sweep(rows, radius, side, sign)

    def checked(self, radius: float) -> dict[str, int]:
        """Whether what should be weaker finds more: one step, and no gradient."""
        before, rows = self._reach(), np.arange(self.found.values.shape[1])
        for sign in _SIGNS:
            ball = self._ball(rows, radius)
            made = single_step(self._model, ball, _zeros(rows), _towards(sign))
            self.found.look("fgsm", rows, made.numpy().astype(np.float64), radius)
        single = int(self._further(before).sum())
        before = self._reach()
        count = self.context.job.options.effort.checked_rows
        random = self.context.random(f"{self.key}/checked")
        some = np.sort(random.permutation(rows)[:count])
        self.without_gradient(some, radius)
        alone = int(self._further(before).sum())
        return {
            "single_step_only": single,
            "black_box_only": alone,
            "black_box_tried": len(some),
        }

    @property
    def _sweeps(self) -> bool:
        job = self.context.job
        small = job.space.table and job.rows.shape[1] <= _MAX_COLUMNS
        return small and not job.remote

    @property
    def _model(self) -> torch.nn.Module:
        if self.white is None:
            raise TypeError("there is no gradient to follow")
        return self.white.model

    def _reach(self) -> Floats:
        """How far apart highest and lowest answer are ``(n,)``."""
        return np.asarray(self.found.values[0] - self.found.values[1])

    def _further(self, before: Floats) -> NDArray[np.bool_]:
        """Rows whose reach grew by more than a twentieth, and by what matters."""
        grown = self._reach() - before
        return np.asarray(grown > np.maximum(0.05 * before, 1e-3 * self._scale))

    def _ball(self, rows: Places, radius: float) -> Ball:
        if self.white is None:
            raise TypeError("there is no gradient to follow")
        space, start = self.context.job.space, self.found.start[rows]
        low, high = (
            self.white.tensor((edge - space.low) / space.scale)
            for edge in space.limits(start)
        )
        centre = self.white.tensor(space.to_z(start))
        return Ball.of(centre, (low, high), radius, self.plan.norm)

    def _climbed(
        self,
        rows: Places,
        radius: float,
        sign: float,
        steps: int,
        start: Floats | None,
    ) -> Floats:
        if self.white is None:
            raise TypeError("there is no gradient to follow")
        name = f"{self.key}/{radius}/{sign}/{start is None}"
        made = apgd(
            self._model,
            self._ball(rows, radius),
            _zeros(rows),
            _towards(sign),
            steps=steps,
            generator=torch.Generator().manual_seed(self.context.seed(name)),
            start=None if start is None else self.white.tensor(start),
        )
        return made.numpy().astype(np.float64)

    def _square(self, rows: Places, radius: float, sign: float, queries: int) -> None:
        space, start = self.context.job.space, self.found.start[rows]
        reach = radius if self.plan.norm == "linf" else np.inf
        low, high = (space.to_z(item) for item in space.limits(start, reach))

        def evaluate(points: Floats, places: Places) -> Floats:
            numbers = self.found.look("square", rows[places], points, radius)
            return _UNREACHED - sign * numbers / self._scale

        made = Search(
            centre=space.to_z(start),
            low=low,
            high=high,
            radius=np.full(len(rows), radius),
            norm=self.plan.norm,
            image=self.plan.image,
            queries=queries,
        )
        square(made, evaluate, self.context.random(f"{self.key}/{radius}/{sign}"))

    def _sweep(self, rows: Places, radius: float, side: int, sign: float) -> None:
        """Column by column, to the value that helps most; twice over all columns."""
        space = self.context.job.space
        low, high = space.limits(self.found.start[rows], radius)
        for column in np.tile(np.arange(low.shape[1]), _SWEEPS):
            if not (high[:, column] > low[:, column]).any():
                continue
            values = self._candidates(int(column), low[:, column], high[:, column])
            points = np.repeat(self.found.z(side, rows), values.shape[1], axis=0)
            points[:, column] = (values.reshape(-1) - space.low[column]) / space.scale[
                column
            ]
            asked = np.repeat(rows, values.shape[1])
            self.found.look("sweep", asked, points, radius)

    def _candidates(self, column: int, low: Floats, high: Floats) -> Floats:
        """Values to try ``(n, k)``: ends and middle, and about each threshold."""
        known = self._thresholds[column]
        middle = (low + high) / 2
        if not len(known):
            return np.stack([low, high, middle], axis=1)
        first, last = np.searchsorted(known, low), np.searchsorted(known, high)
        share = np.linspace(0, 1, _VALUES)[None]
        places = first[:, None] + (last - 1 - first)[:, None].clip(0) * share
        inside = known[np.clip(np.round(places).astype(int), 0, len(known) - 1)]
        single = inside.astype(np.float32)
        above = np.nextafter(single, np.float32(np.inf)).astype(np.float64)
        values = np.concatenate([low[:, None], high[:, None], inside, above], axis=1)
        return np.clip(values, low[:, None], high[:, None])


def _zeros(rows: Places) -> torch.Tensor:
    """The only "class" there is: what climbs a number never leaves it."""
    return torch.zeros(len(rows), dtype=torch.int64)


def _towards(sign: float) -> Any:
    """What Auto-PGD climbs: the number itself, or its negative."""

    def loss(scores: torch.Tensor, labels: torch.Tensor, place: torch.Tensor) -> Any:
        del labels, place
        return sign * scores[:, 0]

    return loss
