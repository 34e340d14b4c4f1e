"""How much worse a version is than another one, from the evidence that admitted both.

Two places say so, and both are signed. The provenance of a version that `retrain` made
has McNemar's test of its classes beside the version that it was made from, row by row.
The quality and fairness reports of both versions, where they rest on the same rows, are
compared as `compare` compares them. The former counts where both have a figure: paired,
it sees more.

What comes out is a report of the kind ``comparison`` that nobody signs, since it says
nothing that the evidence does not: of each metric ``NAME_loss``, how much worse it is,
below 0 if it is better, and ``worse``, how many are worse by more than chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from models.bundle import report_file
from models.report import Metric, Report
from security.admission.gate import Admission
from security.assessment.reporting.comparison import (
    LEVEL,
    Comparison,
    compare,
    less_is_better,
)
from security.assessment.reporting.pairs import exact_p
from security.assessment.results import intervals
from security.assessment.results.report import read_report
from security.errors import AdmissionRefused

__all__ = ["COMPARISON_CHECK", "compare_versions"]

COMPARISON_CHECK = 44
_KINDS = ("quality", "fairness")


def compare_versions(
    before: Admission | AdmissionRefused,
    before_root: str,
    after: Admission,
    *,
    now: datetime,
) -> Report:
    """The comparison of a version with the one that is the default.

    Args:
        before: what the gate says of the default today; one that it refuses vouches for
            no figure of its own.
        before_root: its root digest.
        after: the version, admitted.
        now: the time.

    Raises:
        AdmissionRefused: check 44, there is nothing that both were measured on.
    """
    paired = _retraining(after, before_root)
    found, why = _evidence(before, after)
    if paired is None and found is None:
        raise AdmissionRefused(COMPARISON_CHECK, f"comparison: {why}")
    metrics: dict[str, Metric] = {}
    worse: set[str] = set()
    if found is not None and not isinstance(before, AdmissionRefused):
        metrics |= dict(_losses(found, before, after))
        worse |= {item.metric for item in found.changes if item.direction == "worse"}
    test = sorted({item.test for item in found.changes if item.test} if found else ())
    if paired is not None:
        loss, p = paired
        metrics["accuracy_loss"] = loss
        worse -= {"accuracy"}
        worse |= {"accuracy"} if p < LEVEL and loss.value > 0 else set()
        test = ["mcnemar", *test]
    rows = min((item.n for item in metrics.values() if item.n), default=0)
    return Report(
        kind="comparison",
        created_at=now.replace(microsecond=0),
        subject=after.bundle.subject,
        tools={},
        conditions={
            "beside_sha256": before_root,
            "paired": paired is not None,
            "same_rows": found is not None,
            "test": ", ".join(test),
        },
        metrics={**metrics, "worse": Metric(float(len(worse)), n=rows)},
        details={"worse": sorted(worse)},
    )


def _retraining(after: Admission, before_root: str) -> tuple[Metric, float] | None:
    """The loss of accuracy that `retrain` found row by row, and its p-value."""
    report = after.reports.get("provenance")
    if report is None or report.conditions.get("compared_with_sha256") != before_root:
        return None
    told, p = report.details.get("comparison"), report.metrics.get("comparison_p_value")
    if not isinstance(told, dict) or p is None:
        return None
    rows = [told.get(name) for name in ("only_before", "only_after")]
    lost, won = (item if type(item) is int and item >= 0 else -1 for item in rows)
    if min(lost, won) < 0 or not p.n or lost + won > p.n:
        return None
    # The counts decide, not the p-value that stands beside them.
    return intervals.paired_drop(lost, won, p.n), exact_p(lost, won)


def _evidence(
    before: Admission | AdmissionRefused, after: Admission
) -> tuple[Comparison | None, str]:
    """What both were measured to be on the same rows, or why there is nothing."""
    if isinstance(before, AdmissionRefused):
        return None, f"the default is not admitted today: {before}"
    kinds = [k for k in _KINDS if k in before.reports and k in after.reports]
    if not kinds:
        return None, "the policy has neither version assessed for quality or fairness"
    documents = [_document(item, kinds) for item in (before, after)]
    rows = [item["data"].get("sha256") for item in documents]
    if rows[0] is None or rows[0] != rows[1]:
        return None, "the two versions were assessed on other rows than each other"
    return compare(*documents), ""


def _document(admission: Admission, kinds: list[str]) -> Mapping[str, Any]:
    """Reports of evidence as one document that `compare` reads."""
    files = admission.bundle.files
    read = [read_report(files[report_file(kind)]) for kind in kinds]
    rows = {item["data"].get("sha256") for item in read}
    return {
        **read[0],
        "data": read[0]["data"] if len(rows) == 1 else {},
        "results": [result for item in read for result in item["results"]],
    }


def _losses(
    found: Comparison, before: Admission, after: Admission
) -> Iterator[tuple[str, Metric]]:
    for change in found.changes:
        less = less_is_better(change.check, change.metric)
        if less is None or change.reason:
            continue
        then, now = (
            item.reports[change.check].metrics[change.metric]
            for item in (before, after)
        )
        pair = (now, then) if less else (then, now)
        if all(item.low is not None for item in pair):
            yield f"{change.metric}_loss", intervals.difference(*pair)
