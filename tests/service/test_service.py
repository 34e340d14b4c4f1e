"""The running server over real HTTP: what strangers, and what rightful callers get."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.bhttp import Request, Response
from security.audit.journal import load_verifier
from security.audit.verify import verify_log
from security.sealing.freshness import http_date
from tests.conftest import mint
from tests.support.rooms import INPUT
from tests.support.servers import Server

GATEWAY = "/.well-known/ohttp-gateway"
SEALED_TYPE = {"content-type": "message/ohttp-req"}
INFER = "/v2/models/toy/infer"
BODY: dict[str, Any] = {"inputs": [INPUT]}
LIMIT = 16 << 20
METADATA = "/.well-known/oauth-protected-resource"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def seal(
    server: Server,
    method: str = "POST",
    path: str = INFER,
    *,
    token: str | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    body: Any = b"",
) -> Response:
    """One sealed exchange; returns the inner response."""
    if token is not None:
        headers = ((b"authorization", b"Bearer " + token.encode()), *headers)
    headers = ((b"date", http_date(time.time())), *headers)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(method.encode(), b"https", b"s", path.encode(), headers, content)
    keys = httpx.get(server.url + GATEWAY).content
    config = keyconfig.decode_list(keys)[0]
    sealed, context = ohttp.seal_request(config, bhttp.encode_request(request))
    outer = httpx.post(server.url + GATEWAY, content=sealed, headers=SEALED_TYPE)
    assert outer.status_code == 200
    assert outer.headers["content-type"] == "message/ohttp-res"
    return bhttp.decode_response(context.open(outer.content))


def document(response: Response) -> dict[str, Any]:
    return json.loads(bytes(response.body))


def problem(response: httpx.Response | Response) -> str:
    body = response.body if isinstance(response, Response) else response.content
    return json.loads(bytes(body))["type"].rpartition("/")[2]


# What BentoML opens by itself.

BENTOML_ROUTES = [
    "/",
    "/healthz",
    "/metrics",
    "/docs.json",
    "/schema.json",
    "/static_content/index.css",
    "/admit",
    "/task/submit",
    "/infer/submit",
    "/infer/status",
    "/v2",
    "/v2/models/toy",
    "/v2/models/none",
    INFER,
    "/%2e%2e/metrics",
    "/metrics/",
    "/v2/health/ready/../../../metrics",
    "/v2/health/ready?next=/metrics",
]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_closed_to_strangers(server: Server, open_server: Server, method: str) -> None:
    for url in (server.url, open_server.url):
        # In development a server is called by where `bentoml serve --port` listens.
        challenge = f'Bearer realm="sealgate", resource_metadata="{url}{METADATA}"'
        answers = [httpx.request(method, url + path) for path in BENTOML_ROUTES]
        # A query is no part of a path: health with one is still health.
        for path, answer in zip(BENTOML_ROUTES[:-1], answers):
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == challenge
            assert answer.headers["content-type"] == "application/problem+json"


def test_the_resource_is_where_it_listens(open_server: Server) -> None:
    """RFC 9728, section 3.3: the metadata are about the URL that was asked."""
    answer = httpx.get(open_server.url + METADATA)
    assert answer.json()["resource"] == open_server.url


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/livez", "live"),
        ("/readyz", "ready"),
        ("/v2/health/live", "live"),
        ("/v2/health/ready", "ready"),
    ],
)
def test_health_is_open_and_says_no_more(server: Server, path: str, word: str) -> None:
    answer = httpx.get(server.url + path)
    assert (answer.status_code, answer.json()) == (200, {word: True})


@pytest.mark.parametrize("path", ["/", "/v2", "/metrics", "/livez", GATEWAY])
def test_websockets_are_refused(server: Server, path: str) -> None:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer = httpx.get(server.url + path, headers=upgrade)
    assert answer.status_code != 101
    assert "sec-websocket-accept" not in answer.headers
    if path not in ("/livez", GATEWAY):
        assert answer.status_code in (401, 403)


def test_metrics_need_their_scope(server: Server, deployment: Path) -> None:
    url = server.url + "/metrics"
    for scope in ("infer:toy", "infer:*"):
        answer = httpx.get(url, headers=bearer(mint(deployment, scope)))
        assert (answer.status_code, problem(answer)) == (403, "insufficient-scope")
    answer = httpx.get(url, headers=bearer(mint(deployment, "metrics")))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


# Who may.


def test_a_sealed_inference(server: Server, token: str) -> None:
    inner = seal(server, token=token, body=BODY)
    assert inner.status == 200
    names = [output["name"] for output in document(inner)["outputs"]]
    assert names == ["probabilities", "label"]


def test_401_is_sealed(server: Server, token: str) -> None:
    for value in (None, "a.b.c", token[:-4] + "AAAA", token + "=", "x" * 9000):
        inner = seal(server, token=value, body=BODY)
        assert inner.status == 401
        assert dict(inner.headers)[b"www-authenticate"].startswith(b"Bearer")


def test_403_is_sealed(server: Server, deployment: Path) -> None:
    inner = seal(server, token=mint(deployment, "infer:other"), body=BODY)
    assert (inner.status, problem(inner)) == (404, "not-found")
    inner = seal(server, token=mint(deployment, "metadata:toy"), body=BODY)
    assert inner.status == 403
    assert b'scope="infer:toy"' in dict(inner.headers)[b"www-authenticate"]
    assert problem(inner) == "insufficient-scope"


def test_models_cannot_be_guessed(server: Server, deployment: Path) -> None:
    other = mint(deployment, "infer:other")
    there = seal(server, "GET", "/v2/models/toy", token=other)
    not_there = seal(server, "GET", "/v2/models/yot", token=other)
    assert there.status == not_there.status == 404
    assert bytes(there.body) == bytes(not_there.body)
    one, other_one = (
        [header for header in found.headers if header[0] != b"x-request-id"]
        for found in (there, not_there)
    )
    assert one == other_one
    assert seal(server, "GET", "/v2/models/other", token=other).status == 404


def test_plaintext_is_refused_with_a_valid_token(server: Server, token: str) -> None:
    answer = httpx.post(server.url + INFER, json=BODY, headers=bearer(token))
    assert (answer.status_code, problem(answer)) == (403, "sealed-required")


def test_plaintext_where_the_operator_allows_it(
    open_server: Server, token: str
) -> None:
    answer = httpx.post(open_server.url + INFER, json=BODY, headers=bearer(token))
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx.post(open_server.url + INFER, json=BODY).status_code == 401


def test_half_a_megabyte_of_token(server: Server, open_server: Server) -> None:
    """Of the head alone the connection reads too little to hold such a token."""
    long = "a" * (512 << 10)
    for url in (server.url, open_server.url):
        answer = httpx.get(url + "/v2", headers=bearer(f"{long}.{long}.{long}"))
        assert answer.status_code == 431
        assert httpx.get(url + "/livez").status_code == 200


def test_two_authorization_headers(open_server: Server, token: str) -> None:
    headers = [("authorization", f"Bearer {token}")]
    assert httpx.get(open_server.url + "/v2", headers=headers).status_code == 200
    answer = httpx.get(open_server.url + "/v2", headers=headers * 2)
    assert (answer.status_code, problem(answer)) == (400, "invalid-credentials")
    assert 'error="invalid_request"' in answer.headers["www-authenticate"]


def test_a_token_in_the_query_is_ignored(open_server: Server, token: str) -> None:
    answer = httpx.get(f"{open_server.url}/v2", params={"access_token": token})
    assert answer.status_code == 401


# Bodies.


@contextmanager
def connection(server: Server) -> Iterator[socket.socket]:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        yield client


def head(*lines: str) -> bytes:
    start = [f"POST {GATEWAY} HTTP/1.1", "Host: s", "Content-Type: message/ohttp-req"]
    return "\r\n".join([*start, *lines, "", ""]).encode()


def answer_of(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data or b"}" not in data:
        part = client.recv(65536)
        if not part:
            break
        data += part
    return data


def resident_bytes(server: Server) -> int:
    """Of the server and its workers, which are its children."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    family = [str(server.pid), *children.split()]
    status = [Path(f"/proc/{pid}/status").read_text() for pid in family]
    lines = [line for text in status for line in text.splitlines()]
    return sum(int(line.split()[1]) << 10 for line in lines if "VmRSS" in line)


