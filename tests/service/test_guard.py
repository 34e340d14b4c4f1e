"""service.guard: the outermost layer, driven as an ASGI server would drive it."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.bhttp import Response
from sealgate.protocol.drafts.chunked import seal_chunked_request
from sealgate.protocol.dsse import key_hint
from sealgate.protocol.signedkeys import verify_keys, verify_keys_v2
from security.errors import AttesterError
from tests.support.patience import in_time, once
from tests.support.rooms import (
    INPUT,
    Rooms,
    endless_model,
    opened,
    request,
    sealed,
    token,
    wire,
)

GATEWAY = "/.well-known/ohttp-gateway"
SEALED_TYPE = (b"content-type", b"message/ohttp-req")
CHUNKED_TYPE = (b"content-type", b"message/ohttp-chunked-req")


class Inner:
    """BentoML's place: answers 200 to anything, and remembers that it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope.get("path", scope["type"]))
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"inner"})


class Client:
    """One connection's events: what arrives, and what was sent back."""

    def __init__(self, events: Iterable[dict[str, Any]], pause_s: float = 0) -> None:
        self._events = iter(events)
        self._pause_s = pause_s
        self.taken = 0
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(self._pause_s)
        self.taken += 1
        return next(self._events)

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def response(self) -> Response:
        start, body = self.sent
        return Response(start["status"], tuple(start["headers"]), body["body"])


class Slow(Client):
    """Takes its answer when it is told to."""

    def __init__(self, events: Iterable[dict[str, Any]]) -> None:
        super().__init__(events)
        self.asked, self.goes_on = asyncio.Event(), asyncio.Event()

    async def send(self, message: dict[str, Any]) -> None:
        self.asked.set()
        await self.goes_on.wait()
        await super().send(message)


def scope(
    method: str = "GET", path: str = "/v2", headers: Iterable[tuple[bytes, bytes]] = ()
) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"models.example"), *headers],
    }


def body(*chunks: bytes) -> list[dict[str, Any]]:
    more = [{"type": "http.request", "body": c, "more_body": True} for c in chunks[:-1]]
    return [*more, {"type": "http.request", "body": chunks[-1], "more_body": False}]


def length(size: int) -> tuple[bytes, bytes]:
    return (b"content-length", str(size).encode())


CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    return wire(tmp_path_factory.mktemp("guard"))


@pytest.fixture(scope="module")
def open_rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    return wire(tmp_path_factory.mktemp("guard"), require_sealed=False)


Guarded = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


def call(
    guard: Guarded,
    asked: dict[str, Any],
    events: Iterable[dict[str, Any]] = (),
    **how: Any,
) -> Client:
    client = Client(events or body(b""), **how)
    asyncio.run(guard(asked, client.receive, client.send))
    return client


def bearer(*scopes: str) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + token(*scopes).encode())


def code(response: Response) -> str:
    return json.loads(bytes(response.body))["type"].rpartition("/")[2]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/healthz",
        "/metrics",
        "/docs.json",
        "/schema.json",
        "/static_content/x",
        "/task/submit",
        "/v2",
        "/v2/models/toy",
        "/admit",
        "//metrics",
        "/METRICS",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "CONNECT"])
def test_closed_to_strangers(rooms: Rooms, method: str, path: str) -> None:
    inner = Inner()
    client = call(rooms.guard(inner), scope(method, path, [length(3)]), body(b"abc"))
    assert client.response.status == 401
    assert b"www-authenticate" in dict(client.response.headers)
    # Neither the application behind nor the body was touched.
    assert (inner.asked, client.taken) == ([], 0)
    assert dict(client.response.headers)[b"connection"] == b"close"


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"]
)
def test_health_is_open_and_answered_here(rooms: Rooms, path: str) -> None:
    inner = Inner()
    assert call(rooms.guard(inner), scope("GET", path)).response.status == 200
    assert inner.asked == []


def test_every_answer_is_hardened(rooms: Rooms) -> None:
    for path in ("/livez", "/v2", GATEWAY):
        headers = dict(call(rooms.guard(Inner()), scope("GET", path)).response.headers)
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert b"default-src 'none'" in headers[b"content-security-policy"]
        assert b"cache-control" in headers


