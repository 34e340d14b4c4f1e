"""The head of a request: bounded in bytes and in time, over raw sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from sealgate.exchange import GATEWAY_PATH, Answer, Exchange, build_request
from sealgate.protocol import keyconfig
from tests.conftest import toy_settings
from tests.support.patience import SpoiledError, in_time, once
from tests.support.rooms import INPUT
from tests.support.servers import ROOT, Server, serve


@pytest.fixture(scope="module")
def hasty(deployment) -> Iterator[Server]:
    """A server that waits one second for a head, two for a body."""
    extra = toy_settings(deployment) | {
        "SEALGATE_SERVICE_HEAD_TIMEOUT_S": "1.0",
        "SEALGATE_SERVICE_BODY_TIMEOUT_S": "2.0",
    }
    with serve("service.app:Sealgate", deployment, extra=extra, alone=True) as server:
        yield server


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def answer(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionError:
        pass
    return received


def memory(server: Server) -> int:
    process = psutil.Process(server.pid)
    family = [process, *process.children(recursive=True)]
    return max(process.memory_info().rss for process in family)


@pytest.mark.parametrize(
    "start",
    [
        b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ",
        b"GET /",
        b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n",
    ],
    ids=["value", "target", "many"],
)
def test_a_head_without_end_is_refused(server: Server, start: bytes) -> None:
    before = memory(server)
    filler = b"x-a: b\r\n" * 8192 if start.endswith(b"\r\n") else b"a" * 65536
    with connect(server) as connection:
        connection.sendall(start)
        try:
            for _ in range(1600):  # 100 MB
                connection.sendall(filler)
        except ConnectionError:
            pass
        received = answer(connection)
    assert received in (b"", *[received] * received.startswith(b"HTTP/1.1 431 "))
    assert memory(server) - before < 20 << 20


def test_a_head_a_little_too_long_gets_431(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 33000)
        received = answer(connection)
    assert received.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in received


def test_a_long_body_behind_a_short_head_is_no_head(server: Server) -> None:
    body = b"x" * 200_000
    head = (
        b"POST /.well-known/ohttp-gateway HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Type: message/ohttp-req\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    with connect(server) as connection:
        connection.sendall(head + body)
        assert answer(connection).startswith(b"HTTP/1.1 422 ")


def test_a_slow_head_is_cut_off(hasty: Server) -> None:
    def scene() -> None:
        with connect(hasty) as connection:
            began = time.monotonic()
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\n")
            assert answer(connection) == b""
            assert time.monotonic() - began > 0.5
            in_time(began, 5)

    once(scene)


def test_a_silent_connection_is_cut_off(hasty: Server) -> None:
    with connect(hasty) as connection:
        assert answer(connection) == b""


def test_a_slow_second_head_is_cut_off(hasty: Server) -> None:
    request = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(hasty) as connection:
        connection.sendall(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(request[:-4])
        assert answer(connection) == b""


def test_a_request_after_a_pause_is_answered(hasty: Server) -> None:
    request = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"

    def scene() -> None:
        with connect(hasty) as connection:
            for _ in range(3):
                began = time.monotonic()
                try:
                    connection.sendall(request)
                    received = connection.recv(65536)
                except ConnectionError:
                    received = b""
                if not received:  # its second was over before this came to it
                    raise SpoiledError
                assert received.startswith(b"HTTP/1.1 200 ")
                time.sleep(max(0.0, began + 0.6 - time.monotonic()))

    once(scene)


def test_an_upgrade_is_an_ordinary_request_and_logs_nothing(server: Server) -> None:
    before = server.log.read_text()
    with connect(server) as connection:
        connection.sendall(
            b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
    assert "WebSocket" not in server.log.read_text().removeprefix(before)


# Parsed to its end, and so large that most of it is not.
SIZES = [1 << 19, 3 << 20]


def large(server: Server, token: str, size: int = SIZES[-1]) -> tuple[bytes, Exchange]:
    """A sealed inference of so many bytes, with its HTTP head."""
    configs = keyconfig.decode_list(httpx.get(server.url + GATEWAY_PATH).content)
    inner = build_request(
        "POST",
        "/v2/models/toy/infer",
        url=server.url,
        token=token,
        now=time.time(),
        headers=((b"content-type", b"application/json"),),
        body=json.dumps({"inputs": [INPUT]}).encode().ljust(size),
    )
    exchange = Exchange(configs[0], inner, max_response_bytes=1 << 20)
    head = (
        f"POST {GATEWAY_PATH} HTTP/1.1\r\nHost: x\r\n"
        "Content-Type: message/ohttp-req\r\n"
        f"Content-Length: {len(exchange.content)}\r\n\r\n"
    ).encode()
    return head + exchange.content, exchange


def read_response(connection: socket.socket) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response


class Shared:
    """A connection of which several responses are read, none more than its own."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")

    def makefile(self, _: str) -> Shared:
        return self

    def readline(self, size: int) -> bytes:
        return self._file.readline(size)

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        """The next response is still to be read."""

    def flush(self) -> None:
        """Nothing is written."""