def test_a_declared_length_over_the_limit_is_not_read(server: Server) -> None:
    with connection(server) as client:
        client.sendall(head(f"Content-Length: {1 << 40}"))
        answer = answer_of(client)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body-too-large" in answer
    assert b"connection: close" in answer.lower()


def test_chunks_are_counted_and_memory_stays_bounded(server: Server) -> None:
    before = resident_bytes(server)
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    with connection(server) as client:
        client.sendall(head("Transfer-Encoding: chunked"))
        sent = 0
        try:
            while sent < 200 << 20:
                client.sendall(chunk)
                sent += 1 << 20
        except OSError:
            pass  # it stopped reading, as it should
        grown = resident_bytes(server) - before
        answer = _received(client)
    assert answer.startswith(b"HTTP/1.1 413") or sent < 200 << 20
    assert grown < 4 * LIMIT
    assert httpx.get(server.url + "/livez").status_code == 200


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(65536)
    except OSError:
        return b""


def test_chunks_just_over_the_limit(server: Server) -> None:
    with connection(server) as client:
        client.sendall(head("Transfer-Encoding: chunked"))
        client.sendall(b"%x\r\n" % (LIMIT + 1) + b"x" * (LIMIT + 1) + b"\r\n")
        answer = answer_of(client)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_short_length_does_not_hide_a_longer_body(server: Server) -> None:
    with connection(server) as client:
        second = b"GET /metrics HTTP/1.1\r\nHost: s\r\n\r\n"
        client.sendall(head("Content-Length: 5") + b"xxxxx" + second)
        first = answer_of(client)
        rest = first.partition(b"}")[2] or answer_of(client)
    # Five bytes are no sealed request; what follows is a stranger's next request.
    assert first.startswith(b"HTTP/1.1 400")
    assert b"malformed-encapsulation" in first
    assert b"HTTP/1.1 401" in rest