def test_metrics_are_for_their_scope_only(rooms: Rooms) -> None:
    guard = rooms.guard(Inner())
    refused = call(guard, scope("GET", "/metrics", [bearer("infer:*")]))
    assert refused.response.status == 403
    allowed = call(guard, scope("GET", "/metrics", [bearer("metrics")])).response
    assert allowed.status == 200
    assert dict(allowed.headers)[b"content-type"].startswith(b"text/plain; version=")
    assert b'sealgate_refusals_total{reason="insufficient-scope"}' in allowed.body
    assert (
        call(guard, scope("HEAD", "/metrics", [bearer("metrics")])).response.status
        == 200
    )
    for method, path in (("POST", "/metrics"), ("GET", "/metrics/")):
        other = call(guard, scope(method, path, [bearer("metrics")])).response
        assert other.status in (403, 404)


def test_nothing_is_passed_on(open_rooms: Rooms) -> None:
    inner = Inner()
    for path in ("/metrics", "/", "/docs.json", "/livez", "/v2", "/schema.json"):
        call(open_rooms.guard(inner), scope("GET", path, [bearer("metrics")]))
    assert inner.asked == []


def test_the_path_is_taken_as_it_was_sent(rooms: Rooms) -> None:
    asked = scope("GET", "/metrics", [bearer("metrics")])
    client = call(rooms.guard(Inner()), asked | {"raw_path": b"/%6detrics"})
    assert client.response.status == 403


def test_plaintext_is_refused_before_its_body(rooms: Rooms) -> None:
    headers = [bearer("infer:toy"), length(10)]
    asked = scope("POST", "/v2/models/toy/infer", headers)
    client = call(rooms.guard(Inner()), asked, body(b"0123456789"))
    assert (client.response.status, code(client.response)) == (403, "sealed-required")
    assert client.taken == 0


def test_plaintext_where_it_is_allowed(open_rooms: Rooms) -> None:
    content = json.dumps({"inputs": [INPUT]}).encode()
    headers = [bearer("infer:toy"), length(len(content))]
    asked = scope("POST", "/v2/models/toy/infer", headers)
    client = call(open_rooms.guard(Inner()), asked, body(content[:9], content[9:]))
    assert client.response.status == 200
    assert b"connection" not in dict(client.response.headers)


# Bodies.


def test_a_declared_length_is_refused_unread(rooms: Rooms) -> None:
    guard = rooms.guard(Inner(), max_body_bytes=100)
    asked = scope("POST", GATEWAY, [SEALED_TYPE, length(101)])
    client = call(guard, asked, body(b"x" * 101))
    assert (client.response.status, code(client.response)) == (413, "body-too-large")
    assert client.taken == 0
    assert dict(client.response.headers)[b"connection"] == b"close"


@pytest.mark.parametrize("declared", [[CHUNKED], [length(10)], [length(10)] * 2, []])
def test_what_comes_is_counted_whatever_was_declared(
    rooms: Rooms, declared: list[tuple[bytes, bytes]]
) -> None:
    guard = rooms.guard(Inner(), max_body_bytes=100)
    asked = scope("POST", GATEWAY, [SEALED_TYPE, *declared])
    client = call(guard, asked, body(*[b"x" * 30] * 50))
    assert (client.response.status, code(client.response)) == (413, "body-too-large")
    assert client.taken == 4
    assert client.response.body.count(b"at most 100 bytes") == 2


def test_the_bound_is_inclusive(rooms: Rooms) -> None:
    guard = rooms.guard(Inner(), max_body_bytes=100)
    asked = scope("POST", GATEWAY, [SEALED_TYPE, length(100)])
    assert call(guard, asked, body(b"x" * 50, b"x" * 50)).response.status == 422


