"""What is exported, read by the messages of opentelemetry-proto."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from service.telemetry.otlp import LogRecord, Span, Step, encode_logs, encode_spans

pytestmark = pytest.mark.skipif(
    os.environ.get("INTEROP") != "otlp", reason="otlp: run make interop-otlp"
)
# proto3's JSON has identifiers in base64, OTLP's in hexadecimal: that alone is changed.
READ = """
import base64, json, sys
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

def based(value):
    if isinstance(value, list):
        return [based(item) for item in value]
    if not isinstance(value, dict):
        return value
    ids = ("traceId", "spanId", "parentSpanId")
    return {
        name: base64.b64encode(bytes.fromhex(item)).decode() if name in ids
        else based(item)
        for name, item in value.items()
    }

kind, data = sys.argv[1], json.load(sys.stdin)
message = (traces.ExportTraceServiceRequest if kind == "traces"
           else logs.ExportLogsServiceRequest)()
json_format.ParseDict(based(data), message)
print(json_format.MessageToJson(message))
"""
RESOURCE = {"service.name": "sealgate", "process.pid": 7}
TRACE, OWN, PARENT = "0af7651916cd43dd8448eb211c80319c", "1" * 16, "2" * 16


def read(kind: str, data: bytes):
    interpreter = Path(os.environ["INTEROP_PART"]) / "bin" / "python"
    command = [str(interpreter), "-c", READ, kind]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_spans():
    now = time.time_ns()
    attributes = {"a": "x", "b": True, "c": -(2**62), "d": 0.5, "e": ["x", 1]}
    step = Step("run", "3" * 16, now, now + 1)
    span = Span(TRACE, OWN, PARENT, "POST /v2", now, now + 2, True, attributes, (step,))
    found = read("traces", encode_spans([span], RESOURCE))
    (whole,) = found["resourceSpans"]
    server, child = whole["scopeSpans"][0]["spans"]
    assert server["kind"] == "SPAN_KIND_SERVER"
    assert server["status"] == {"code": "STATUS_CODE_ERROR"}
    assert server["startTimeUnixNano"] == str(now)
    assert server["flags"] == 0x301
    values = {item["key"]: item["value"] for item in server["attributes"]}
    assert values["c"] == {"intValue": str(-(2**62))}
    assert values["e"]["arrayValue"]["values"][1] == {"intValue": "1"}
    assert child["kind"] == "SPAN_KIND_INTERNAL"
    assert child["parentSpanId"] == server["spanId"]
    assert len(whole["resource"]["attributes"]) == 2


def test_records():
    record = LogRecord(time.time_ns(), "WARNING", "away", {"status": 503}, TRACE, OWN)
    found = read("logs", encode_logs([record, record], RESOURCE))
    one, _ = found["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert one["severityNumber"] == "SEVERITY_NUMBER_WARN"
    assert one["body"] == {"stringValue": "away"}
    assert one["traceId"]
