"""evidence/<kind>.json: what was measured, on what, under which conditions.

One format for every kind, so that a policy can put a threshold on any metric and
nothing in a report is free text that the gate must trust. A number travels with its
sample count and interval, and a claim with its conditions (norm and radius,
neighbouring relation and accountant).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from models.errors import ReportError
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.versions import unread

__all__ = [
    "KINDS",
    "OBSERVED",
    "REPORT_SCHEMA",
    "Check",
    "Condition",
    "Dataset",
    "Metric",
    "Report",
    "Subject",
    "format_time",
    "parse_time",
]

REPORT_SCHEMA = "https://sealgate.dev/report/v1"
MAX_REPORT_BYTES = 16 << 20

KINDS = (
    "fairness",
    "membership",
    "parity",
    "privacy",
    "provenance",
    "quality",
    "reference",
    "robustness",
    "structure",
)
# What is seen of a version while it is served: kept beside the plan, never in a bundle.
OBSERVED = ("agreement", "monitoring")
Condition = str | int | float | bool

_SHA256 = re.compile(r"[0-9a-f]{64}")
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Subject:
    """The model a report is about.

    Attributes:
        name, version: as in the manifest.
        root_sha256: root digest of model.onnx and manifest.json (`bundle.root_digest`).
        onnx_sha256: digest of model.onnx.
    """

    name: str
    version: str
    root_sha256: str
    onnx_sha256: str


@dataclass(frozen=True)
class Metric:
    """A number, the sample it rests on, and how sure it is.

    Attributes:
        value: finite.
        n: sample count, None where nothing was sampled (an epsilon, a file size).
        low, high: two-sided confidence interval, both or neither.
        confidence: its level, for instance 0.95; given exactly when the interval is.
    """

    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Check:
    """A yes-or-no finding with a stable id, for instance a structural rule."""

    id: str
    passed: bool
    message: str = ""


@dataclass(frozen=True)
class Dataset:
    """Rows a report used.

    Attributes:
        name: of the data set.
        role: "train", "holdout", …
        rows: how many.
        sha256: digest of the rows as used, features then labels (`datasets.digest`).
    """

    name: str
    role: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Report:
    """One piece of evidence.

    Attributes:
        kind: one of `KINDS`, or of `OBSERVED`.
        created_at: UTC, whole seconds.
        subject: the model it is about.
        tool: what measured, ``{"name": …, "version": …}`` per library.
        datasets: the rows it rests on.
        conditions: what the claim assumes, flat: strings, numbers, booleans.
        metrics: what came out.
        checks: findings.
        details: anything more, for people and tools; no policy reads it.
    """

    kind: str
    created_at: datetime
    subject: Subject
    tools: Mapping[str, str]
    datasets: tuple[Dataset, ...] = ()
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The canonical bytes of this report; `from_json` gives it back."""
        return strict_json.dumps(
            {
                "schema": REPORT_SCHEMA,
                "kind": self.kind,
                "created_at": format_time(self.created_at),
                "subject": vars(self.subject),
                "tools": dict(self.tools),
                "datasets": [vars(dataset) for dataset in self.datasets],
                "conditions": dict(self.conditions),
                "metrics": {
                    name: {k: v for k, v in vars(metric).items() if v is not None}
                    for name, metric in self.metrics.items()
                },
                "checks": [vars(check) for check in self.checks],
                "details": dict(self.details),
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Parse and validate.

        Raises:
            ReportError: not JSON, an unknown or missing field, a wrong type, or a value
                out of range. The message names the field.
        """
        try:
            value = strict_json.loads_object(data, max_bytes=MAX_REPORT_BYTES)
        except JsonError as error:
            raise ReportError(f"report: {error}") from None
        fields = _Fields(value, "report")
        schema = fields.text("schema")
        if schema != REPORT_SCHEMA:
            raise ReportError(f"report.schema: {unread(schema, REPORT_SCHEMA)}")
        report = cls(
            kind=fields.choice("kind", (*KINDS, *OBSERVED)),
            created_at=parse_time(fields.text("created_at")),
            subject=_subject(fields.object("subject")),
            tools=_tools(fields.object("tools")),
            datasets=tuple(_dataset(item) for item in fields.objects("datasets")),
            conditions=_conditions(fields.mapping("conditions")),
            metrics=_metrics(fields.object("metrics")),
            checks=tuple(_check(item) for item in fields.objects("checks")),
            details=fields.mapping("details"),
        )
        fields.done()
        return report


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds.

    >>> format_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02T03:04:05Z'
    """
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


def parse_time(text: str) -> datetime:
    """The inverse of `format_time`.

    Raises:
        ReportError: any other form.
    """
    try:
        moment = datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        moment = None
    # strptime() also takes missing zeros and other scripts' digits.
    if moment is None or format_time(moment) != text:
        raise ReportError("a time is not RFC 3339 in UTC with whole seconds")
    return moment


def _tools(fields: _Fields) -> dict[str, str]:
    return {name: fields.text(name) for name in fields.names()}


def _subject(fields: _Fields) -> Subject:
    subject = Subject(
        name=fields.text("name"),
        version=fields.text("version"),
        root_sha256=fields.match("root_sha256", _SHA256),
        onnx_sha256=fields.match("onnx_sha256", _SHA256),
    )
    fields.done()
    return subject


def _dataset(fields: _Fields) -> Dataset:
    dataset = Dataset(
        name=fields.text("name"),
        role=fields.text("role"),
        rows=fields.count("rows"),
        sha256=fields.match("sha256", _SHA256),
    )
    fields.done()
    return dataset


def _check(fields: _Fields) -> Check:
    check = Check(
        id=fields.match("id", _IDENTIFIER),
        passed=fields.boolean("passed"),
        message=fields.text("message"),
    )
    fields.done()
    return check


def _metrics(fields: _Fields) -> dict[str, Metric]:
    names = list(fields.names())
    return {name: _metric(fields.object(name)) for name in names}


def _metric(fields: _Fields) -> Metric:
    metric = Metric(
        value=fields.number("value"),
        n=fields.count("n") if fields.has("n") else None,
        low=fields.number("low") if fields.has("low") else None,
        high=fields.number("high") if fields.has("high") else None,
        confidence=fields.number("confidence") if fields.has("confidence") else None,
    )
    fields.done()
    interval = (metric.low, metric.high, metric.confidence)
    if None in interval and interval != (None, None, None):
        raise ReportError(f"{fields.where}: low, high and confidence go together")
    if metric.low is not None and metric.high is not None and metric.low > metric.high:
        raise ReportError(f"{fields.where}: the interval is empty")
    return metric


def _conditions(value: Mapping[str, Any]) -> dict[str, Condition]:
    for name, condition in value.items():
        if not isinstance(condition, str | int | float | bool):
            raise ReportError(f"report.conditions.{name}: expected a scalar")
    return dict(value)


class _Fields:
    """Takes typed fields out of an object; `done` refuses what was not taken."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ReportError(f"{where}: expected an object")
        self.where = where
        self._left = dict(value)

    def names(self) -> list[str]:
        return sorted(self._left)

    def has(self, name: str) -> bool:
        return name in self._left

    def done(self) -> None:
        if self._left:
            raise ReportError(f"{self.where}: unknown field {min(self._left)!r}")

    def text(self, name: str) -> str:
        value = self._take(name)
        if not isinstance(value, str) or len(value) > 4096:
            raise self._wrong(name, "a string")
        return value

    def match(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self.text(name)
        if not pattern.fullmatch(value):
            raise self._wrong(name, pattern.pattern)
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.text(name)
        if value not in choices:
            raise self._wrong(name, "one of " + ", ".join(choices))
        return value

    def number(self, name: str) -> float:
        value = self._take(name)
        # By comparison: math.isfinite() fails on an integer beyond a double.
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise self._wrong(name, "a finite number")
        return float(value)

    def count(self, name: str) -> int:
        value = self._take(name)
        if type(value) is not int or value < 0:
            raise self._wrong(name, "a count")
        return value

    def boolean(self, name: str) -> bool:
        value = self._take(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def object(self, name: str) -> _Fields:
        return _Fields(self._take(name), f"{self.where}.{name}")

    def objects(self, name: str) -> list[_Fields]:
        value = self._take(name)
        if not isinstance(value, list):
            raise self._wrong(name, "an array")
        return [_Fields(v, f"{self.where}.{name}[{i}]") for i, v in enumerate(value)]

    def _take(self, name: str) -> Any:
        if name not in self._left:
            raise ReportError(f"{self.where}: missing {name}")
        return self._left.pop(name)

    def _wrong(self, name: str, expected: str) -> ReportError:
        return ReportError(f"{self.where}.{name}: expected {expected}")
