"""scan.json: everything a scan found, in one versioned document.

`docs/assessment.md` describes the schema. The same seed gives the same bytes, except
under ``times``. For a bundle, each check that makes evidence also gives a
`models.report.Report`: what `sign` signs and the gate reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from models.errors import BundleError, ReportError
from models.files import read_regular
from models.metrics import kind_of
from models.report import Dataset, Metric, Report, Subject
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.versions import unread
from security.assessment.results.result import CheckResult, ScanFinding
from security.assessment.results.rules import SCAN_RULES
from security.errors import AssessmentError
from security.inspection.findings import RULES, SEVERITIES

__all__ = [
    "MAX_SCAN_BYTES",
    "SCAN_SCHEMA",
    "ScanReport",
    "read_report",
    "read_scan",
    "rule_facts",
    "target_facts",
]

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
        return tuple(item for _, item in self._found())

    def _found(self) -> list[tuple[str, ScanFinding]]:
        found = [
            (result.name, item) for result in self.results for item in result.findings
        ]
        return sorted(found, key=lambda pair: SEVERITIES.index(pair[1].severity))

    def to_json(self) -> bytes:
        """The document."""
        return strict_json.dumps(
            {
                "schema": SCAN_SCHEMA,
                "target": dict(self.target),
                "data": dict(self.data),
                "options": dict(self.options),
                "tools": dict(self.tools),
                "findings": [_finding(check, item) for check, item in self._found()],
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
                datasets=(rows,) if result.datasets is None else result.datasets,
                conditions={
                    **self._beside(result.kind, "conditions"),
                    **result.conditions,
                },
                metrics={**self._beside(result.kind, "metrics"), **result.metrics},
                checks=result.checks,
                details=result.public,
            )
            for result in self.results
            if result.kind is not None and result.status == "done"
        )

    def _beside(self, kind: str, what: str) -> dict[str, Any]:
        """What checks without evidence of their own add to that of a kind.

        Conditions are told apart by the check's name.
        """
        found: dict[str, Any] = {}
        for result in self.results:
            own = result.kind is None and result.status == "done"
            if own and kind_of(result.name) == kind:
                first = "" if what == "metrics" else f"{result.name.replace('-', '_')}_"
                given = getattr(result, what)
                found |= {first + name: value for name, value in given.items()}
        return found

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
        schema = value.get("schema")
        if schema != SCAN_SCHEMA:
            raise AssessmentError(f"not a scan report: {unread(schema, SCAN_SCHEMA)}")
        _check_frame(value, _FRAME, "report")
        for item in value["results"]:
            _check_frame(item, _RESULT_FRAME, "result")
            for metric in item["metrics"].values():
                _check_metric(metric)
        for item in value["findings"]:
            _check_frame(item, _FINDING_FRAME, "finding")
            if item["severity"] not in SEVERITIES or not _known(item["rule"]):
                raise AssessmentError("not a scan report: an unknown rule or severity")
            if item.get("metric") is not None:
                _check_metric(item["metric"])
        return value


def target_facts(
    name: str, kind: str, model: bytes, *, path: str = "", elsewhere: str = "\0"
) -> dict[str, Any]:
    """Which model: `id` tells two of one name apart, and stays while it is retrained.

    Args:
        name: of the model, or its file.
        kind: of the target: "onnx", "bundle" or "endpoint".
        model: the file's bytes; none of an endpoint.
        path: of the file, below the root of reports; "" where it is elsewhere.
        elsewhere: of an endpoint its URL, a zero byte and the model it is asked for.
    """
    digest = hashlib.sha256(model).hexdigest() if model else None
    place = path or f"{elsewhere}\0{digest or ''}"
    return {
        "name": name,
        "kind": kind,
        "sha256": digest,
        "id": hashlib.sha256(f"{name}\0{place}".encode()).hexdigest(),
        **({"path": path} if path else {}),
    }


def read_scan(path: Path) -> Mapping[str, Any]:
    """What `read_report` makes of a file.

    Raises:
        AssessmentError: unreadable, too large, or neither; names the file.
    """
    try:
        data = read_regular(path, max_bytes=MAX_SCAN_BYTES, follow_links=True)
    except BundleError as error:
        raise AssessmentError(str(error)) from None
    try:
        return read_report(data)
    except AssessmentError as error:
        raise AssessmentError(f"{path}: {error}") from None


def read_report(data: bytes) -> Mapping[str, Any]:
    """A scan.json, or a report of evidence in the same form: one check, no findings.

    Raises:
        AssessmentError: neither.
    """
    try:
        report = Report.from_json(data)
    except ReportError:
        return ScanReport.parse(data)
    rows = [vars(item) for item in report.datasets if item.role == "holdout"]
    result = CheckResult(
        report.kind,
        conditions=report.conditions,
        metrics=report.metrics,
        checks=report.checks,
    )
    return {
        "target": {"name": report.subject.name},
        "data": rows[0] if rows else {},
        "options": {},
        "results": [_result(result)],
        "findings": [],
    }


_NUMBER = (int, float)
_FRAME: Mapping[str, Any] = {
    "target": dict,
    "data": dict,
    "options": dict,
    "tools": dict,
    "findings": list,
    "results": list,
    "times": dict,
}
_RESULT_FRAME: Mapping[str, Any] = {
    "check": str,
    "status": str,
    "reason": str,
    "reliable": bool,
    "conditions": dict,
    "metrics": dict,
    "checks": list,
    "details": dict,
}
_FINDING_FRAME: Mapping[str, Any] = {
    "check": str,
    "rule": str,
    "severity": str,
    "title": str,
    "message": str,
    "where": str,
    "remedy": str,
    "evidence": dict,
}


def _check_frame(value: Any, frame: Mapping[str, Any], what: str) -> None:
    if not isinstance(value, dict):
        raise AssessmentError(f"not a scan report: a {what} is no object")
    for name, kind in frame.items():
        if not isinstance(value.get(name), kind):
            raise AssessmentError(f"not a scan report: {name} of a {what} is malformed")


def _check_metric(metric: Any) -> None:
    _check_frame(metric, {"value": _NUMBER}, "metric")
    given = {
        name: _NUMBER for name in ("n", "low", "high", "confidence") if name in metric
    }
    if "low" in metric:
        given |= {"high": _NUMBER, "confidence": _NUMBER}
    _check_frame(metric, given, "metric")


def _known(rule: str) -> bool:
    return rule in SCAN_RULES or rule in RULES


def rule_facts(rule: str) -> dict[str, Any]:
    """Severity, title, why and remedy of a rule, wherever it is listed."""
    if rule in SCAN_RULES:
        return {**vars(SCAN_RULES[rule])}
    return {**vars(RULES[rule])}


def _finding(check: str, item: ScanFinding) -> dict[str, Any]:
    facts = rule_facts(item.rule)
    return {
        "check": check,
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
