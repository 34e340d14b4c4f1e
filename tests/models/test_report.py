"""models.report: evidence in one format, with nothing in it left to guess."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ReportError
from models.report import (
    REPORT_SCHEMA,
    Check,
    Dataset,
    Metric,
    Report,
    Subject,
    format_time,
    parse_time,
)
from tests.support.mutations import DROP, changed, encode, mutated

REPORT = Report(
    kind="quality",
    created_at=datetime(2026, 11, 1, 12, 0, 5, tzinfo=UTC),
    subject=Subject("toy", "1.0.0", "a" * 64, "b" * 64),
    tools={"numpy": "2.4"},
    datasets=(Dataset("toy", "holdout", 200, "c" * 64),),
    conditions={"norm": "Linf", "radius": 0.1, "targeted": False, "steps": 5},
    metrics={
        "accuracy": Metric(0.95, n=200, low=0.91, high=0.97, confidence=0.95),
        "bytes": Metric(12.0),
    },
    checks=(Check("no-custom-ops", passed=True, message="none"),),
    details={"anything": [1, {"nested": None}]},
)
DOCUMENT = json.loads(REPORT.to_json())


def test_round_trip() -> None:
    assert Report.from_json(REPORT.to_json()) == REPORT
    assert Report.from_json(REPORT.to_json()).to_json() == REPORT.to_json()


FAULTS = [
    ("schema", "v2", f"report.schema: expected {REPORT_SCHEMA}"),
    ("kind", "opinion", "report.kind: expected one of fairness, membership"),
    ("created_at", "2026-11-01", "not RFC 3339 in UTC"),
    ("author", "me", "report: unknown field 'author'"),
    ("subject", DROP, "report: missing subject"),
    ("subject.root_sha256", "A" * 64, "report.subject.root_sha256: expected"),
    ("subject.root_sha256", "a" * 63, "report.subject.root_sha256: expected"),
    ("subject.extra", "x", "report.subject: unknown field 'extra'"),
    ("tools", [], "report.tools: expected an object"),
    ("tools.numpy", 2, "report.tools.numpy: expected a string"),
    ("datasets.0.rows", -1, r"report.datasets\[0\].rows: expected a count"),
    ("datasets.0.rows", True, r"report.datasets\[0\].rows: expected a count"),
    ("datasets.0", 5, r"report.datasets\[0\]: expected an object"),
    ("conditions.radius", None, "report.conditions.radius: expected a scalar"),
    ("conditions.radius", [0.1], "report.conditions.radius: expected a scalar"),
    ("metrics.accuracy.value", "0.95", "accuracy.value: expected a finite number"),
    ("metrics.accuracy.value", True, "accuracy.value: expected a finite number"),
    ("metrics.accuracy.value", 10**400, "accuracy.value: expected a finite number"),
    ("metrics.accuracy.n", 1.5, "accuracy.n: expected a count"),
    ("metrics.accuracy.low", DROP, "low, high and confidence go together"),
    ("metrics.accuracy.confidence", DROP, "low, high and confidence go together"),
    ("metrics.accuracy.low", 0.98, "accuracy: the interval is empty"),
    ("metrics.accuracy.p", 0.01, "report.metrics.accuracy: unknown field 'p'"),
    ("checks.0.passed", 1, r"report.checks\[0\].passed: expected true or false"),
    ("checks.0.passed", "false", r"report.checks\[0\].passed: expected true or false"),
    ("checks.0.id", "No Spaces", r"report.checks\[0\].id: expected"),
    ("details", "text", "report.details: expected an object"),
]


@pytest.mark.parametrize(("path", "value", "message"), FAULTS)
def test_refuses_one_fault(path: str, value: object, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        Report.from_json(encode(changed(DOCUMENT, path, value)))


@pytest.mark.parametrize("name", ["value", "low"])
def test_refuses_nan(name: str) -> None:
    data = encode(changed(DOCUMENT, f"metrics.accuracy.{name}", float("nan")))
    with pytest.raises(ReportError, match="NaN is not JSON"):
        Report.from_json(data)


@settings(deadline=None)
@given(mutated(DOCUMENT))
def test_any_change_is_read_or_refused(document: object) -> None:
    try:
        report = Report.from_json(encode(document))
    except ReportError:
        return
    assert Report.from_json(report.to_json()) == report


@given(
    st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
)
def test_times_round_trip(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    assert parse_time(format_time(moment)) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-02T03:04:05",
        "2026-01-02T03:04:05+00:00",
        "2026-01-02T03:04:05.5Z",
        "2026-01-02 03:04:05Z",
        "2026-1-2T3:4:5Z",
        "2026-02-30T00:00:00Z",
        "2026-01-02T03:04:61Z",
        "٢٠٢٦-01-02T03:04:05Z",
        " 2026-01-02T03:04:05Z",
    ],
)
def test_refuses_another_form_of_time(text: str) -> None:
    with pytest.raises(ReportError, match="not RFC 3339 in UTC with whole seconds"):
        parse_time(text)


@given(st.text(max_size=30))
def test_no_text_breaks_the_time_parser(text: str) -> None:
    try:
        moment = parse_time(text)
    except ReportError:
        return
    assert format_time(moment) == text
