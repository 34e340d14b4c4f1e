"""Spans and log records for an OTLP receiver: from a real server, and every failure."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from sealgate.client import Client
from sealgate.errors import ServerRefusedError
from sealgate.options import Options
from security.access.tokens import Principal
from security.errors import SettingsError
from service.telemetry.export_settings import Sampling, SignalSettings, read_export
from service.telemetry.exporter import Exporter
from service.telemetry.exports import check_exports, open_exports, record_of
from service.telemetry.logs import (
    JsonFormatter,
    LineWriter,
    RequestLog,
    export_messages,
)
from service.telemetry.metrics import Metrics
from service.telemetry.otlp import Span, Step, encode_spans, rejected
from service.telemetry.recorder import Decision
from service.telemetry.spans import Bounded, Steps, Tracer
from service.telemetry.tracing import Trace, read_trace
from tests.conftest import mint, toy_settings
from tests.support.bundles import NAME
from tests.support.patience import in_time, once
from tests.support.receivers import Receiver, receiver
from tests.support.servers import free_port, serve

GENERAL = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OUTER = "f" * 32
ROWS = {"features": [[41.25, 42.5, 43.75]]}


def traceparent(trace: str = TRACE, *, sampled: bool = True) -> str:
    return f"00-{trace}-{PARENT}-{sampled:02x}"


# What the variables say


def test_nothing_is_exported_by_default():
    settings = read_export({})
    assert (settings.traces, settings.logs, settings.warnings) == (None, None, ())
    exports = open_exports(Metrics(), {})
    assert exports.tracer is None
    assert exports.write_line is None
    exports.stop()


def test_one_endpoint_for_both():
    settings = read_export({GENERAL: "https://collector:4318/base/"})
    assert settings.traces.url == "https://collector:4318/base/v1/traces"
    assert settings.logs.url == "https://collector:4318/base/v1/logs"
    assert (settings.traces.delay_s, settings.logs.delay_s) == (5.0, 1.0)
    assert (settings.traces.max_queue, settings.traces.max_batch) == (2048, 512)
    assert (settings.traces.timeout_s, settings.traces.export_s) == (10.0, 30.0)
    assert settings.sampling == Sampling(by_parent=True, share=1.0)
    assert settings.resource == {"service.name": "sealgate"}


def test_a_signals_own_variables_come_first():
    settings = read_export(
        {
            GENERAL: "http://a:1",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:2/as/it/is",
            "OTEL_EXPORTER_OTLP_HEADERS": "x=1",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Api-Key=a%20b%2C",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "500",
            "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "none",
            "OTEL_BSP_MAX_QUEUE_SIZE": "10",
            "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "7",
            "OTEL_BSP_SCHEDULE_DELAY": "0",
            "OTEL_BLRP_EXPORT_TIMEOUT": "1000",
        }
    )
    traces, logs = settings.traces, settings.logs
    assert (traces.url, logs.url) == ("http://b:2/as/it/is", "http://a:1/v1/logs")
    assert traces.headers == (("api-key", "a b,"),)
    assert logs.headers == (("x", "1"),)
    assert (traces.timeout_s, logs.timeout_s) == (0.5, 2.5)
    assert (traces.gzip, logs.gzip) == (True, False)
    assert (traces.max_queue, traces.max_batch, logs.max_batch) == (10, 10, 7)
    assert (traces.delay_s, logs.export_s) == (0.0, 1.0)
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("variables", "traces", "logs"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True, False),
        ({"OTEL_LOGS_EXPORTER": "otlp"}, False, True),
        ({GENERAL: "http://c", "OTEL_LOGS_EXPORTER": "none"}, True, False),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c"}, False, True),
        ({GENERAL: "http://c", "OTEL_SDK_DISABLED": "TRUE"}, False, False),
        ({GENERAL: "http://c", "OTEL_SDK_DISABLED": "false"}, True, True),
        ({GENERAL: ""}, False, False),
    ],
)
def test_which_signals(variables, traces, logs):
    settings = read_export(variables)
    assert (settings.traces is not None, settings.logs is not None) == (traces, logs)


def test_the_default_endpoint():
    settings = read_export({"OTEL_TRACES_EXPORTER": "otlp"})
    assert settings.traces.url == "http://localhost:4318/v1/traces"


@pytest.mark.parametrize(
    ("sampler", "argument", "sampling"),
    [
        ("always_on", "", Sampling(False, 1.0)),
        ("always_off", "", Sampling(False, 0.0)),
        ("traceidratio", "0.25", Sampling(False, 0.25)),
        ("parentbased_always_off", "1", Sampling(True, 0.0)),
        ("parentbased_traceidratio", "1e-2", Sampling(True, 0.01)),
        ("parentbased_traceidratio", "", Sampling(True, 1.0)),
    ],
)
def test_samplers(sampler, argument, sampling):
    variables = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    settings = read_export(variables)
    assert (settings.sampling, settings.warnings) == (sampling, ())


def test_the_resource():
    found = read_export({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a, k=%C3%A9,"})
    assert found.resource == {"service.name": "a", "k": "é"}
    variables = {"OTEL_SERVICE_NAME": "b", "OTEL_RESOURCE_ATTRIBUTES": "no pair,x=1"}
    settings = read_export(variables)
    assert settings.resource == {"service.name": "b"}
    assert settings.warnings == ("OTEL_RESOURCE_ATTRIBUTES: not key=value,…",)


SECRET = "s3cr3t-value"
INVALID = {
    "OTEL_SDK_DISABLED": "yes",
    "OTEL_TRACES_SAMPLER": "jaeger_remote",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "-5",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "brotli",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_BSP_MAX_QUEUE_SIZE": "-7",
    "OTEL_BSP_SCHEDULE_DELAY": "1e3",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "99999999999",
    "OTEL_BLRP_EXPORT_TIMEOUT": "soon",
}


@pytest.mark.parametrize("name", INVALID)
def test_what_is_invalid_counts_as_not_set_and_is_named(name):
    usual = read_export({GENERAL: "http://c"})
    settings = read_export({GENERAL: "http://c", name: INVALID[name]})
    assert [line.partition(":")[0] for line in settings.warnings] == [name]
    assert (settings.traces, settings.logs) == (usual.traces, usual.logs)
    assert settings.sampling == usual.sampling
    assert INVALID[name] not in settings.warnings[0].partition(":")[2]


def test_a_share_that_is_none():
    for text in ("2", "-0.1", "nan", "x"):
        sampler = {
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": text,
        }
        settings = read_export(sampler)
        assert settings.sampling.share == 1.0
        assert len(settings.warnings) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (GENERAL, "collector:4317"),
        (GENERAL, "ftp://c"),
        (GENERAL, f"http://u:{SECRET}@c"),
        (GENERAL, "http://[c"),
        (GENERAL, "http://c:99999"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"authorization {SECRET}"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"x=a%0d%0a{SECRET}: b"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"a b={SECRET}"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "content-length=7"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_nothing_goes_where_it_was_not_meant_to(name, value):
    settings = read_export({GENERAL: "http://c", name: value})
    assert settings.traces is None
    assert settings.warnings
    assert not any(SECRET in line or value in line for line in settings.warnings)


def test_headers_are_shown_nowhere():
    variables = {GENERAL: "http://c", "OTEL_EXPORTER_OTLP_HEADERS": f"k={SECRET}"}
    settings = read_export(variables)
    assert settings.traces.headers == (("k", SECRET),)
    assert SECRET not in repr(settings)


def test_what_every_worker_would_meet_ends_the_start(tmp_path, caplog):
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    for name in ("CERTIFICATE", "CLIENT_CERTIFICATE"):
        variables = {GENERAL: "https://c", f"OTEL_EXPORTER_OTLP_{name}": str(path)}
        with pytest.raises(SettingsError, match=r"ca\.pem: "):
            check_exports(variables)
    check_exports({GENERAL: "http://c", "OTEL_SDK_DISABLED": "maybe"})
    assert "OTEL_SDK_DISABLED: neither true nor false" in caplog.text


# The thread that sends


def settings(url: str, **changes) -> SignalSettings:
    fields = {
        "url": f"{url}/v1/traces",
        "headers": (("k", SECRET),),
        "certificate": None,
        "client_certificate": None,
        "client_key": None,
        "gzip": False,
        "timeout_s": 5.0,
        "delay_s": 0.02,
        "export_s": 10.0,
        "max_queue": 64,
        "max_batch": 8,
    }
    return SignalSettings(**(fields | changes))


def span(number: int = 1) -> Span:
    begin = time.time_ns()
    step = Step("run", f"{number + 1000:016x}", begin, begin)
    trace_id, span_id = f"{number:032x}", f"{number:016x}"
    return Span(
        trace_id, span_id, "", "GET", begin, begin + 5, False, {"n": number}, (step,)
    )


def encode(spans) -> bytes:
    return encode_spans(spans, {"service.name": "test"})


@contextmanager
def exporting(url: str, **changes) -> Iterator[tuple[Exporter[Span], Counter[str]]]:
    counted: Counter[str] = Counter()

    def count(outcome: str, amount: int) -> None:
        counted[outcome] += amount

    exporter = Exporter(settings(url, **changes), encode, count, name="traces")
    try:
        yield exporter, counted
    finally:
        exporter.stop(2.0)


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


def test_batches_arrive_with_their_headers(there):
    with exporting(there.url, gzip=True) as (exporter, counted):
        for number in range(1, 21):
            exporter.put(span(number))
        there.wait(lambda: len(there.spans()) == 40)
    assert counted == {"sent": 20}
    assert {item["spanId"] for item in there.spans()} >= {
        f"{n:016x}" for n in range(1, 21)
    }
    (fields, *_) = there.fields
    assert (fields["k"], fields["content-encoding"]) == (SECRET, "gzip")
    assert fields["content-type"] == "application/json"
    assert (
        max(
            len(body["resourceSpans"][0]["scopeSpans"][0]["spans"])
            for _, body in there.bodies
        )
        <= 16
    )


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_be_sent_again_is(there, status):
    there.script = [(status, {"Retry-After": "1"})]
    began = time.monotonic()
    with exporting(there.url) as (exporter, counted):
        exporter.put(span())
        there.wait(there.spans)
    assert time.monotonic() - began >= 1
    assert counted == {"sent": 1}
    assert len(there.fields) == 2


def test_no_receiver_can_have_itself_stormed(there):
    there.script = [(503, {"Retry-After": "0"})] * 50
    with exporting(there.url, export_s=1.5) as (exporter, counted):
        exporter.put(span())
        time.sleep(1.6)
    assert counted == {"unreachable": 1}
    assert len(there.fields) <= 3


def test_a_delay_of_nothing_is_no_storm_either():
    def scene() -> None:
        began = time.process_time()
        time.sleep(0.5)
        in_time(began, 0.25, now=time.process_time())

    with exporting("http://127.0.0.1:9", delay_s=0.0):
        once(scene)


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 500, 501])
def test_what_may_not_is_dropped(there, status, caplog):
    there.script = [(status, {"Location": "http://127.0.0.1:9/"})]
    with exporting(there.url) as (exporter, counted):
        exporter.put(span())
        there.wait(lambda: counted["refused"])
        exporter.put(span(2))
        there.wait(there.spans)
    assert counted == {"refused": 1, "sent": 1}
    assert len(there.fields) == 2
    assert f"traces are not exported: status {status}" in caplog.text
    assert SECRET not in caplog.text


def test_what_a_receiver_did_not_take(there):
    there.answer = b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"x"}}'
    with exporting(there.url) as (exporter, counted):
        for number in range(1, 6):
            exporter.put(span(number))
        there.wait(lambda: sum(counted.values()) == 5)
        exporter.stop(1)
    assert counted["refused"] >= 2
    assert len(there.spans()) == 10  # nothing is sent again


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"no", b'{"partialSuccess":7}', b"\xff"]
)
def test_an_answer_that_says_nothing(answer):
    assert rejected(answer) == 0


def test_nobody_there():
    url = f"http://127.0.0.1:{free_port()}"
    with exporting(url, export_s=0.3) as (exporter, counted):
        exporter.put(span())
        deadline = time.monotonic() + 10
        while not counted and time.monotonic() < deadline:
            time.sleep(0.02)
    assert counted == {"unreachable": 1}


def test_who_is_slow_costs_the_queue_and_nothing_else(there):
    def scene() -> None:
        there.delay_s = 0.5
        with exporting(there.url, timeout_s=5.0, max_queue=16) as (exporter, counted):
            began = time.monotonic()
            for number in range(1, 5001):
                exporter.put(span(number))
            in_time(began, 2)  # of which making them is most
            assert counted["full"] >= 4900
            there.delay_s = 0
            there.wait(lambda: counted["full"] + counted["sent"] == 5000)

    once(scene)


def test_the_end_is_bounded(there):
    def scene() -> None:
        there.delay_s = 20
        with exporting(there.url) as (exporter, _counted):
            for number in range(1, 40):
                exporter.put(span(number))
            began = time.monotonic()
            exporter.stop(0.5)
            there.delay_s = 0
            in_time(began, 5)

    once(scene)


def test_the_end_sends_what_waits(there):
    with exporting(there.url, delay_s=600, max_queue=64) as (exporter, counted):
        for number in range(1, 6):
            exporter.put(span(number))
        exporter.stop(5)
    assert counted == {"sent": 5}
    assert len(there.spans()) == 10


def test_what_is_no_text_takes_its_batch_along(there):
    broken = Span("1" * 32, "2" * 16, "", "\ud800", 1, 2, False, {})
    with exporting(there.url) as (exporter, counted):
        exporter.put(broken)
        there.wait(lambda: counted["refused"])
        exporter.put(span())
        there.wait(there.spans)
    assert counted == {"refused": 1, "sent": 1}


# Which requests are traced


def decision(**changes) -> Decision:
    known = Principal.__new__(Principal)  # nothing of it is looked at
    fields = {"sealed": True, "started": time.perf_counter(), "principal": known}
    return Decision(**(fields | changes))


def traced(sampling: Sampling, count: int = 1, **changes) -> list[Span]:
    spans: list[Span] = []
    tracer = Tracer(sampling, spans.append, strangers=Bounded(3, clock=lambda: 1.0))
    for _ in range(count):
        steps = Steps()
        tracer.decide(steps, decision(**changes), status=200, reason=None)
        tracer.end(steps)
    return spans


CALLERS = {
    sampled: read_trace(((b"traceparent", traceparent(sampled=sampled).encode()),))
    for sampled in (True, False)
}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_parents_decision_counts(share):
    (found,) = traced(Sampling(True, share), trace=CALLERS[True])
    assert (found.trace_id, found.parent_id) == (TRACE, PARENT)
    assert found.span_id == CALLERS[True].span_id
    assert traced(Sampling(True, share), trace=CALLERS[False]) == []


def test_a_share_of_what_has_no_parent():
    assert traced(Sampling(True, 0.0), 100) == []
    found = traced(Sampling(True, 1.0), 5)
    assert len({item.trace_id for item in found}) == 5
    assert {item.parent_id for item in found} == {""}
    kept = len(traced(Sampling(True, 0.1), 5000))
    assert 350 < kept < 650


def test_a_share_that_asks_no_parent():
    """By the last 64 bits of the trace, as others decide."""
    low = Trace("f" * 16 + "0" * 15 + "1", PARENT, PARENT, sampled=False)
    high = Trace("0" * 15 + "1" + "f" * 16, PARENT, PARENT, sampled=True)
    (found,) = traced(Sampling(False, 0.5), trace=low)
    assert found.trace_id == low.trace_id
    assert traced(Sampling(False, 0.5), trace=high) == []


def test_strangers_cannot_have_everything_traced():
    found = traced(Sampling(), 100, trace=CALLERS[True], principal=None)
    assert len(found) == 3


def test_a_trace_that_begins_here_is_in_the_log():
    one = decision()
    tracer = Tracer(Sampling(), lambda _: None)
    tracer.decide(Steps(), one, status=200, reason=None)
    assert one.trace is not None
    lines: list[dict] = []
    log = RequestLog(LineWriter(open("/dev/null", "w")), export=lines.append)  # noqa: SIM115
    log.write(one, status=200, reason=None, response_bytes=0)
    record = record_of(lines[0])
    assert (record.trace_id, record.span_id) == (one.trace.trace_id, one.trace.span_id)
    assert abs(record.time_ns - time.time_ns()) < 60e9


def test_methods_and_routes_are_ours():
    (found,) = traced(Sampling(), method=b"BREW \xff", action="infer", model="secret")
    assert found.name == "_OTHER /v2/models/{model}/infer"
    assert "secret" not in json.dumps(dict(found.attributes))
    (found,) = traced(Sampling(), method=b"GET", action="metadata")
    assert found.name == "GET /v2"


def test_messages_are_records_too():
    record = logging.LogRecord(
        "service.x", logging.WARNING, "", 0, "%s is away", ("a",), None
    )
    found = record_of(JsonFormatter.fields(record))
    assert (found.severity, found.body) == ("WARNING", "a is away")
    assert found.attributes == {"logger": "service.x"}


def test_a_message_that_cannot_be_made_is_no_fault_of_who_logs(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    for name in ("sealgate", "security", "service", "models", "uvicorn.error"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    lines = []
    export_messages(lines.append)
    log = logging.getLogger("service.x")
    log.warning("%d", "x")
    log.warning("%s", "y")
    assert [line["message"] for line in lines] == ["y"]


# A real server, by `bentoml serve`: BentoML brings OpenTelemetry's SDK into the process


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture(scope="module")
def exporting_server(pristine, tmp_path_factory, collector):
    import shutil

    home = tmp_path_factory.mktemp("exporting") / "home"
    shutil.copytree(pristine, home)
    extra = toy_settings(home) | {
        GENERAL: collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={SECRET}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_BLRP_SCHEDULE_DELAY": "50",
        "SEALGATE_OBSERVABILITY_LOG_REQUESTS": "true",
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
    }
    with serve("service.app:Sealgate", home, extra=extra, alone=True) as server:
        yield server


@pytest.fixture(scope="module")
def key(exporting_server) -> str:
    return mint(exporting_server.home, f"infer:{NAME}", "metrics")


def spans_of(collector: Receiver, trace_id: str) -> list[dict]:
    def found() -> list[dict]:
        return [item for item in collector.spans() if item["traceId"] == trace_id]

    collector.wait(lambda: any(item["kind"] == 2 for item in found()))
    return found()


def test_a_sealed_request_is_a_span_with_its_steps(exporting_server, key, collector):
    trace_id = "1" * 32
    before = time.time_ns()
    with Client(exporting_server.url, token=key) as client:
        client.infer(NAME, ROWS, traceparent=traceparent(trace_id))
    own, *steps = sorted(spans_of(collector, trace_id), key=lambda item: -item["kind"])
    assert own["parentSpanId"] == PARENT
    assert own["name"] == "POST /v2/models/{model}/infer"
    assert own["flags"] == 0x301
    assert own["status"] == {}
    attributes = dict(own["attributes"])
    assert attributes.pop("sealgate.request_id")
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": "200",
        "url.scheme": "http",
        "sealgate.sealed": True,
        "sealgate.model": NAME,
        "sealgate.model_version": "1.0.0",
        "sealgate.rows": "1",
    }
    names = [
        item["name"] for item in sorted(steps, key=lambda s: s["startTimeUnixNano"])
    ]
    assert names == ["open", "verify", "quotas", "run", "seal"]
    for item in steps:
        assert item["parentSpanId"] == own["spanId"]
        assert item["kind"] == 1
        times = [
            own["startTimeUnixNano"],
            item["startTimeUnixNano"],
            item["endTimeUnixNano"],
            own["endTimeUnixNano"],
        ]
        assert times == sorted(times)
    assert before <= int(own["startTimeUnixNano"]) <= time.time_ns()


def test_a_plaintext_request_has_no_seal(exporting_server, key, collector):
    trace_id = "2" * 32
    body = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3],
                        "data": ROWS["features"][0]}]}  # fmt: skip
    answer = httpx.post(
        f"{exporting_server.url}/v2/models/{NAME}/infer",
        json=body,
        headers={
            "authorization": f"Bearer {key}",
            "traceparent": traceparent(trace_id),
        },
    )
    assert answer.status_code == 200
    own, *steps = sorted(spans_of(collector, trace_id), key=lambda item: -item["kind"])
    assert own["attributes"]["sealgate.sealed"] is False
    assert {item["name"] for item in steps} == {"verify", "quotas", "run"}
    assert answer.headers["traceresponse"].split("-")[2] == own["spanId"]


def test_one_exporter(exporting_server, key, collector):
    """None of BentoML's own, nor a span twice."""
    trace_id = "3" * 32
    with Client(exporting_server.url, token=key) as client:
        for _ in range(3):
            client.metadata(NAME)
            client.infer(NAME, ROWS, traceparent=traceparent(trace_id))
    collector.wait(lambda: len(spans_of(collector, trace_id)) >= 18)
    time.sleep(0.3)
    found = spans_of(collector, trace_id)
    assert len({item["spanId"] for item in found}) == len(found) == 18
    scopes = {
        scope["scope"]["name"]
        for _, body in collector.bodies
        for whole in body.get("resourceSpans", [])
        for scope in whole["scopeSpans"]
    }
    assert scopes == {"sealgate"}
    # The sampler traces nothing that has no parent: health and metadata are none.
    assert {item["traceId"] for item in collector.spans()} <= {
        *(str(n) * 32 for n in range(1, 7)), OUTER
    }  # fmt: skip


