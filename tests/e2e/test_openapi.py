"""Our OpenAPI document, held against a real server by schemathesis."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, Phase, settings

from tests.conftest import toy_settings
from tests.support.proxies import proxy
from tests.support.servers import ROOT, Server, free_port, serve

schemathesis = pytest.importorskip("schemathesis", reason="not installed")

DOCUMENT = ROOT / "service" / "openapi.yaml"
SCHEMA = schemathesis.openapi.from_path(DOCUMENT)


@schemathesis.serializer("message/ohttp-req")
def _as_it_is(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def described(deployment: Path, metrics_port: int) -> Iterator[Server]:
    """A server that answers in plaintext, its own description too."""
    extra = toy_settings(deployment) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_OBSERVABILITY_SERVE_OPENAPI": "true",
        "SEALGATE_OBSERVABILITY_LOG_REQUESTS": "true",
        "SEALGATE_OBSERVABILITY_METRICS_PORT": str(metrics_port),
    }
    with serve("service.app:Sealgate", deployment, extra=extra, alone=True) as server:
        yield server


@SCHEMA.parametrize()
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_does_what_the_document_says(case, described, token) -> None:
    from schemathesis import checks

    headers = {"Authorization": f"Bearer {token}"}
    case.call_and_validate(
        base_url=described.url,
        headers=headers,
        # Unknown members are ignored, as the protocol lets clients add parameters; and
        # our token is added to every case, so none of them lacks it.
        excluded_checks=[
            checks.negative_data_rejection,
            checks.positive_data_acceptance,
            checks.ignored_auth,
            checks.missing_required_header,
        ],
    )


def test_it_is_served_to_callers_where_that_is_wanted(
    described: Server, server: Server, open_server: Server, token: str
) -> None:
    headers = {"authorization": f"Bearer {token}"}
    got = httpx.get(f"{described.url}/openapi.yaml", headers=headers)
    assert (got.status_code, got.content) == (200, DOCUMENT.read_bytes())
    assert got.headers["content-type"] == "application/yaml"
    assert httpx.get(f"{described.url}/openapi.yaml").status_code == 401
    assert (
        httpx.post(f"{described.url}/openapi.yaml", headers=headers).status_code == 405
    )
    assert (
        httpx.get(f"{open_server.url}/openapi.yaml", headers=headers).status_code == 404
    )


def test_every_path_of_the_protocol_is_described(shared_data: Path) -> None:
    folder = shared_data / "spec-open-inference-protocol"
    theirs = yaml.safe_load((folder / "open_inference_rest.yaml").read_text())["paths"]
    ours = yaml.safe_load(DOCUMENT.read_text())["paths"]
    for path, item in theirs.items():
        name = path.replace("${MODEL_NAME}", "{model}").rstrip("/")
        name = name.replace("${MODEL_VERSION}", "{version}")
        for method in {"get", "post"} & item.keys():
            assert method in ours[name], (path, method)
            unversioned = name.replace("/versions/{version}", "")
            assert method in ours[unversioned]


def test_metrics_on_a_port_of_their_own(
    described: Server, metrics_port: int, token: str
) -> None:
    headers = {"authorization": f"Bearer {token}"}
    assert httpx.get(f"{described.url}/v2", headers=headers).status_code == 200
    text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
    assert 'sealgate_requests_total{action="metadata",model="",status="200"' in text
    assert "sealgate_model_info{" in text
    head = httpx.head(f"http://127.0.0.1:{metrics_port}/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert "server" not in head.headers
    # Nothing else is there, and the other port still asks for its scope.
    assert httpx.get(f"{described.url}/metrics", headers=headers).status_code == 403


def test_a_trace_through_the_server(described: Server, token: str) -> None:
    trace_id = secrets.token_hex(16)
    headers = {"authorization": f"Bearer {token}"}
    headers["traceparent"] = f"00-{trace_id}-{'3' * 16}-01"
    answer = httpx.get(f"{described.url}/v2/models/toy", headers=headers)
    version, got, span, flags = answer.headers["traceresponse"].split("-")
    assert (version, got, flags) == ("00", trace_id, "01")
    deadline = time.monotonic() + 30
    line = None
    while line is None and time.monotonic() < deadline:
        found = [x for x in described.log.read_text().splitlines() if trace_id in x]
        line = json.loads(found[0]) if found else None
        time.sleep(0.05)
    assert line is not None
    assert (line["span_id"], line["model"], line["status"]) == (span, "toy", 200)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert token not in described.log.read_text()


def test_a_trace_through_the_sealing_proxy(described: Server, token: str) -> None:
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{'4' * 16}-00"}
    with proxy(described.url, token=token) as port:
        url = f"http://127.0.0.1:{port}/v2/models/toy"
        answer = httpx.get(url, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["traceresponse"].startswith(f"00-{trace_id}-")