@pytest.mark.parametrize("value", [b"-1", b"+5", b"1e9", b"0x10", b"9" * 30, b"\xb2"])
def test_an_odd_length_is_not_believed(rooms: Rooms, value: bytes) -> None:
    guard = rooms.guard(Inner(), max_body_bytes=100)
    asked = scope("POST", GATEWAY, [SEALED_TYPE, (b"content-length", value)])
    assert call(guard, asked, body(*[b"x" * 60] * 2)).response.status == 413


def test_a_slow_body_ends(rooms: Rooms) -> None:
    guard = rooms.guard(Inner(), body_timeout_s=0.1)
    asked = scope("POST", GATEWAY, [SEALED_TYPE, CHUNKED])

    def scene() -> None:
        started = time.monotonic()
        client = call(guard, asked, body(*[b"x"] * 1000), pause_s=0.02)
        assert (client.response.status, code(client.response)) == (408, "body-timeout")
        in_time(started, 1)

    once(scene)


def test_a_client_that_leaves_gets_no_answer(rooms: Rooms) -> None:
    asked = scope("POST", GATEWAY, [SEALED_TYPE, CHUNKED])
    events = [body(b"x", b"")[0], {"type": "http.disconnect"}]
    assert call(rooms.guard(Inner()), asked, events).sent == []


# The gateway.


def test_the_key_configuration(rooms: Rooms) -> None:
    response = call(rooms.guard(Inner()), scope("GET", GATEWAY)).response
    headers = dict(response.headers)
    assert response.status == 200
    assert headers[b"content-type"] == b"application/ohttp-keys"
    assert headers[b"cache-control"] == b"max-age=3600"
    assert response.body == rooms.gateway.keys


def test_a_sealed_exchange(rooms: Rooms) -> None:
    asked = request("GET", "/v2/models/toy", bearer=token("infer:toy"))
    content, context = sealed(rooms.gateway.keys, bhttp.encode_request(asked))
    headers = [SEALED_TYPE, length(len(content))]
    client = call(rooms.guard(Inner()), scope("POST", GATEWAY, headers), body(content))
    assert opened(context, client.response).status == 200
    assert dict(client.response.headers)[b"cache-control"] == b"no-store"


def large(rooms: Rooms) -> tuple[bytes, ohttp.ResponseContext]:
    """A sealed inference that is decrypted while it arrives."""
    content = json.dumps({"inputs": [INPUT]}).encode().ljust(200_000)
    asked = request("POST", "/v2/models/toy/infer", bearer=token("infer:toy"))
    return sealed(
        rooms.gateway.keys, bhttp.encode_request(replace(asked, body=content))
    )


