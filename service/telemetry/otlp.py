"""Spans and log records as OTLP/JSON, without I/O.

Specification: opentelemetry-proto 1, ExportTraceServiceRequest and
ExportLogsServiceRequest in JSON: proto3's, but identifiers are hexadecimal and
enumerations are numbers. Integers of 64 bits are texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

__all__ = ["LogRecord", "Span", "Step", "encode_logs", "encode_spans", "rejected"]

_SCOPE = {"name": "sealgate"}
_INTERNAL, _SERVER = 1, 2
_FAILED = {"code": 2}
# W3C's flag, and two of OTLP's: whether the parent is remote is known, and it is.
_SAMPLED, _KNOWN, _REMOTE = 0x1, 0x100, 0x200
_SEVERITY = {"DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17, "CRITICAL": 21}


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a request's work.

    Attributes:
        name: of the part.
        span_id: 16 hexadecimal digits.
        start_ns, end_ns: Unix time.
    """

    name: str
    span_id: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Span:
    """A request's span.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 of them.
        parent_id: 16 of them, the caller's; empty for the first span of a trace.
        name: with no value of the caller's in it.
        start_ns, end_ns: Unix time.
        failed: by a fault of the server's.
        attributes: by name.
        steps: its children.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: Mapping[str, Any]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A line of the log.

    Attributes:
        time_ns: Unix time.
        severity: as `logging` names it.
        body: for people.
        attributes: by name.
        trace_id, span_id: of the request that it is about, or empty.
    """

    time_ns: int
    severity: str
    body: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    trace_id: str = ""
    span_id: str = ""


def encode_spans(spans: Iterable[Span], resource: Mapping[str, Any]) -> bytes:
    """An ExportTraceServiceRequest."""
    encoded = [item for span in spans for item in _span(span)]
    scope = {"scope": _SCOPE, "spans": encoded}
    whole = {"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}
    return orjson.dumps({"resourceSpans": [whole]})


def encode_logs(records: Iterable[LogRecord], resource: Mapping[str, Any]) -> bytes:
    """An ExportLogsServiceRequest."""
    scope = {"scope": _SCOPE, "logRecords": [_record(record) for record in records]}
    whole = {"resource": {"attributes": _attributes(resource)}, "scopeLogs": [scope]}
    return orjson.dumps({"resourceLogs": [whole]})


def rejected(answer: bytes) -> int:
    """How many items a receiver did not take, by the answer it gave with status 200.

    >>> rejected(b'{"partialSuccess":{"rejectedSpans":"3"}}')
    3
    """
    try:
        partial = orjson.loads(answer or b"{}").get("partialSuccess") or {}
        given = partial.get("rejectedSpans") or partial.get("rejectedLogRecords") or 0
        return max(0, min(int(given), 1 << 31))
    except (AttributeError, TypeError, ValueError):
        return 0


def _span(span: Span) -> Iterable[dict[str, Any]]:
    common = {"traceId": span.trace_id}
    encoded = common | {
        "spanId": span.span_id,
        "flags": _SAMPLED | _KNOWN | (_REMOTE if span.parent_id else 0),
        "name": span.name,
        "kind": _SERVER,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "status": _FAILED if span.failed else {},
    }
    if span.parent_id:
        encoded["parentSpanId"] = span.parent_id
    yield encoded
    for step in span.steps:
        yield common | {
            "spanId": step.span_id,
            "parentSpanId": span.span_id,
            "flags": _SAMPLED | _KNOWN,
            "name": step.name,
            "kind": _INTERNAL,
            "startTimeUnixNano": str(step.start_ns),
            "endTimeUnixNano": str(step.end_ns),
        }


def _record(record: LogRecord) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "timeUnixNano": str(record.time_ns),
        "observedTimeUnixNano": str(record.time_ns),
        "severityNumber": _SEVERITY.get(record.severity, 0),
        "severityText": record.severity,
        "body": {"stringValue": record.body},
        "attributes": _attributes(record.attributes),
    }
    if record.trace_id:
        encoded |= {"traceId": record.trace_id, "spanId": record.span_id}
    return encoded


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list() | tuple():
            return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}