def test_what_is_not_sampled_is_not_exported(exporting_server, key, collector):
    quiet, loud = "4" * 32, "5" * 32
    with Client(exporting_server.url, token=key) as client:
        client.infer(NAME, ROWS, traceparent=traceparent(quiet, sampled=False))
        client.infer(NAME, ROWS, traceparent=traceparent(loud))
    spans_of(collector, loud)
    assert quiet not in {item["traceId"] for item in collector.spans()}


def test_refusals_say_why(exporting_server, key, collector):
    trace_id = "6" * 32
    with (
        Client(exporting_server.url, token=key) as client,
        pytest.raises(ServerRefusedError),
    ):
        client.infer(
            NAME, {"features": [[1.0, 2.0]]}, traceparent=traceparent(trace_id)
        )
    own = next(item for item in spans_of(collector, trace_id) if item["kind"] == 2)
    assert own["attributes"]["error.type"] == "invalid-request"
    assert own["attributes"]["http.response.status_code"] == "400"
    assert own["status"] == {}  # the caller's fault is no failure of the server


def test_records_belong_to_their_spans(exporting_server, key, collector):
    trace_id = "1" * 32
    options = Options(traceparent=lambda: traceparent(trace_id))
    with Client(exporting_server.url, token=key, options=options) as client:
        client.metadata(NAME)

    def found() -> list[dict]:
        return [item for item in collector.records() if item.get("traceId") == trace_id]

    collector.wait(
        lambda: any(r["attributes"]["action"] == "metadata" for r in found())
    )
    record = next(r for r in found() if r["attributes"]["action"] == "metadata")
    assert record["body"] == {"stringValue": "request"}
    assert record["severityNumber"] == 9
    assert record["attributes"]["model"] == NAME
    collector.wait(
        lambda: record["spanId"] in {item["spanId"] for item in collector.spans()}
    )


