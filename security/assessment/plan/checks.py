"""What a check of a scan is: units of work, and a conclusion from what they gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from security.assessment.plan.context import Context
from security.assessment.results.result import CheckResult

__all__ = ["Outcome", "ScanCheck", "Unit", "row_units"]


@dataclass(frozen=True)
class Unit:
    """A piece of work that one process does in one go, and that is saved when done.

    Attributes:
        check: name of its check.
        key: unique and stable: random numbers and the saved file follow it.
        params: JSON, for the check.
        weight: how long it takes beside other units.
    """

    check: str
    key: str
    params: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one unit of work gave.

    Attributes:
        values: JSON.
        arrays: by name; no names beginning with an underscore.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def row_units(check: str, rows: int, *, size: int) -> list[Unit]:
    """Units of some rows each, with ``first`` and ``end`` as parameters.

    >>> [unit.params for unit in row_units("smoothing", 25, size=10)][-1]
    {'first': 20, 'end': 25}
    """
    return [
        Unit(
            check,
            f"{check}/{first:04}",
            {"first": first, "end": min(first + size, rows)},
        )
        for first in range(0, rows, size)
    ]


class ScanCheck(Protocol):
    """One check. Instances hold no state: a process makes its own.

    Attributes:
        name: stable, for `--check` and reports.
        title: for people.
    """

    name: str
    title: str

    def missing(self, context: Context) -> str | None:
        """Why this check does not apply to the target and data; None where it does."""
        ...

    def units(self, context: Context) -> list[Unit]:
        """The work, in the order of its importance."""
        ...

    def run(self, unit: Unit, context: Context) -> Outcome:
        """Do one unit, in any process.

        Raises:
            BudgetError: queries or time ran out; the unit counts as not done.
        """
        ...

    def conclude(
        self, context: Context, outcomes: Mapping[str, Outcome]
    ) -> CheckResult:
        """The result of the units that are done, by key; some may be missing."""
        ...
