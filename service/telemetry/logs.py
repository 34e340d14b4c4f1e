"""Structured logs: one line of JSON each, with a request's id, never with its payload.

Lines are written by a thread of their own: a reader that is slow must not hold requests
up. What does not fit its queue is counted, and the count is written. Refused strangers
get a few lines a second, so that they cannot fill a disk.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import orjson

from service.telemetry.recorder import Decision

__all__ = ["JsonFormatter", "LineWriter", "RequestLog", "export_messages", "install"]

_MAX_LINES = 10_000
_STRANGERS_PER_S = 10
WriteLine = Callable[[Mapping[str, Any]], None]

_LOGGERS = ("sealgate", "security", "service", "models", "uvicorn.error")


class LineWriter:
    """Writes lines in the order given, in a thread of its own."""

    def __init__(
        self, stream: TextIO | None = None, *, max_lines: int = _MAX_LINES
    ) -> None:
        self._stream = stream or sys.stderr
        self._lines: queue.Queue[bytes] = queue.Queue(max_lines)
        self._dropped = 0
        threading.Thread(target=self._run, name="log lines", daemon=True).start()

    def write(self, fields: Mapping[str, Any]) -> None:
        """Write one line, soon; or count it as dropped."""
        try:
            self._lines.put_nowait(orjson.dumps(fields, default=str))
        except queue.Full:
            self._dropped += 1

    def flush(self, timeout_s: float = 5.0) -> None:
        """Wait until what was given is written, but not for ever."""
        deadline = time.monotonic() + timeout_s
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                note = {**_stamp("WARNING", "sealgate.logs"), "lines_dropped": dropped}
                line = orjson.dumps(note) + b"\n" + line
            try:
                self._stream.write(line.decode() + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more
                self._dropped += 1
            self._lines.task_done()


class RequestLog:
    """A line for each request."""

    def __init__(
        self,
        writer: LineWriter,
        clock: Callable[[], float] = time.monotonic,
        *,
        export: WriteLine | None = None,
    ) -> None:
        self._writer = writer
        self._export = export
        self._clock = clock
        self._second = 0
        self._strangers = 0
        self._left_out = 0

    def write(
        self,
        decision: Decision,
        *,
        status: int,
        reason: str | None,
        response_bytes: int,
    ) -> None:
        """Log one answered request.

        Neither path nor headers are logged, and a model's name only if it is served
        here: callers write what they like into those.
        """
        if decision.principal is None and not self._lets_stranger():
            return
        trace, outer = decision.trace, decision.outer_trace
        fields = {
            **_stamp("INFO", "sealgate.requests"),
            "event": "request",
            "request_id": decision.request_id,
            "trace_id": trace and trace.trace_id,
            "span_id": trace and trace.span_id,
            "outer_trace_id": outer and outer.trace_id,
            "action": decision.action,
            "model": decision.model if decision.version else None,
            "version": decision.version,
            "status": status,
            "reason": reason,
            "rows": decision.rows,
            "request_bytes": decision.request_bytes,
            "response_bytes": response_bytes,
            "sealed": decision.sealed,
            "latency_us": int((time.perf_counter() - decision.started) * 1e6),
        }
        if self._left_out:
            fields["refusals_left_out"], self._left_out = self._left_out, 0
        line = {k: v for k, v in fields.items() if v is not None}
        self._writer.write(line)
        if self._export is not None:
            self._export(line)

    def _lets_stranger(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._strangers = second, 0
        self._strangers += 1
        if self._strangers <= _STRANGERS_PER_S:
            return True
        self._left_out += 1
        return False


class JsonFormatter(logging.Formatter):
    """One line of JSON. Of an exception its type and place, not its text.

    The text of an exception may quote the input that caused it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return orjson.dumps(self.fields(record), default=str).decode()

    @staticmethod
    def fields(record: logging.LogRecord) -> dict[str, Any]:
        """What its line says."""
        fields = _stamp(record.levelname, record.name)
        fields["message"] = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            fields["at"] = [f"{f.filename}:{f.lineno} {f.name}" for f in frames]
        return fields


class _Exporting(logging.Handler):
    """Exports what the loggers say, as their lines have it."""

    def __init__(self, export: WriteLine) -> None:
        super().__init__()
        self._export = export

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._export(JsonFormatter.fields(record))
        except Exception:  # noqa: BLE001  (as every handler: who logs is not at fault)
            self.handleError(record)


def export_messages(export: WriteLine) -> None:
    """Have the loggers that `install` set up export their lines, too."""
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(_Exporting(export))


def install() -> None:
    """Make the loggers of this process write lines of JSON to standard error.

    BentoML's configuration silences every logger that is there before it: in a worker
    that was forked (`service.forking`) that is each of its parent's.
    """
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)
    # It warns of every malformed request: strangers could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def _stamp(level: str, logger: str) -> dict[str, Any]:
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return {
        "time": f"{seconds}.{int(now % 1 * 1e6):06d}Z",
        "level": level,
        "logger": logger,
    }
