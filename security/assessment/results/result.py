"""What a check concludes: metrics with their conditions, and findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.report import Check, Condition, Dataset, Metric
from security.assessment.results.rules import SCAN_RULES

__all__ = ["CheckResult", "ScanFinding"]


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
        datasets: that the figures rest on; None is the held-out rows.
        details: JSON, for people and tools.
        public: JSON, the details of the evidence report: of no single row.
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
    datasets: tuple[Dataset, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    public: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