def in_portions(content: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    portions = [content[i : i + 65_000] for i in range(0, len(content), 65_000)]
    return scope("POST", GATEWAY, [SEALED_TYPE, length(len(content))]), body(*portions)


def test_a_large_sealed_exchange(rooms: Rooms) -> None:
    content, context = large(rooms)
    client = call(rooms.guard(Inner()), *in_portions(content))
    inner = opened(context, client.response)
    assert inner.status == 200
    assert json.loads(bytes(inner.body))["model_name"] == "toy"
    again = opened(context, call(rooms.guard(Inner()), *in_portions(content)).response)
    assert (again.status, code(again)) == (409, "replayed")


@pytest.mark.parametrize("place", [0, 20, 100, 150_000, -1])
def test_a_large_request_that_does_not_open_is_read_to_its_end(
    rooms: Rooms, place: int
) -> None:
    """So that a client with an old key is there to be told."""
    content = bytearray(large(rooms)[0])
    content[place] ^= 1
    asked, events = in_portions(bytes(content))
    client = call(rooms.guard(Inner()), asked, events)
    assert (client.response.status, client.taken) == (422, len(events))
    assert b"connection" not in dict(client.response.headers)
    assert json.loads(client.response.body)["type"].endswith("#ohttp-key")


def test_large_plaintext(open_rooms: Rooms) -> None:
    content = json.dumps({"inputs": [INPUT]}).encode().ljust(200_000)
    headers = [bearer("infer:toy"), (b"content-type", b"application/json")]
    asked, events = in_portions(content)
    asked |= scope("POST", "/v2/models/toy/infer", [*headers, length(len(content))])
    assert call(open_rooms.guard(Inner()), asked, events).response.status == 200


@pytest.mark.parametrize(
    "types",
    [
        [],
        [b"application/octet-stream"],
        [b"message/ohttp-res"],
        [b"message/ohttp-chunked-res"],
        [b"message/ohttp-req", b"message/ohttp-chunked-req"],
        [b"message/ohttp-req", b"message/ohttp-req"],
        [b"application/vnd.bentoml+pickle"],
    ],
)
def test_media_types_of_the_gateway(rooms: Rooms, types: list[bytes]) -> None:
    headers = [(b"content-type", value) for value in types]
    asked = scope("POST", GATEWAY, [*headers, length(5)])
    client = call(rooms.guard(Inner()), asked, body(b"12345"))
    assert client.response.status == 415
    assert client.taken == 0


@pytest.mark.parametrize("kind", [b"message/ohttp-req; x=1", b"Message/OHTTP-req "])
def test_a_media_type_is_not_its_spelling(rooms: Rooms, kind: bytes) -> None:
    asked = scope("POST", GATEWAY, [(b"content-type", kind), length(5)])
    client = call(rooms.guard(Inner()), asked, body(b"12345"))
    assert code(client.response) == "malformed-encapsulation"


def test_a_chunked_exchange_in_odd_portions(rooms: Rooms) -> None:
    asked = request("GET", "/v2/models/toy", bearer=token("infer:toy"))
    config = keyconfig.decode_list(rooms.gateway.keys)[0]
    sealer, opener = seal_chunked_request(config)
    message = bhttp.encode_request(asked)
    data = sealer.head + sealer.seal(message[:99]) + sealer.finish(message[99:])
    portions = [data[i : i + 37] for i in range(0, len(data), 37)]
    asked_outer = scope("POST", GATEWAY, [CHUNKED_TYPE, CHUNKED])
    client = call(rooms.guard(Inner()), asked_outer, body(*portions))
    start, *parts = client.sent
    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-type"]) == (
        200,
        b"message/ohttp-chunked-res",
    )
    assert b"content-length" not in headers
    assert [part.get("more_body", False) for part in parts] == [
        *[True] * (len(parts) - 1),
        False,
    ]
    inner = b"".join(b"".join(opener.feed(part["body"])) for part in parts)
    assert bhttp.decode_response(inner + opener.finish()).status == 200


def test_a_chunked_request_is_refused_at_its_first_bad_chunk(rooms: Rooms) -> None:
    config = keyconfig.decode_list(rooms.gateway.keys)[0]
    sealer, _ = seal_chunked_request(config)
    asked = scope("POST", GATEWAY, [CHUNKED_TYPE, CHUNKED])
    garbage = b"\x40\x20" + bytes(32)
    client = call(rooms.guard(Inner()), asked, body(sealer.head, *[garbage] * 50))
    assert (client.response.status, client.taken) == (422, 2)
    assert dict(client.response.headers)[b"connection"] == b"close"


def test_a_chunked_request_is_counted(rooms: Rooms) -> None:
    guard = rooms.guard(Inner(), max_body_bytes=100)
    asked = scope("POST", GATEWAY, [CHUNKED_TYPE, CHUNKED])
    config = keyconfig.decode_list(rooms.gateway.keys)[0]
    head = seal_chunked_request(config)[0].head
    client = call(guard, asked, body(head, *[b"\x7f\xff" + b"x" * 28] * 50))
    assert (client.response.status, code(client.response)) == (413, "body-too-large")
    assert client.taken == 4


SIGNED = "/.well-known/sealgate-keys"


def test_signed_keys(tmp_path: Path) -> None:
    identity = ec.generate_private_key(ec.SECP256R1())
    signing = wire(tmp_path, identity=identity)
    response = call(signing.guard(Inner()), scope("GET", SIGNED)).response
    headers = dict(response.headers)
    assert response.status == 200
    assert headers[b"content-type"] == b"application/vnd.dsse.envelope.v1+json"
    assert headers[b"cache-control"] == b"max-age=3600"
    trusted = {key_hint(identity.public_key()): identity.public_key()}
    signed = verify_keys(bytes(response.body), trusted, now=time.time())
    assert signed.document == signing.gateway.keys
    posted = call(signing.guard(Inner()), scope("POST", SIGNED)).response
    assert (posted.status, dict(posted.headers)[b"allow"]) == (405, b"GET, HEAD")


