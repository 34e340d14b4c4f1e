"""scan.json: everything a scan found, in one versioned document.

`docs/assessment.md` describes the schema. The same seed gives the same bytes, except
under ``times``. For a bundle, each check that makes evidence also gives a
`models.report.Report`: what `sign` signs and the gate reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from models.report import Dataset, Metric, Report, Subject
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.assessment.findings import RULES, SEVERITIES
from security.assessment.scan.checks import CheckResult, ScanFinding
from security.assessment.scan.rules import SCAN_RULES
from security.errors import AssessmentError

__all__ = ["MAX_SCAN_BYTES", "SCAN_SCHEMA", "ScanReport", "rule_facts"]

SCAN_SCHEMA = "https://sealgate.dev/scan/v1"
MAX_SCAN_BYTES = 256 << 20


@dataclass(frozen=True)
class ScanReport:
    """A finished scan.

    Attributes:
        target: name, kind, sha256 or None, access, input, classes.
        data: name, sha256, rows, rows used, ranges.
        options: profile, seed and what else decides the result.
        tools: versions of what measured.
        results: per check.
        times: when it began, how long it took; the only part that differs between runs.
    """

    target: Mapping[str, Any]
    data: Mapping[str, Any]
    options: Mapping[str, Any]
    tools: Mapping[str, str]
    results: tuple[CheckResult, ...]
    times: Mapping[str, Any] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[ScanFinding, ...]:
        """Of all checks, the worst first."""
        found = [item for result in self.results for item in result.findings]
        return tuple(sorted(found, key=lambda item: SEVERITIES.index(item.severity)))

    def to_json(self) -> bytes:
        """The document."""
        return strict_json.dumps(
            {
                "schema": SCAN_SCHEMA,
                "target": dict(self.target),
                "data": dict(self.data),
                "options": dict(self.options),
                "tools": dict(self.tools),
                "findings": [_finding(item) for item in self.findings],
                "results": [_result(item) for item in self.results],
                "times": dict(self.times),
            }
        )

    def evidence(self, subject: Subject, created_at: datetime) -> tuple[Report, ...]:
        """The reports that a bundle's evidence is made of."""
        rows = Dataset(
            name=str(self.data["name"]),
            role="holdout",
            rows=int(self.data["rows"]),
            sha256=str(self.data["sha256"]),
        )
        return tuple(
            Report(
                kind=result.kind,
                created_at=created_at,
                subject=subject,
                tools=self.tools,
                datasets=(rows,),
                conditions=result.conditions,
                metrics=result.metrics,
                checks=result.checks,
                details=result.details,
            )
            for result in self.results
            if result.kind is not None and result.status == "done"
        )

    @classmethod
    def parse(cls, data: bytes) -> Mapping[str, Any]:
        """Read a document back, as JSON whose frame was checked.

        Raises:
            AssessmentError: not a scan report of this version.
        """
        try:
            value = strict_json.loads_object(data, max_bytes=MAX_SCAN_BYTES)
        except JsonError as error:
            raise AssessmentError(f"not a scan report: {error}") from None
        if value.get("schema") != SCAN_SCHEMA:
            raise AssessmentError(f"not a scan report: expected {SCAN_SCHEMA}")
        for name, kind in (("target", dict), ("results", list), ("findings", list)):
            if not isinstance(value.get(name), kind):
                raise AssessmentError(f"not a scan report: {name} is malformed")
        return value


def rule_facts(rule: str) -> dict[str, Any]:
    """Severity, title, why and remedy of a rule, wherever it is listed."""
    if rule in SCAN_RULES:
        return {**vars(SCAN_RULES[rule])}
    known = RULES[rule]
    return {**vars(known), "remedy": "Look at the place in the graph, or refuse it."}


def _finding(item: ScanFinding) -> dict[str, Any]:
    facts = rule_facts(item.rule)
    return {
        "rule": item.rule,
        "severity": item.severity,
        "title": facts["title"],
        "message": item.message,
        "where": item.where,
        "metric": None if item.metric is None else _metric(item.metric),
        "remedy": facts["remedy"],
        "atlas": list(facts.get("atlas", ())),
        "nist": list(facts.get("nist", ())),
        "owasp": list(facts.get("owasp", ())),
        "evidence": dict(item.evidence),
    }


def _result(item: CheckResult) -> dict[str, Any]:
    return {
        "check": item.name,
        "status": item.status,
        "reason": item.reason,
        "reliable": item.reliable,
        "conditions": dict(item.conditions),
        "metrics": {name: _metric(metric) for name, metric in item.metrics.items()},
        "checks": [vars(check) for check in item.checks],
        "details": dict(item.details),
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {name: value for name, value in vars(metric).items() if value is not None}
