"""The structural inspection as a result: of a scan, and of a bundle's evidence."""

from __future__ import annotations

from models.report import Check, Metric
from security.assessment.results.result import CheckResult, ScanFinding
from security.inspection.findings import RULES, SEVERITIES, Finding
from security.inspection.structure import Inspection

__all__ = ["structure_result"]


def structure_result(inspection: Inspection, model_bytes: int) -> CheckResult:
    """What was found, with every rule that was tried."""
    found = {item.rule: item for item in reversed(inspection.findings)}
    counts = {
        f"{severity}s": sum(item.severity == severity for item in inspection.findings)
        for severity in SEVERITIES
    }
    figures = {"model_bytes": model_bytes, **inspection.counts, **counts}
    return CheckResult(
        "structure",
        kind="structure",
        datasets=(),
        conditions={"rules": len(RULES), "isolation": "child_process_with_limits"},
        metrics={name: Metric(float(count)) for name, count in figures.items()},
        checks=tuple(_check(name, found.get(name)) for name in RULES),
        findings=tuple(_finding(item) for item in inspection.findings),
        public={
            "findings": [
                {**vars(item), "severity": item.severity}
                for item in inspection.findings
            ]
        },
    )


def _check(rule: str, finding: Finding | None) -> Check:
    """A rule of severity note does not fail: it is worth a look."""
    known = RULES[rule]
    passed = finding is None or known.severity == "note"
    message = f"{known.severity}: {known.title}"
    if finding is not None:
        message += f"; {finding.where} {finding.message}"
    return Check(rule, passed, message)


def _finding(item: Finding) -> ScanFinding:
    return ScanFinding(
        item.rule,
        item.message,
        item.where,
        severity=item.severity,
        evidence={"explanation": item.explanation} if item.explanation else {},
    )
