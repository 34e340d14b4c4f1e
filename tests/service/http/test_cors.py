"""service.http.cors: pages of named origins may seal, and read nothing else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.protocol import bhttp
from sealgate.protocol.bhttp import Request, Response
from security.errors import SettingsError
from security.settings.service import ServiceSettings, check_service
from service.http.intake import Visit
from tests.support.rooms import Rooms, request, sealed, token, wire

PAGE = "https://app.example"
GATEWAY = "/.well-known/ohttp-gateway"
KEYS = (GATEWAY, "/.well-known/sealgate-keys", "/.well-known/sealgate-keys-v2")
SEALED = (b"content-type", b"message/ohttp-req")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    identity = ec.generate_private_key(ec.SECP256R1())
    return wire(
        tmp_path_factory.mktemp("cors"), require_sealed=False, identity=identity
    )


def ask(
    rooms: Rooms,
    method: str,
    path: str,
    *origins: str,
    more: tuple[tuple[bytes, bytes], ...] = (),
    body: bytes = b"",
    allowed: tuple[str, ...] = (PAGE, "http://localhost:8080"),
    **bounds: int,
) -> Response:
    guard = rooms.guard(None, allowed_origins=allowed, **bounds)  # type: ignore[arg-type]
    headers = (*((b"origin", origin.encode()) for origin in origins), *more)
    asked = Request(method.encode(), b"http", b"m", path.encode(), headers, body)
    reply = asyncio.run(guard.answer(asked))
    assert isinstance(reply.answer, Response)
    return Response(reply.answer.status, tuple(reply.headers), reply.answer.body)


def preflight(rooms: Rooms, path: str, *origins: str, **more: object) -> Response:
    asks = ((b"access-control-request-method", b"POST"),)
    return ask(rooms, "OPTIONS", path, *origins, more=asks, **more)  # type: ignore[arg-type]


def allowed(response: Response) -> str | None:
    found = dict(response.headers).get(b"access-control-allow-origin")
    return None if found is None else found.decode()


def told(response: Response) -> set[tuple[bytes, bytes]]:
    ours = (b"x-request-id", b"ratelimit")  # of one answer alone
    return {field for field in response.headers if field[0] not in ours}


def varies(response: Response) -> bool:
    return (b"vary", b"origin") in response.headers


@pytest.mark.parametrize("path", KEYS)
def test_a_page_reads_the_keys(rooms: Rooms, path: str) -> None:
    response = ask(rooms, "GET", path, PAGE)
    assert (response.status, allowed(response)) == (200, PAGE)
    assert varies(response)
    fields = dict(response.headers)
    assert b"date" in fields[b"access-control-expose-headers"].split(b", ")
    assert b"access-control-allow-credentials" not in fields


def test_a_second_origin_gets_its_own_name(rooms: Rooms) -> None:
    other = "http://localhost:8080"
    assert allowed(ask(rooms, "GET", GATEWAY, other)) == other


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.evil.example",
        "https://evil-app.example",
        "https://evil.app.example",
        "https://app.exampl",
        "https://app.example.",
        "https://app.example:443",
        "https://app.example:8443",
        "http://app.example",
        "https://APP.example",
        "HTTPS://app.example",
        "https://app.example/",
        "https://user@app.example",
        "https://app.example https://app.example",
        " https://app.example",
        "http://localhost",
        "http://127.0.0.1:8080",
        "null",
        "*",
        "",
    ],
)
def test_an_origin_that_almost_matches(rooms: Rooms, origin: str) -> None:
    for path in KEYS:
        response = ask(rooms, "GET", path, origin)
        assert (response.status, allowed(response)) == (200, None)
        assert varies(response)
    answered = preflight(rooms, GATEWAY, origin)
    assert (answered.status, allowed(answered)) == (405, None)
    assert varies(answered)


def test_two_origins_are_none(rooms: Rooms) -> None:
    assert allowed(ask(rooms, "GET", GATEWAY, PAGE, "https://evil.example")) is None
    assert allowed(ask(rooms, "GET", GATEWAY, PAGE, PAGE)) is None


def test_caches_hear_of_origins_from_whoever_sends_none(rooms: Rooms) -> None:
    response = ask(rooms, "GET", GATEWAY)
    assert varies(response)
    assert allowed(response) is None


@pytest.mark.parametrize(
    ("path", "methods"), [(GATEWAY, b"GET, POST"), *((p, b"GET") for p in KEYS[1:])]
)
def test_a_preflight(rooms: Rooms, path: str, methods: bytes) -> None:
    response = preflight(rooms, path, PAGE)
    assert (response.status, response.body, allowed(response)) == (204, b"", PAGE)
    fields = dict(response.headers)
    assert fields[b"access-control-allow-methods"] == methods
    assert fields[b"access-control-allow-headers"] == b"content-type"
    assert int(fields[b"access-control-max-age"]) > 0
    assert varies(response)
    assert b"content-length" not in fields  # RFC 9110, section 8.6
    assert b"access-control-allow-credentials" not in fields


def test_options_without_a_preflights_question_is_as_before(rooms: Rooms) -> None:
    assert ask(rooms, "OPTIONS", GATEWAY, PAGE).status == 405


def test_a_page_reads_a_sealed_answer(rooms: Rooms) -> None:
    inner = bhttp.encode_request(request("GET", "/v2", bearer=token("infer:toy")))
    message, _ = sealed(rooms.gateway.keys, inner)
    response = ask(rooms, "POST", GATEWAY, PAGE, more=(SEALED,), body=message)
    assert (response.status, allowed(response)) == (200, PAGE)
    assert (b"content-type", b"message/ohttp-res") in response.headers


@pytest.mark.parametrize(
    ("status", "body", "more"),
    [
        (422, b"\x09\x00\x20\x00\x01\x00\x01" + bytes(64), (SEALED,)),
        (400, b"\x01", (SEALED,)),
        (415, b"{}", ((b"content-type", b"application/json"),)),
        (413, bytes(2 << 20), (SEALED,)),
    ],
)
def test_a_page_reads_why_it_was_refused(
    rooms: Rooms, status: int, body: bytes, more: tuple[tuple[bytes, bytes], ...]
) -> None:
    bound = 1 << 20
    response = ask(
        rooms, "POST", GATEWAY, PAGE, more=more, body=body, max_body_bytes=bound
    )
    assert (response.status, allowed(response)) == (status, PAGE)
    assert json.loads(bytes(response.body))["status"] == status
    # Who is not named is refused alike, and its page reads nothing.
    other = ask(rooms, "POST", GATEWAY, "null", more=more, body=body)
    assert allowed(other) is None


def test_a_page_reads_that_the_server_is_busy(rooms: Rooms) -> None:
    guard = rooms.guard(
        None,  # type: ignore[arg-type]
        allowed_origins=(PAGE,),
        max_concurrency=1,
    )
    asked = Request(
        b"GET", b"http", b"m", GATEWAY.encode(), ((b"origin", PAGE.encode()),)
    )
    working = Visit(guard._intake)
    try:
        reply = asyncio.run(guard.answer(asked))
    finally:
        working.leave()
    fields = dict(reply.headers)
    assert reply.answer.status == 503
    assert fields[b"access-control-allow-origin"] == PAGE.encode()
    exposed = fields[b"access-control-expose-headers"].split(b", ")
    assert b"retry-after" in exposed
    assert b"retry-after" in fields


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/toy/infer", "/v2/health/ready", "/metrics", "/", "/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_nothing_else_is_opened(rooms: Rooms, method: str, path: str) -> None:
    bearer = (b"authorization", b"Bearer " + token("infer:toy").encode())
    asks = (b"access-control-request-method", b"POST")
    with_page = ask(rooms, method, path, PAGE, more=(bearer, asks))
    without = ask(rooms, method, path, more=(bearer, asks), allowed=())
    assert (with_page.status, with_page.body) == (without.status, without.body)
    assert told(with_page) == told(without)
    assert not any(name.startswith(b"access-control") for name, _ in with_page.headers)


@pytest.mark.parametrize("path", KEYS)
def test_nothing_changes_where_no_origin_is_named(rooms: Rooms, path: str) -> None:
    response = ask(rooms, "GET", path, PAGE, allowed=())
    names = {name for name, _ in response.headers}
    assert not names & {b"vary", b"access-control-allow-origin"}
    assert preflight(rooms, path, PAGE, allowed=()).status == 405


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example",
        "https://app.example:8443",
        "https://xn--bcher-kva.example",
        "https://192.0.2.1",
        "https://[2001:db8::1]:8443",
        "http://localhost:3000",
        "http://127.0.0.1:3000",
        "http://[::1]",
    ],
)
def test_origins_that_browsers_send(origin: str) -> None:
    check_service(ServiceSettings(allowed_origins=(origin,)))


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "",
        "app.example",
        "https://",
        "https://app.example/",
        "https://app.example/page",
        "https://app.example?x",
        "https://*.example",
        "https://App.example",
        "HTTPS://app.example",
        "https://app.example.",
        "https://app.example:443",
        "http://localhost:80",
        "https://app.example:0",
        "https://app.example:0443",
        "https://app.example:65536",
        "https://user@app.example",
        "https://bücher.example",
        "https://127.1",
        "https://0x7f.0x1",
        "https://192.000.2.1",
        "https://[2001:DB8::1]",
        "https://[2001:db8:0::1]",
        "http://app.example",
        "ws://localhost",
        "https://app.example\n",
        "https://app.example https://b.example",
    ],
)
def test_what_no_browser_sends_is_no_setting(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"^service\.allowed_origins: "):
        check_service(ServiceSettings(allowed_origins=(origin,)))


def test_an_origin_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="named twice"):
        check_service(ServiceSettings(allowed_origins=(PAGE, PAGE)))
