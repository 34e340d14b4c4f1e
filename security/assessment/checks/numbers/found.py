"""The chunks of one norm put together: highest and lowest answers of each row."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.report import Check, Metric
from security.assessment.checks.evasion.plan import EvasionPlan
from security.assessment.checks.evasion.reliability import tolerated
from security.assessment.checks.evasion.views import shown_change
from security.assessment.plan.checks import Outcome
from security.assessment.plan.context import Context
from security.assessment.results import intervals
from security.assessment.results.result import ScanFinding

__all__ = ["NORM_NAMES", "Found", "radii_of", "tolerance_of"]

Floats = NDArray[np.float64]
NORM_NAMES = {"linf": "L\N{INFINITY}", "l2": "L2"}
# Below this share of rows that stay within the tolerance a finding is made.
_STABLE = 0.9
_EXAMPLES = 6


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one norm, of rows that have an answer.

    Attributes:
        context: of the scan.
        plan: radii and effort.
        places: ``(n,)``, rows of the job.
        levels: ``(r, 2, n)``, highest and lowest answers by radius.
        made: ``(2, n, d)``, rows that get them within the largest radius.
        attacks, notes, finite, strange: as of the units.
    """

    context: Context
    plan: EvasionPlan
    places: NDArray[np.int64]
    levels: Floats
    made: NDArray[Any]
    attacks: Mapping[str, Mapping[str, int]]
    notes: Mapping[str, int]
    finite: bool
    strange: int

    @classmethod
    def of(cls, context: Context, plan: EvasionPlan, outcomes: list[Outcome]) -> Found:
        """The chunks of one norm, in their order."""
        names = dict.fromkeys(n for item in outcomes for n in item.values["names"])
        notes = dict.fromkeys(n for item in outcomes for n in item.values["notes"])
        attacks = [item.values["attacks"] for item in outcomes]
        return cls(
            context,
            plan,
            np.concatenate([item.arrays["places"] for item in outcomes]),
            np.concatenate([item.arrays["levels"] for item in outcomes], axis=2),
            np.concatenate([item.arrays["examples"] for item in outcomes], axis=1),
            {
                name: {
                    what: sum(item.get(name, {}).get(what, 0) for item in attacks)
                    for what in ("tried", "moved")
                }
                for name in names
            },
            {
                name: sum(item.values["notes"].get(name, 0) for item in outcomes)
                for name in notes
            },
            all(item.values["finite"] for item in outcomes),
            sum(item.values["strange"] for item in outcomes),
        )

    @property
    def radii(self) -> tuple[float, ...]:
        """All radii, ascending."""
        return radii_of(self.plan)

    @property
    def clean(self) -> Floats:
        """The answers about the rows as they are ``(n,)``."""
        return self.context.job.clean.numbers[self.places]

    @property
    def truth(self) -> Floats:
        """What is true of them ``(n,)``."""
        return np.asarray(self.context.job.labels[self.places], np.float64)

    def changes(self, radius: float) -> Floats:
        """The largest change of each row's answer within a radius ``(n,)``."""
        high, low = self._level(radius)
        return np.maximum(high - self.clean, self.clean - low)

    def errors(self, radius: float) -> Floats:
        """The largest error of each row's answer within a radius ``(n,)``."""
        high, low = self._level(radius)
        return np.maximum(np.abs(high - self.truth), np.abs(low - self.truth))

    def stable(self, radius: float) -> Metric:
        """The share of rows whose answer moves by no more than the tolerance."""
        stays = self.changes(radius) <= tolerance_of(self.context)
        return intervals.proportion(int(stays.sum()), len(stays))

    def _level(self, radius: float) -> Floats:
        return np.asarray(self.levels[self.radii.index(radius)])

    def checks(self) -> list[Check]:
        """Whether the search worked as it must: its ids begin with the norm's name."""
        norm, notes = self.plan.norm, self.notes
        made = [
            Check(
                f"{norm}-proposals-finite",
                self.finite,
                "no attack proposed what is not a number",
            )
        ]
        if not notes:
            return made
        single, tried = notes["single_step_only"], notes["black_box_tried"]
        alone = notes["black_box_only"]
        return [
            *made,
            Check(
                f"{norm}-iterations-not-weaker",
                single <= tolerated(len(self.places)),
                f"a single step moved {single} rows further than iterated attacks",
            ),
            Check(
                f"{norm}-black-box-not-stronger",
                alone <= tolerated(tried),
                f"a search without gradients moved {alone} of {tried} rows further "
                "than attacks with gradients",
            ),
        ]

    def findings(self) -> list[ScanFinding]:
        """What is not reliable, and what moves too far."""
        norm, radius = self.plan.norm, self.plan.radius
        where = f"{norm} {radius:g}"
        found = [
            ScanFinding("evasion-unreliable", f"{check.id}: {check.message}", where)
            for check in self.checks()
            if not check.passed
        ]
        stable, tolerance = self.stable(radius), tolerance_of(self.context)
        if stable.value < _STABLE:
            stated = self.context.job.config.tolerance is not None
            changes, rows = self.changes(radius), len(self.places)
            moved = int((changes > tolerance).sum())
            found.append(
                ScanFinding(
                    "evasion-change" if stated else "evasion-change-unstated",
                    f"the answer about {moved} of {rows} rows moves by more than "
                    f"{tolerance:.4g} within {norm} {radius:g}; the largest change is "
                    f"{changes.max():.4g}",
                    where,
                    stable,
                )
            )
        if self.strange:
            message = f"{self.strange} rows made by attacks get no usable answer"
            found.append(ScanFinding("answer-not-finite", message, where))
        return found

    def details(self) -> dict[str, Any]:
        """The curve, and every row: how far it moves within the stated radius."""
        job, radius = self.context.job, self.plan.radius
        changes, errors = self.changes(radius), self.errors(radius)
        return {
            "radius": radius,
            "curve": [
                {
                    "radius": item,
                    "mean_largest_change": vars(
                        intervals.positive_mean(self.changes(item))
                    ),
                    "stable_share": vars(self.stable(item)),
                }
                for item in self.radii
            ],
            "attacks": self.attacks,
            "notes": self.notes,
            "rows": [
                {
                    "row": int(job.places[place]),
                    "truth": float(job.labels[place]),
                    "answer": float(self.clean[index]),
                    "change": float(changes[index]),
                    "error": float(errors[index]),
                }
                for index, place in enumerate(self.places)
            ],
        }

    def chart(self) -> dict[str, Any]:
        """The mean largest change by radius."""
        points = [[0.0, 0.0, 0.0, 0.0]]
        for radius in self.radii:
            metric = intervals.positive_mean(self.changes(radius))
            ends = [metric.value if e is None else e for e in (metric.low, metric.high)]
            points.append([radius, metric.value, *ends])
        return {
            "title": f"Mean largest change of the answer, {NORM_NAMES[self.plan.norm]}",
            "x": "radius",
            "y": "change",
            "y_low": 0.0,
            "series": [{"name": "", "points": points}],
        }

    def examples(self) -> list[dict[str, Any]]:
        """The rows that move furthest within the largest radius."""
        job = self.context.job
        radius = self.radii[-1]
        order = np.argsort(-self.changes(radius), kind="stable")
        shown = []
        for index in order[: _EXAMPLES if self.plan.norm == "linf" else _EXAMPLES // 2]:
            side = self._side(int(index))
            before = job.rows[self.places[index]]
            shown.append(
                {
                    "caption": f"Row {int(job.places[self.places[index]])}: "
                    f"{self.clean[index]:.4g} becomes "
                    f"{self.levels[-1, side, index]:.4g} within "
                    f"{NORM_NAMES[self.plan.norm]} {radius:g}",
                    **shown_change(job, before, self.made[side, index]),
                }
            )
        return shown

    def npy(self) -> bytes:
        """The rows that move the answers furthest, as a NumPy file."""
        chosen = [self._side(index) for index in range(len(self.places))]
        buffer = io.BytesIO()
        np.save(buffer, self.made[chosen, np.arange(len(self.places))])
        return buffer.getvalue()

    def _side(self, index: int) -> int:
        """0 where the highest answer is the further one, else 1."""
        high, low = self.levels[-1, :, index]
        return int(high - self.clean[index] < self.clean[index] - low)


def radii_of(plan: EvasionPlan) -> tuple[float, ...]:
    """Of a curve and its stated one, ascending."""
    return tuple(sorted({*plan.curve, plan.radius}))


def tolerance_of(context: Context) -> float:
    """By how much an answer may move: as stated, or as it is off on average."""
    stated = context.job.config.tolerance
    if stated is not None:
        return stated
    off = np.abs(context.job.clean.numbers - context.job.labels)
    return float(off[np.isfinite(off)].mean())