def test_no_signed_keys_without_an_identity(rooms: Rooms) -> None:
    response = call(rooms.guard(Inner()), scope("GET", SIGNED)).response
    assert (response.status, code(response)) == (404, "not-found")


class Machine:
    """An `Attester` that takes its time, or has no evidence."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked = 0

    def attest(self, nonce: bytes) -> dict[str, str]:
        self.asked += 1
        time.sleep(0.2)
        if self.error is not None:
            raise self.error
        return {"type": "of-tests", "nonce": nonce.hex()}


def test_signed_keys_of_the_second_version(tmp_path: Path) -> None:
    folders = (tmp_path / str(number) for number in itertools.count())
    once(lambda: signed_keys_of_the_second_version(next(folders)))


def signed_keys_of_the_second_version(folder: Path) -> None:
    identity, machine = ec.generate_private_key(ec.SECP256R1()), Machine()
    guard = wire(folder, identity=identity, attester=machine).guard(Inner())
    asked = scope("GET", f"{SIGNED}-v2")
    clients = [Client(body(b"")) for _ in range(3)]
    longest = 0.0

    async def look() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - began)

    async def together() -> None:
        looking = asyncio.create_task(look())
        await asyncio.gather(*(guard(asked, c.receive, c.send) for c in clients))
        looking.cancel()

    asyncio.run(together())
    assert machine.asked == 1
    trusted = {key_hint(identity.public_key()): identity.public_key()}
    for client in clients:
        content = bytes(client.response.body)
        signed = verify_keys_v2(content, trusted, now=time.time())
        assert signed.attestation == {"type": "of-tests", "nonce": signed.nonce.hex()}
    in_time(0.0, 0.15, now=longest)  # the loop goes on while the machine is asked


def test_clients_that_leave_while_evidence_is_made(tmp_path: Path) -> None:
    """They leave no thread behind, else nobody else would get one."""
    release = threading.Event()

    class Slow(Machine):
        def attest(self, nonce: bytes) -> dict[str, str]:
            release.wait(20)
            return super().attest(nonce)

    identity, machine = ec.generate_private_key(ec.SECP256R1()), Slow()
    guard = wire(tmp_path, identity=identity, attester=machine).guard(Inner())
    asked = scope("GET", f"{SIGNED}-v2")
    stays = Client(body(b""))

    async def together() -> None:
        for _ in range(40):
            client = Client(body(b""))
            leaving = asyncio.create_task(guard(asked, client.receive, client.send))
            await asyncio.sleep(0.005)
            leaving.cancel()
        staying = asyncio.create_task(guard(asked, stays.receive, stays.send))
        try:
            await asyncio.wait_for(asyncio.to_thread(int), 5)
        finally:
            release.set()
        await staying

    asyncio.run(together())
    assert stays.response.status == 200
    assert machine.asked == 1


def test_no_evidence_now(tmp_path: Path) -> None:
    identity = ec.generate_private_key(ec.SECP256R1())
    machine = Machine(AttesterError("the machine's own words"))
    guard = wire(tmp_path, identity=identity, attester=machine).guard(Inner())
    response = call(guard, scope("GET", f"{SIGNED}-v2")).response
    assert (response.status, code(response)) == (503, "attestation-unavailable")
    assert dict(response.headers)[b"retry-after"] == b"1"
    assert b"own words" not in bytes(response.body)
    assert call(guard, scope("GET", SIGNED)).response.status == 200


def test_the_second_version_without_an_identity(rooms: Rooms) -> None:
    response = call(rooms.guard(Inner()), scope("GET", f"{SIGNED}-v2")).response
    assert (response.status, code(response)) == (404, "not-found")
    posted = call(rooms.guard(Inner()), scope("POST", f"{SIGNED}-v2")).response
    assert posted.status == 405


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "post"])
def test_methods_of_the_gateway(rooms: Rooms, method: str) -> None:
    response = call(rooms.guard(Inner()), scope(method, GATEWAY)).response
    assert response.status == 405
    assert dict(response.headers)[b"allow"] == b"GET, HEAD, POST"


# Load, websockets, lifespan.


def test_more_requests_than_allowed_are_told_to_come_back(rooms: Rooms) -> None:
    guard = rooms.guard(Inner(), max_concurrency=2)
    asked = scope("POST", GATEWAY, [SEALED_TYPE, CHUNKED])
    # Two that are being answered: their callers are slow to take the answer.
    slow = [Slow(body(b"")) for _ in range(2)]
    third = Client(body(b""))

    async def together() -> None:
        livez = scope("GET", "/livez")
        tasks = [asyncio.create_task(guard(livez, c.receive, c.send)) for c in slow]
        await asyncio.gather(*(client.asked.wait() for client in slow))
        await guard(livez, third.receive, third.send)
        for client in slow:
            client.goes_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(together())
    assert (third.response.status, code(third.response)) == (503, "overloaded")
    assert dict(third.response.headers)[b"retry-after"] == b"1"
    assert [client.response.status for client in slow] == [200, 200]
    # The places are free again, after clients that left too.
    gone = [{"type": "http.disconnect"}]
    for _ in range(5):
        call(guard, asked, gone)
    assert call(guard, scope("GET", "/livez")).response.status == 200


def test_no_websocket_is_accepted(rooms: Rooms) -> None:
    inner = Inner()
    asked = {"type": "websocket", "path": "/", "headers": [bearer("infer:*")]}
    client = call(rooms.guard(inner), asked, [{"type": "websocket.connect"}])
    assert client.sent == [{"type": "websocket.close", "code": 1008}]
    assert inner.asked == []


def test_the_lifespan_is_bentomls(rooms: Rooms) -> None:
    inner = Inner()
    call(rooms.guard(inner), {"type": "lifespan"})
    assert inner.asked == ["lifespan"]


def test_a_client_that_leaves_stops_its_run(tmp_path: Path) -> None:
    """Its request is cancelled, recorded, and whoever comes next is answered."""
    endless = endless_model(tmp_path / "odd")
    left = wire(
        tmp_path / "rooms", admissions=[endless], require_sealed=False, timeout_s=60
    )
    guard = left.guard(Inner())
    content = json.dumps({"inputs": [INPUT | {"name": "x"}]}).encode()
    asked = scope(
        "POST", "/v2/models/odd/infer", [bearer("infer:odd"), length(len(content))]
    )

    async def scene() -> list[dict[str, Any]]:
        events = asyncio.Queue[dict[str, Any]]()
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        for event in body(content):
            events.put_nowait(event)
        task = asyncio.create_task(guard(asked, events.get, send))
        await asyncio.sleep(0.3)
        assert not task.done()
        events.put_nowait({"type": "http.disconnect"})
        async with asyncio.timeout(20):
            await task
        return sent

    assert asyncio.run(scene()) == []
    assert b'"reason":"cancelled"' in left.records
    assert b'"status":499' in left.records
    (entry,) = left.routes.lineup.table.values()
    assert entry.default.content.batcher.waiting == 0


def test_a_cancelled_server_is_no_client_that_left(tmp_path: Path) -> None:
    endless = endless_model(tmp_path / "odd")
    left = wire(
        tmp_path / "rooms", admissions=[endless], require_sealed=False, timeout_s=60
    )
    guard = left.guard(Inner())
    content = json.dumps({"inputs": [INPUT | {"name": "x"}]}).encode()
    asked = scope(
        "POST", "/v2/models/odd/infer", [bearer("infer:odd"), length(len(content))]
    )
    client = Client([*body(content)])

    async def scene() -> None:
        task = asyncio.create_task(guard(asked, client.receive, client.send))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    assert client.sent == []