def test_the_outer_trace_is_told_to_nobody(exporting_server, key, collector):
    """A relay knows it: whoever has both would know which requests belong together."""
    from sealgate.exchange import GATEWAY_PATH, build_request
    from sealgate.protocol import bhttp, keyconfig, ohttp

    document = httpx.get(exporting_server.url + GATEWAY_PATH).content
    inner = build_request(
        "GET",
        f"/v2/models/{NAME}",
        url=exporting_server.url,
        token=key,
        now=time.time(),
        headers=((b"traceparent", traceparent("1" * 32).encode()),),
    )
    sealed, _ = ohttp.seal_request(
        keyconfig.decode_list(document)[0], bhttp.encode_request(inner)
    )
    count = len(collector.records())
    answer = httpx.post(
        exporting_server.url + GATEWAY_PATH,
        content=sealed,
        headers={"content-type": ohttp.REQUEST_MEDIA_TYPE,
                 "traceparent": traceparent(OUTER)},
    )  # fmt: skip
    assert answer.status_code == 200
    collector.wait(lambda: len(collector.records()) > count)
    time.sleep(0.3)
    assert OUTER not in json.dumps(collector.bodies)


def test_no_secret_and_no_payload_is_exported(exporting_server, key, collector):
    collector.wait(collector.records)
    text = json.dumps(collector.bodies)
    assert SECRET not in text
    assert key not in text
    assert key.split(".")[2] not in text
    for number in ROWS["features"][0]:
        assert str(number) not in text
    assert SECRET not in exporting_server.log.read_text()
    assert all(fields["x-key"] == SECRET for fields in collector.fields)
    (resource, *_) = collector.resources()
    assert resource["service.name"] == "sealgate"
    assert resource["deployment.environment.name"] == "test"
    assert resource["service.instance.id"]


