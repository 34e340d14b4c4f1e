"""The chunks of one norm put together."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.checks.evasion.plan import EvasionPlan
from security.assessment.plan.checks import Outcome

__all__ = ["NormResult", "merge"]


@dataclass(frozen=True, eq=False)
class NormResult:
    """What the attacks of one norm did to all rows.

    Attributes:
        plan: radii and effort.
        places: ``(n,)``, rows of the job.
        own: ``(n,)``: what a radius of 1 is to each row.
        correct: ``(n,)``, right to begin with.
        distance: ``(n,)`` of the closest confirmed example; infinite for none.
        attack: ``(n,)``, its attack's place in `names`, -1 for none.
        examples: ``(n, d)``, raw; the row itself for none.
        names: of attacks.
        attacks: rows tried and broken, by name.
        notes: counts for the checks of the attacks.
        finite: whether all proposals were numbers.
        strange: answers that were none.
        certified: radii of which it was tried to prove that nothing turns a row.
        proved: ``(n, certified)``, where it was proved.
        no_proof: why it was not tried; "" where it was.
    """

    plan: EvasionPlan
    places: NDArray[np.int64]
    own: NDArray[np.float64]
    correct: NDArray[np.bool_]
    distance: NDArray[np.float64]
    attack: NDArray[np.int64]
    examples: NDArray[Any]
    names: tuple[str, ...]
    attacks: Mapping[str, Mapping[str, int]]
    notes: Mapping[str, int]
    finite: bool
    strange: int
    certified: tuple[float, ...] = ()
    proved: NDArray[np.bool_] = field(
        default_factory=lambda: np.zeros((0, 0), dtype=bool)
    )
    no_proof: str = ""

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.places)

    def standing(self, radius: float) -> NDArray[np.bool_]:
        """Rows that are right and unbroken within a radius."""
        if np.isinf(radius):
            return np.asarray(self.correct & np.isinf(self.distance))
        return np.asarray(self.correct & ~(self.distance <= radius * self.own))

    def robust(self, radius: float) -> int:
        """How many of them."""
        return int(self.standing(radius).sum())

    def verified(self, radius: float) -> int:
        """How many rows nothing within a radius can turn, of those in `certified`."""
        return int(self.proved[:, self.certified.index(radius)].sum())

    def contradicted(self) -> int:
        """Rows that were proved to stand, and were broken: one of the two is wrong."""
        found = np.zeros(self.rows, dtype=bool)
        for radius in self.certified:
            held = self.proved[:, self.certified.index(radius)]
            found |= held & ~self.standing(radius)
        return int(found.sum())

    def order(self) -> NDArray[np.int64]:
        """Broken rows, the closest example first."""
        broken = np.flatnonzero(self.correct & np.isfinite(self.distance))
        return broken[np.argsort(self.distance[broken], kind="stable")]

    def attack_name(self, place: int) -> str:
        """The attack that found a row's closest example, or ""."""
        code = int(self.attack[place])
        return self.names[code] if code >= 0 else ""

    def closest(self, count: int, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The closest examples, as references to rows of the file."""
        return [
            {
                "row": int(rows[self.places[place]]),
                "distance": float(self.distance[place]),
                "attack": self.attack_name(place),
            }
            for place in self.order()[:count]
        ]

    def per_row(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> list[dict[str, Any]]:
        """Every row: right or not, and how far its closest example is, if any."""
        return [
            {
                "row": int(rows[self.places[place]]),
                "label": int(labels[self.places[place]]),
                "correct": bool(self.correct[place]),
                "distance": _finite(self.distance[place]),
                "attack": self.attack_name(place),
                **({} if self.plan.own is None else {"radius": self.own[place].item()}),
            }
            for place in range(self.rows)
        ]

    def npy(self) -> bytes:
        """The closest examples as a NumPy file, a row for each row attacked."""
        buffer = io.BytesIO()
        np.save(buffer, self.examples)
        return buffer.getvalue()


def merge(plan: EvasionPlan, outcomes: Sequence[Outcome]) -> NormResult:
    """Put chunks together, in their order."""
    names = tuple(dict.fromkeys(n for item in outcomes for n in item.values["names"]))
    codes = []
    for item in outcomes:
        own = [names.index(name) for name in item.values["names"]]
        table = np.array([*own, -1], dtype=np.int64)
        codes.append(table[item.arrays["attack"]])
    arrays: dict[str, Any] = {
        name: np.concatenate([item.arrays[name] for item in outcomes])
        for name in ("places", "own", "correct", "distance", "examples")
    }
    return NormResult(
        plan=plan,
        attack=np.concatenate(codes),
        names=names,
        attacks={
            name: {
                kind: sum(_count(item, name, kind) for item in outcomes)
                for kind in ("tried", "broken")
            }
            for name in names
        },
        notes=_sums([item.values["notes"] for item in outcomes]),
        finite=all(item.values["finite"] for item in outcomes),
        strange=sum(item.values["strange"] for item in outcomes),
        **arrays,
        **_proofs(outcomes),
    )


def _proofs(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What was proved of all chunks; nothing where one of them was not tried."""
    radii = {tuple(item.values.get("certified", ())) for item in outcomes}
    reasons = [str(item.values.get("no_proof", "")) for item in outcomes]
    if len(radii) != 1 or radii == {()} or any(reasons):
        return {"no_proof": next(filter(None, reasons), "")}
    proved = np.concatenate([item.arrays["proved"] for item in outcomes])
    return {"certified": radii.pop(), "proved": proved}


def _count(item: Outcome, name: str, kind: str) -> int:
    return int(item.values["attacks"].get(name, {}).get(kind, 0))


def _sums(notes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for item in notes for name in item)
    return {name: sum(item.get(name, 0) for item in notes) for name in names}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
