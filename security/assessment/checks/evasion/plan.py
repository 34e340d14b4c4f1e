"""Radii, and how hard each attack tries, from the profile and the kind of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from security.assessment.plan.checks import Outcome, Unit
from security.assessment.plan.context import Context, Job
from security.assessment.plan.images import Layout, layout_of

__all__ = [
    "EvasionPlan",
    "bearable",
    "default_radius",
    "of_norm",
    "part_of",
    "plan_for",
    "units_of",
]

# Of the stated radius; and everything that the ranges allow.
_CURVE = (0.25, 0.5, 1.0, 2.0, 4.0)
# What one row costs beside the search itself: the clean answer, confirmations, radii.
_REMOTE_SHARE = 0.4
# Up to so many values a row, a step of an attack is the interpreter's time more than
# arithmetic: the same step for more rows costs little, and little memory.
_NARROW = 64


@dataclass(frozen=True, eq=False)
class EvasionPlan:
    """What is tried in one norm.

    Attributes:
        norm: "linf" or "l2".
        radius: of the stated robust accuracy: the first of several.
        stated: all of them, ascending: each is attacked as hard as one alone.
        curve: all radii, ascending; the last is infinite: the whole range.
        own: of each row of the job, where rows have radii of their own: then `radius`
            is 1, and the curve's are shares of it.
        queries: of the random search at the stated radius, per row.
        curve_queries: of the random search at other radii, where there is no gradient.
        image: where the pixels lie; None for tables.
    """

    norm: str
    radius: float
    stated: tuple[float, ...]
    curve: tuple[float, ...]
    queries: int
    curve_queries: int
    image: Layout | None
    own: NDArray[np.float64] | None = None

    def say(self, radius: float) -> str:
        """A radius, for people."""
        if np.isinf(radius):
            return "the whole range"
        if self.own is None:
            return f"{radius:g}"
        share = "" if radius == 1 else f"{radius:g} of "
        return f"{share}each row's own radius"

    @property
    def smallest(self) -> float:
        """What is claimed of every row: the radius, or the least of the rows' own."""
        return self.radius if self.own is None else float(self.own.min())


def bearable(context: Context, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows to attack: those places, or as many as take a bearable time."""
    effort = context.job.options.effort
    image = layout_of(context.job) is not None
    most = effort.attacked_images if image else effort.attacked
    if len(places) > most:
        places = context.random("evasion/rows").permutation(places)[:most]
    return np.sort(places)


def units_of(context: Context, places: NDArray[np.int64]) -> list[Unit]:
    """One per norm and chunk of those rows."""
    return [
        Unit("evasion", f"evasion/{norm}/{index:04}", {"norm": norm, "at": index})
        for norm in context.job.options.effort.norms
        for index in range(-(-len(places) // _size(context)))
    ]


def _size(context: Context) -> int:
    """Rows of a unit."""
    effort, width = context.job.options.effort, context.job.rows.shape[1]
    return effort.chunk * (effort.joined if width <= _NARROW else 1)


def part_of(
    unit: Unit, context: Context, places: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The chunk of those rows that a unit of `units_of` is about."""
    size = _size(context)
    first = int(unit.params["at"]) * size
    return places[first : first + size]


def of_norm(outcomes: Mapping[str, Outcome], norm: str) -> list[Outcome]:
    """What came of the units of a norm, in their order."""
    return [out for key, out in sorted(outcomes.items()) if f"/{norm}/" in key]


def plan_for(job: Job, norm: str) -> EvasionPlan:
    """The plan of a job in one norm."""
    own = job.radii.get(norm)
    given = job.options.radii(norm) or (default_radius(job, norm),)
    stated = (1.0,) if own is not None else given
    radius = stated[0]
    shares = {float(f"{radius * share:.6g}") for share in _CURVE}
    queries = job.options.effort.square_queries
    if job.remote:
        times = len(job.rows) * len(job.options.effort.norms) * len(stated)
        total = job.limits.max_queries * _REMOTE_SHARE
        queries = max(10, min(queries, int(total / times)))
    return EvasionPlan(
        norm=norm,
        radius=radius,
        stated=tuple(sorted(stated)),
        curve=(*sorted(shares | {*stated}), np.inf),
        own=own,
        queries=queries,
        curve_queries=max(5, queries // 5),
        image=layout_of(job),
    )


def default_radius(job: Job, norm: str) -> float:
    """What is usual for such data: shares of the range."""
    scale = float(np.median(job.space.scale / (job.space.high - job.space.low)))
    if job.space.table:
        share = 0.02 if norm == "linf" else 0.05
    elif (image := layout_of(job)) is not None and image.channels == 3:
        share = 8 / 255 if norm == "linf" else 0.5
    else:
        share = 0.1 if norm == "linf" else 0.5
    return share / scale
