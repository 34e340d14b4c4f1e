"""Traces and logs: whose trace it is, and what is written of it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.telemetry.logs import JsonFormatter, LineWriter, RequestLog
from service.telemetry.recorder import Decision
from service.telemetry.tracing import OUTER_TRACE, read_trace
from tests.support.rooms import INPUT, request, token, wire

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALUE = f"00-{TRACE}-{SPAN}-01".encode()
OTHER = f"00-{'1' * 32}-{'2' * 16}-00".encode()


def trace(*values: bytes):
    return read_trace(tuple((b"traceparent", value) for value in values))


def test_a_trace_is_continued() -> None:
    found = trace(VALUE)
    assert (found.trace_id, found.parent_id, found.sampled) == (TRACE, SPAN, True)
    assert found.span_id != SPAN
    assert found.header[0] == b"traceresponse"
    version, trace_id, span_id, flags = found.header[1].decode().split("-")
    assert (version, trace_id, span_id, flags) == ("00", TRACE, found.span_id, "01")
    assert trace(VALUE).span_id != found.span_id


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
)
def test_other_versions_and_flags(value: str, sampled: bool) -> None:
    assert trace(value.encode()).sampled is sampled


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01more",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 300,
    ],
)
def test_what_is_no_trace_is_ignored(value: str) -> None:
    assert trace(value.encode()) is None


def test_two_traces_are_none() -> None:
    assert trace(VALUE, OTHER) is None
    assert trace() is None


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_arbitrary_values(value: bytes) -> None:
    found = trace(value)
    assert found is None or value.decode().split("-")[1] == found.trace_id


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_inner_and_outer_traces_are_logged_and_told(tmp_path) -> None:
    rooms = wire(tmp_path)
    stream = io.StringIO()
    writer = LineWriter(stream)
    rooms.routes._log = RequestLog(writer)
    bearer = token("infer:toy")
    inner = request(
        "POST",
        "/v2/models/toy/infer",
        bearer=bearer,
        headers=((b"traceparent", VALUE),),
        body=json.dumps({"id": "secret-id", "inputs": [INPUT]}).encode(),
    )

    async def ask():
        OUTER_TRACE.set(trace(OTHER))
        return await rooms.routes.answer(inner, sealed=True)

    response = asyncio.run(ask())
    writer.flush()
    (line,) = lines(stream)
    headers = dict(response.headers)
    assert line["request_id"].encode() == headers[b"x-request-id"]
    assert line["trace_id"] == TRACE
    assert headers[b"traceresponse"] == f"00-{TRACE}-{line['span_id']}-01".encode()
    assert line["outer_trace_id"] == "1" * 32
    wanted = {"event": "request", "action": "infer", "model": "toy", "rows": 1}
    assert {**line, **wanted} == line
    assert (line["status"], line["sealed"], line["version"]) == (200, True, "1.0.0")
    for secret in (bearer, "secret-id", "alice", "features"):
        assert secret not in stream.getvalue()


def test_names_that_callers_make_up_are_not_logged(tmp_path) -> None:
    rooms = wire(tmp_path)
    stream = io.StringIO()
    writer = LineWriter(stream)
    rooms.routes._log = RequestLog(writer)
    asked = request("GET", "/v2/models/made-up?secret=1", bearer=token("infer:*"))
    asyncio.run(rooms.routes.answer(asked, sealed=True))
    writer.flush()
    (line,) = lines(stream)
    assert (line["status"], line["reason"]) == (404, "not-found")
    assert "made-up" not in stream.getvalue()
    assert "secret" not in stream.getvalue()


def test_strangers_get_few_lines() -> None:
    stream = io.StringIO()
    now = [5.0]
    writer = LineWriter(stream)
    log = RequestLog(writer, clock=lambda: now[0])

    def refuse() -> None:
        decision = Decision(sealed=False, started=time.perf_counter())
        log.write(decision, status=401, reason="unauthenticated", response_bytes=9)

    for _ in range(100):
        refuse()
    now[0] = 6.0
    refuse()
    writer.flush()
    found = lines(stream)
    assert len(found) == 11
    assert found[-1]["refusals_left_out"] == 90


class Stuck(io.StringIO):
    """A reader that takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.free = False

    def write(self, text: str) -> int:
        while not self.free:
            time.sleep(0.001)
        return super().write(text)


def test_a_slow_reader_holds_nobody_up() -> None:
    stream = Stuck()
    writer = LineWriter(stream, max_lines=10)
    for number in range(100):
        writer.write({"number": number})
    stream.free = True
    writer.flush()
    writer.write({"number": "last"})
    writer.flush()
    found = lines(stream)
    dropped = sum(line.get("lines_dropped", 0) for line in found)
    numbers = [line["number"] for line in found if "number" in line]
    assert dropped + len(numbers) == 101
    assert 10 <= len(numbers) <= 12


def test_an_exceptions_text_stays_out() -> None:
    try:
        raise ValueError("the payload was 12345")
    except ValueError:
        record = logging.getLogger("sealgate").makeRecord(
            "sealgate", logging.ERROR, __file__, 1, "it failed", (), sys.exc_info()
        )
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["message"]) == ("ERROR", "it failed")
    assert line["exception"] == "ValueError"
    assert any("test_an_exceptions_text" in place for place in line["at"])
    assert "12345" not in json.dumps(line)