def test_two_lengths_are_refused(server: Server) -> None:
    for lines in (
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: -1",),
        ("Content-Length: 5, 5",),
    ):
        with connection(server) as client:
            client.sendall(head(*lines) + b"hello")
            assert client.recv(20).startswith(b"HTTP/1.1 400"), lines


# Sealed requests that are none.


def test_malformed_encapsulation(server: Server) -> None:
    for content in (b"", b"x", b"x" * 54):
        answer = httpx.post(server.url + GATEWAY, content=content, headers=SEALED_TYPE)
        assert answer.status_code == 400
        assert problem(answer) == "malformed-encapsulation"


def test_unknown_key_and_undecryptable_are_one_answer(server: Server) -> None:
    config = keyconfig.decode_list(httpx.get(server.url + GATEWAY).content)[0]
    good, _ = ohttp.seal_request(config, b"hello")
    unknown = bytes([good[0] ^ 0xFF]) + good[1:]
    tampered = good[:-1] + bytes([good[-1] ^ 1])
    answers = [
        httpx.post(server.url + GATEWAY, content=content, headers=SEALED_TYPE)
        for content in (unknown, tampered)
    ]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].content == answers[1].content
    assert answers[0].json()["type"] == (
        "https://iana.org/assignments/http-problem-types#ohttp-key"
    )
    same = [{k: v for k, v in a.headers.items() if k not in VARYING} for a in answers]
    assert same[0] == same[1]


VARYING = ("date", "x-request-id")


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/vnd.bentoml+pickle",
        "application/x-pickle",
        "multipart/form-data; boundary=x",
    ],
)
def test_media_types(
    server: Server, open_server: Server, token: str, kind: str
) -> None:
    answer = httpx.post(
        server.url + GATEWAY, content=b"\x80\x04.", headers={"content-type": kind}
    )
    assert answer.status_code == 415
    if kind != "application/json":
        headers = bearer(token) | {"content-type": kind}
        answer = httpx.post(open_server.url + INFER, content=b"\x80.", headers=headers)
        assert answer.status_code == 415
        inner = seal(server, token=token, headers=((b"content-type", kind.encode()),))
        assert inner.status == 415


def test_methods(server: Server, open_server: Server, token: str) -> None:
    answer = httpx.put(server.url + GATEWAY, content=b"x", headers=SEALED_TYPE)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    answer = httpx.get(open_server.url + INFER, headers=bearer(token))
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert seal(server, "DELETE", "/v2/models/toy", token=token).status == 405


# What a rightful caller gets wrong.


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b"[" * 100_000, b'{"inputs":' * 10_000]
)
def test_not_json(server: Server, token: str, body: bytes) -> None:
    inner = seal(server, token=token, body=body)
    assert (inner.status, problem(inner)) == (400, "malformed-json")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"name": "x"}, 'input "x": unknown, expected "features"'),
        ({"datatype": "INT64"}, "expected FP32[-1,3], got INT64[1,3]"),
        ({"shape": [3, 1]}, "expected FP32[-1,3], got FP32[3,1]"),
        ({"data": [1]}, "expected 3 values for shape [1, 3], got 1"),
    ],
)
def test_a_wrong_tensor_is_named(
    server: Server, open_server: Server, token: str, change: dict, detail: str
) -> None:
    body = {"inputs": [INPUT | change]}
    inner = seal(server, token=token, body=body)
    assert (inner.status, problem(inner)) == (400, "invalid-request")
    assert detail in document(inner)["detail"]
    assert document(inner)["error"] == document(inner)["detail"]
    plain = httpx.post(open_server.url + INFER, json=body, headers=bearer(token))
    assert plain.json() == document(inner)


def test_malformed_inner_message(server: Server) -> None:
    config = keyconfig.decode_list(httpx.get(server.url + GATEWAY).content)[0]
    sealed, context = ohttp.seal_request(config, b"\x00\x03GET")
    outer = httpx.post(server.url + GATEWAY, content=sealed, headers=SEALED_TYPE)
    inner = bhttp.decode_response(context.open(outer.content))
    assert (outer.status_code, inner.status) == (200, 400)


# What is left behind. Last, so that the log holds all of the above.


def test_the_log_verifies_and_holds_no_secret(server: Server, token: str) -> None:
    body = {"id": "caller-chosen", "inputs": [INPUT | {"data": [0.123456789, 2, 3]}]}
    assert seal(server, token=token, body=body).status == 200
    folder = server.home / "audit"
    verifier = load_verifier(server.home / "audit.vkey")
    assert sum(verify_log([folder], verifier=verifier).records.values()) > 0
    text = "".join(path.read_text() for path in folder.glob("*.jsonl"))
    printed = server.log.read_text()
    for secret in ("0.123456789", "caller-chosen", "developer", *token.split(".")):
        assert f'"{secret}"' not in text
        assert secret not in printed
    assert token not in text
    assert '"outcome":"allow"' in text
    assert '"reason":"unauthenticated"' in text
