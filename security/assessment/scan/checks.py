"""What a check of a scan is: units of work, and a conclusion from what they gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.report import Check, Condition, Metric
from security.assessment.scan.context import Context
from security.assessment.scan.rules import SCAN_RULES
from security.assessment.scan.store import Outcome

__all__ = ["CheckResult", "ScanCheck", "ScanFinding", "Unit", "row_units"]


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


@dataclass(frozen=True)
class ScanFinding:
    """A rule that does not hold, with the number behind it.

    Attributes:
        rule: an id of `SCAN_RULES` or of `findings.RULES`.
        message: what was found.
        where: place in the graph, norm, class, column, …
        metric: the number, with its n and interval, or None.
        severity: of the rule, unless the finding is milder.
        evidence: more, JSON, for people and tools.
    """

    rule: str
    message: str
    where: str = ""
    metric: Metric | None = None
    severity: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the severity from the rule where none is given."""
        if not self.severity:
            object.__setattr__(self, "severity", SCAN_RULES[self.rule].severity)


@dataclass(frozen=True)
class CheckResult:
    """What a check concludes.

    Attributes:
        name: of the check.
        status: "done", "partial" (a budget ended) or "skipped".
        reason: why not done, for people.
        reliable: whether the numbers may be relied upon; False where a check of the
            attacks themselves failed.
        kind: of the evidence report that this makes for a bundle, or None.
        conditions, metrics, checks: as in a report.
        findings: rules that do not hold.
        details: JSON, for people and tools.
        files: contents by name, written beside scan.json; nothing in them may vary
            between runs.
    """

    name: str
    status: str = "done"
    reason: str = ""
    reliable: bool = True
    kind: str | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    findings: tuple[ScanFinding, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


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
