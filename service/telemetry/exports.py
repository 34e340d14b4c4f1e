"""What this worker exports: spans and log lines, to where the environment says."""

from __future__ import annotations

import logging
import os
import time
import uuid
from calendar import timegm
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from security.errors import KeyFileError, SettingsError
from service.telemetry.export_settings import (
    ExportSettings,
    SignalSettings,
    read_export,
)
from service.telemetry.exporter import Exporter
from service.telemetry.metrics import Metrics
from service.telemetry.otlp import LogRecord, Span, encode_logs, encode_spans
from service.telemetry.spans import Tracer

__all__ = ["Exports", "check_exports", "open_exports", "record_of"]

_log = logging.getLogger(__name__)

# Of a worker's end, within what a server gives its workers to end.
_FLUSH_S = 3.0
# Fields of a line that are a record's own, and the trace that a relay may know.
_NOT_ATTRIBUTES = frozenset(
    ("time", "level", "logger", "message", "trace_id", "span_id", "outer_trace_id")
)


class Exports:
    """The exporters of a worker.

    Attributes:
        tracer: makes spans; None if none are exported.
        write_line: exports a line of the log; None if none are.
    """

    def __init__(
        self,
        spans: Exporter[Span] | None,
        records: Exporter[Mapping[str, Any]] | None,
        tracer: Tracer | None,
    ) -> None:
        self._all = [one for one in (spans, records) if one is not None]
        self.tracer = tracer
        self.write_line: Callable[[Mapping[str, Any]], None] | None = (
            None if records is None else records.put
        )

    def stop(self) -> None:
        """Send what waits, within a bound."""
        until = time.monotonic() + _FLUSH_S
        for exporter in self._all:
            exporter.stop(max(0.0, until - time.monotonic()))


def check_exports(environment: Mapping[str, str] = os.environ) -> None:
    """Fail at the start what would fail in every worker; warn of the rest.

    Raises:
        SettingsError: a certificate cannot be used.
    """
    settings = read_export(environment)
    for warning in settings.warnings:
        _log.warning("%s", warning)
    for signal in (settings.traces, settings.logs):
        if signal is not None:
            _tried(signal)


def open_exports(
    metrics: Metrics, environment: Mapping[str, str] = os.environ
) -> Exports:
    """The exporters that the environment asks for, running.

    Raises:
        SettingsError: as `check_exports`.
    """
    settings = read_export(environment)
    resource = _resource(settings)
    spans = records = tracer = None
    if settings.traces is not None:
        spans = _open(
            settings.traces,
            partial(encode_spans, resource=resource),
            metrics,
            "traces",
        )
        tracer = Tracer(settings.sampling, spans.put)
    if settings.logs is not None:
        records = _open(
            settings.logs,
            lambda lines: encode_logs(map(record_of, lines), resource),
            metrics,
            "logs",
        )
    return Exports(spans, records, tracer)


def record_of(line: Mapping[str, Any]) -> LogRecord:
    """A line of the log as a record; its trace is the one inside the seal."""
    seconds = timegm(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S"))
    microseconds = int(line["time"][20:26])
    attributes = {k: v for k, v in line.items() if k not in _NOT_ATTRIBUTES}
    return LogRecord(
        time_ns=(seconds * 1_000_000 + microseconds) * 1000,
        severity=line["level"],
        body=str(line.get("message") or line.get("event") or ""),
        attributes={"logger": line["logger"], **attributes},
        trace_id=line.get("trace_id") or "",
        span_id=line.get("span_id") or "",
    )


def _open(
    signal: SignalSettings,
    encode: Callable[[Sequence[Any]], bytes],
    metrics: Metrics,
    name: str,
) -> Exporter[Any]:
    def count(outcome: str, amount: int) -> None:
        metrics.count("sealgate_exports", name, outcome, amount=amount)

    try:
        return Exporter(signal, encode, count, name=name)
    except KeyFileError as error:
        raise SettingsError(str(error)) from None


def _tried(signal: SignalSettings) -> None:
    try:
        Exporter.context(signal)
    except KeyFileError as error:
        raise SettingsError(str(error)) from None


def _resource(settings: ExportSettings) -> dict[str, str | int]:
    return {
        **settings.resource,
        "service.instance.id": settings.resource.get(
            "service.instance.id", str(uuid.uuid4())
        ),
        "process.pid": os.getpid(),
    }
