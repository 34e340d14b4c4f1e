"""Requests that come whole are answered on their connection; others through ASGI.

Which way a request went must make no difference to its answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from sealgate.protocol.bhttp import Response
from service.http.exchange import Exchange, Reply, StreamedResponse
from tests.support.servers import Server

READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
POST = (
    b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
)
SEALED = (
    b"POST /.well-known/ohttp-gateway HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: message/ohttp-req\r\nContent-Length: 70\r\n\r\n"
)


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    parts = urlsplit(server.url)
    address = (parts.hostname, parts.port)
    with socket.create_connection(address, timeout=30) as opened:
        yield opened


def take(connection: socket.socket) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """The next response: status line, fields, content."""
    # Unbuffered, so that nothing of the response behind it is taken.
    with connection.makefile("rb", buffering=0) as file:
        status = file.readline()
        fields = {}
        while line := file.readline().rstrip(b"\r\n"):
            name, _, value = line.partition(b": ")
            fields[name] = value
        return status, fields, file.read(int(fields[b"content-length"]))


def test_both_ways_give_the_same_answer(connection: socket.socket) -> None:
    connection.sendall(SEALED + bytes(70))
    whole = take(connection)
    connection.sendall(SEALED + bytes(35))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with pytest.raises(TimeoutError):
        connection.settimeout(0.2)
        connection.recv(1)
    connection.settimeout(30)
    connection.sendall(bytes(35))
    split = take(connection)
    assert whole[0] == split[0] == b"HTTP/1.1 422 Unprocessable Entity\r\n"
    assert whole[1].keys() == split[1].keys()
    assert whole[2] == split[2]


def test_a_refused_request_that_was_read_leaves_the_connection_open(
    connection: socket.socket,
) -> None:
    for _ in range(2):
        connection.sendall(POST + b"{}")
        status, fields, _ = take(connection)
        assert status == b"HTTP/1.1 401 Unauthorized\r\n"
        assert b"connection" not in fields


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HEAD /v2/health/ready HTTP/1.1\r\nHost: x\r\n", b"200"),
        (b"GET http://x/v2/health/ready?a HTTP/1.1\r\nHost: x\r\n", b"200"),
        (b"GET /v2/health/ready?a=%20 HTTP/1.1\r\nHost: x\r\n", b"200"),
        (b"GET /v2/health%2fready HTTP/1.1\r\nHost: x\r\n", b"401"),
        (b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n", b"1"),
        (b"GET /v2/health/ready HTTP/1.0\r\n", b"200"),
        (b"DELETE /v2/health/ready HTTP/1.1\r\nHost: x\r\n", b"405"),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n", b"4"),
        (b"GET /v2/\xc3\xa4 HTTP/1.1\r\nHost: x\r\n", b"400"),
        (b"GET http:// HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n", b"400"),
    ],
)
def test_unusual_requests(
    connection: socket.socket, head: bytes, status: bytes
) -> None:
    connection.sendall(head + b"Connection: close\r\n\r\n")
    with connection.makefile("rb") as file:
        received = file.read()
    assert received.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close\r\n" in received or status == b"1"


def test_pipelined_requests_are_answered_in_their_order(
    connection: socket.socket,
) -> None:
    missing = READY.replace(b"/v2/health/ready", b"/v2")
    connection.sendall((READY + missing) * 3)
    found = [take(connection)[0][9:12] for _ in range(6)]
    assert found == [b"200", b"401"] * 3


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: object) -> None:
        self.written += bytes(memoryview(data))  # type: ignore[arg-type]

    def close(self) -> None:
        self.closed = True


class Flow:
    """A connection that takes everything."""

    write_paused = False

    async def drain(self) -> None:
        """Nothing waits."""


class Connection:
    """What an exchange sees of its connection."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.flow = Flow()
        self.ended = 0

    def end_exchange(self, task: object) -> None:
        self.ended += 1


def exchange(answer, *, keep_alive: bool = True) -> tuple[Exchange, Connection]:
    connection = Connection()
    return (
        Exchange(connection, answer, keep_alive=keep_alive, default_headers=[]),
        connection,
    )


async def reply(response, *headers: tuple[bytes, bytes]) -> Reply:
    return Reply(response, list(headers))


def test_no_field_ends_a_line() -> None:
    for value in (b"a\r\nset-cookie: b", b"a\nb", b"a\rb"):
        one, connection = exchange(reply(Response(200), (b"x", value)))
        asyncio.run(one.run())
        assert connection.transport.written.startswith(b"HTTP/1.1 500 ")
        assert connection.transport.closed
        assert connection.ended == 1


def test_a_failure_is_answered() -> None:
    async def fail() -> Reply:
        raise ZeroDivisionError

    one, connection = exchange(fail())
    asyncio.run(one.run())
    assert connection.transport.written.startswith(b"HTTP/1.1 500 ")
    assert connection.ended == 1


def test_a_streamed_answer_comes_in_chunks() -> None:
    parts = iter([b"abc", b"", b"d" * 20])
    one, connection = exchange(reply(StreamedResponse(200, (), parts)))
    asyncio.run(one.run())
    assert connection.transport.written == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n14\r\n" + b"d" * 20 + b"\r\n0\r\n\r\n"
    )


def test_a_client_that_leaves_stops_its_request() -> None:
    stopped = []

    async def endless() -> Reply:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            stopped.append(True)
            raise
        raise AssertionError

    async def run() -> Connection:
        one, connection = exchange(endless())
        one.task = asyncio.ensure_future(one.run())
        await asyncio.sleep(0)
        one.disconnected = True
        one.set()
        await one.task
        return connection

    connection = asyncio.run(run())
    assert stopped == [True]
    assert connection.transport.written == b""
    assert connection.ended == 1


def test_the_last_answer_of_a_connection_says_so() -> None:
    one, connection = exchange(reply(Response(204)), keep_alive=False)
    asyncio.run(one.run())
    assert connection.transport.written.endswith(b"connection: close\r\n\r\n")
    assert connection.transport.closed