@pytest.mark.parametrize("portion", [70_000, 1 << 22])
@pytest.mark.parametrize("size", SIZES)
def test_a_large_sealed_body_in_portions(
    server: Server, token: str, size: int, portion: int
) -> None:
    with connect(server) as connection:
        for _ in range(2):  # the connection goes on
            data, exchange = large(server, token, size)
            for start in range(0, len(data), portion):
                connection.sendall(data[start : start + portion])
                time.sleep(0.01)
            response = read_response(connection)
            answer = Answer(
                response.status, dict(response.headers.items()), response.read()
            )
            inner = exchange.finish(answer)
            assert inner.status == 200
            assert json.loads(bytes(inner.body))["model_name"] == "toy"


@pytest.mark.parametrize("size", SIZES)
def test_two_large_bodies_one_behind_the_other(
    server: Server, token: str, size: int
) -> None:
    """And a small request behind both: nothing is taken that belongs to the next."""
    (first, one), (second, two) = (large(server, token, size) for _ in range(2))
    ready = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as connection:
        sent = [first + second + ready]
        sender = threading.Thread(target=connection.sendall, args=sent)
        sender.start()
        shared = Shared(connection)
        for exchange in (one, two):
            response = read_response(shared)
            headers = dict(response.headers.items())
            answer = Answer(response.status, headers, response.read())
            assert exchange.finish(answer).status == 200
        response = read_response(shared)
        assert json.loads(response.read()) == {"ready": True}
        sender.join()


@pytest.mark.parametrize("size", SIZES)
def test_a_large_sealed_body_that_stops(hasty: Server, token: str, size: int) -> None:
    data, _ = large(hasty, token, size)
    with connect(hasty) as connection:
        connection.sendall(data[: size * 2 // 3])
        received = answer(connection)
        assert received.startswith(b"HTTP/1.1 408 ")
    # What comes too late belongs to nothing.
    with connect(hasty) as connection:
        connection.sendall(data[: size * 2 // 3])
    assert httpx.get(f"{hasty.url}/v2/health/ready").status_code == 200


@pytest.mark.parametrize("size", SIZES)
def test_a_large_sealed_body_that_was_changed(
    server: Server, token: str, size: int
) -> None:
    """It is refused when all of it is there, and the connection goes on."""
    with connect(server) as connection:
        for change in (True, False):
            data, exchange = large(server, token, size)
            if change:
                data = data[:-1] + bytes([data[-1] ^ 1])
            connection.sendall(data)
            response = read_response(connection)
            content = response.read()
            if change:
                assert response.status == 422
                continue
            headers = dict(response.headers.items())
            answered = Answer(response.status, headers, content)
            assert exchange.finish(answered).status == 200


def test_who_is_refused_while_sending_gets_to_read_it(hasty: Server) -> None:
    """A large body from nobody; more than any buffer holds."""
    for _ in range(5):
        refused = httpx.post(
            hasty.url + "/v2/models/toy/infer", content=bytes(20 << 20)
        )
        assert refused.status_code == 401
        assert refused.headers["connection"] == "close"


def test_a_long_head_that_goes_on_gets_to_read_it(hasty: Server) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"x" * (8 << 20))
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection).startswith(b"HTTP/1.1 431 ")


def test_who_is_refused_and_never_stops_is_cut_off(hasty: Server) -> None:
    head = (
        b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    )

    def scene() -> None:
        before = time.monotonic()
        with connect(hasty) as connection:
            connection.sendall(head % (16 << 20))
            with pytest.raises(ConnectionError):
                while time.monotonic() < before + 20:
                    connection.sendall(b"x")
                    time.sleep(0.02)
        assert time.monotonic() - before >= 1.0
        in_time(before, 5)

    once(scene)


@contextlib.contextmanager
def few_files(most: int) -> Iterator[None]:
    """What is started meanwhile may open so many files, unless it asks for more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_strangers_cannot_take_all_descriptors(deployment) -> None:
    """Systems give a process 1024, which is as many as we let connect."""
    most = 150
    extra = toy_settings(deployment) | {"SEALGATE_SERVICE_MAX_CONNECTIONS": str(most)}
    with contextlib.ExitStack() as stack:
        with few_files(128):
            server = stack.enter_context(
                serve("", deployment, extra=extra, alone=True, fresh=True)
            )
        for _ in range(most + 50):
            stack.enter_context(connect(server))
        for path in ("/livez", "/readyz"):
            assert httpx.get(server.url + path, timeout=10).status_code == 200


def test_fewer_connections_where_no_more_files_may_be_opened() -> None:
    code = """
import resource, sys
from service.http.connections import openable
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))
print(openable(1024), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    for hard, found in ((4096, "1024 3328 4096"), (1024, "768 1024 1024")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(hard)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == found
