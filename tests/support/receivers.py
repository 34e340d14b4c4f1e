"""An OTLP receiver: a real HTTP server that keeps what it is sent, and checks its form.

The schema is that of opentelemetry-proto 1 in JSON, of what we send: identifiers are
lower-case hexadecimal, integers of 64 bits are texts, and there is nothing else.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jsonschema

_TEXT, _NS = {"type": "string"}, {"type": "string", "pattern": "^[1-9][0-9]{18}$"}
_TRACE_ID = {"type": "string", "pattern": "^(?!0{32})[0-9a-f]{32}$"}
_SPAN_ID = {"type": "string", "pattern": "^(?!0{16})[0-9a-f]{16}$"}


def _object(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _many(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


_VALUE = {
    "oneOf": [
        _object({"stringValue": _TEXT}),
        _object({"boolValue": {"type": "boolean"}}),
        _object({"intValue": {"type": "string", "pattern": "^-?[0-9]{1,19}$"}}),
        _object({"doubleValue": {"type": "number"}}),
        _object({"arrayValue": _object({"values": {"type": "array"}})}),
    ]
}
_ATTRIBUTES = {"type": "array", "items": _object({"key": _TEXT, "value": _VALUE})}
_SPAN = _object(
    {
        "traceId": _TRACE_ID,
        "spanId": _SPAN_ID,
        "flags": {"type": "integer", "minimum": 0, "maximum": 0x3FF},
        "name": _TEXT,
        "kind": {"enum": [1, 2]},
        "startTimeUnixNano": _NS,
        "endTimeUnixNano": _NS,
    },
    parentSpanId=_SPAN_ID,
    attributes=_ATTRIBUTES,
    status=_object({}, code={"const": 2}),
)
_RECORD = _object(
    {
        "timeUnixNano": _NS,
        "observedTimeUnixNano": _NS,
        "severityNumber": {"type": "integer", "minimum": 1, "maximum": 24},
        "severityText": _TEXT,
        "body": _object({"stringValue": _TEXT}),
        "attributes": _ATTRIBUTES,
    },
    traceId=_TRACE_ID,
    spanId=_SPAN_ID,
)


def _request(kind: str, scopes: str, items: str, item: Any) -> dict[str, Any]:
    scope = _object({"scope": _object({"name": _TEXT}), items: _many(item)})
    resource = _object({"attributes": _ATTRIBUTES})
    whole = _object({"resource": resource, scopes: _many(scope)})
    return _object({kind: _many(whole)})


SCHEMAS = {
    "/v1/traces": _request("resourceSpans", "scopeSpans", "spans", _SPAN),
    "/v1/logs": _request("resourceLogs", "scopeLogs", "logRecords", _RECORD),
}


@dataclass
class Receiver:
    """What came.

    Attributes:
        url: where it listens.
        bodies: decoded, with their paths.
        fields: of each request, names in lower case.
        script: statuses of the next answers, with their further fields.
        answer: content of answers with status 200.
        delay_s: before each answer.
        wrong: what was not as the schema has it.
    """

    url: str = ""
    bodies: list[tuple[str, Any]] = field(default_factory=list)
    fields: list[dict[str, str]] = field(default_factory=list)
    script: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    answer: bytes = b"{}"
    delay_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def spans(self) -> list[dict[str, Any]]:
        """All spans so far, with their attributes as a mapping."""
        return self._items("resourceSpans", "scopeSpans", "spans")

    def records(self) -> list[dict[str, Any]]:
        """All log records so far."""
        return self._items("resourceLogs", "scopeLogs", "logRecords")

    def resources(self) -> list[dict[str, Any]]:
        """The attributes of each request's resource."""
        return [
            _plain(whole["resource"]["attributes"])
            for _, body in list(self.bodies)
            for wholes in body.values()
            for whole in wholes
        ]

    def wait(self, enough: Any, *, seconds: float = 30) -> None:
        """Until a condition holds."""
        deadline = time.monotonic() + seconds
        while not enough():
            assert time.monotonic() < deadline, (self.bodies, self.wrong)
            time.sleep(0.02)

    def _items(self, kind: str, scopes: str, items: str) -> list[dict[str, Any]]:
        return [
            {**item, "attributes": _plain(item.get("attributes", []))}
            for _, body in list(self.bodies)
            for whole in body.get(kind, [])
            for scope in whole[scopes]
            for item in scope[items]
        ]


def _plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in attributes}


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A running one; at the end all that came must have been of the right form."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            names = {name.lower(): value for name, value in self.headers.items()}
            if names.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            time.sleep(kept.delay_s)
            status, fields = kept.script.pop(0) if kept.script else (200, {})
            kept.fields.append(names)
            if status == 200:
                self._keep(body)
            content = kept.answer if status == 200 else b"no"
            try:
                self.send_response(status)
                for name, value in fields.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # nobody waits for it any more
                self.close_connection = True

        def _keep(self, body: bytes) -> None:
            try:
                document = json.loads(body)
                jsonschema.validate(document, SCHEMAS[self.path])
            except (KeyError, ValueError, jsonschema.ValidationError) as error:
                kept.wrong.append(f"{self.path}: {error}")
            else:
                kept.bodies.append((self.path, document))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not kept.wrong