def test_a_receiver_that_is_away_or_slow_holds_nothing_up(
    exporting_server, key, collector
):
    """What becomes of exports is in the metrics."""
    collector.delay_s = 2.0
    collector.script = [(400, {})]
    with Client(exporting_server.url, token=key) as client:
        client.metadata(NAME)

        def scene() -> None:
            began = time.monotonic()
            for _ in range(20):
                client.infer(NAME, ROWS, traceparent=traceparent("1" * 32))
            in_time(began, 10)

        once(scene)
    collector.delay_s = 0.0
    headers = {"authorization": f"Bearer {key}"}

    def metrics() -> str:
        return httpx.get(exporting_server.url + "/metrics", headers=headers).text

    collector.wait(
        lambda: 'sealgate_exports_total{outcome="sent",signal="traces"}' in metrics()
    )
    collector.wait(lambda: 'outcome="refused"' in metrics())


def test_the_last_spans_are_sent_at_the_end(pristine, tmp_path):
    import shutil

    before = {*threading.enumerate()}
    home = tmp_path / "home"
    shutil.copytree(pristine, home)
    with receiver() as collector:
        extra = toy_settings(home) | {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        token = mint(home, f"infer:{NAME}")
        with serve("service.app:Sealgate", home, extra=extra, alone=True) as server:
            with Client(server.url, token=token) as client:
                client.infer(NAME, ROWS)
            assert not collector.spans()
        found = [item for item in collector.spans() if item["kind"] == 2]
    assert {item["attributes"]["http.route"] for item in found} >= {
        "/v2/models/{model}/infer"
    }
    assert not any("parentSpanId" in item for item in found)
    assert not {*threading.enumerate()} - before
