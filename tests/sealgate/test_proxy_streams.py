"""The sealing proxy with long content: nothing is held whole, in neither direction."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from sealgate.proxy import ProxyLimits
from tests.support.bundles import NAME
from tests.support.chunked_peers import Peer, serving
from tests.support.proxies import proxy
from tests.support.rooms import INPUT

LARGE = 32 << 20
# What the proxy may hold of a stream: its own kept part, and what its two sockets
# buffer, which the kernel lets grow to some megabytes each on the loopback.
HELD = 22 << 20
CONTENT = os.urandom(1 << 20) * (LARGE >> 20)


@contextlib.contextmanager
def through(peer: Peer) -> Iterator[tuple[Peer, int]]:
    with serving(peer), proxy(peer.url, token="mine") as port:
        yield peer, port


def connect(port: int, timeout_s: float = 60) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
    for side in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        connection.setsockopt(socket.SOL_SOCKET, side, 1 << 16)
    return connection


def head(port: int, *fields: str, version: str = "1.1") -> bytes:
    lines = [f"POST /v2/x HTTP/{version}", f"Host: 127.0.0.1:{port}", *fields, "", ""]
    return "\r\n".join(lines).encode()


def everything(connection: socket.socket) -> bytes:
    received = bytearray()
    while part := connection.recv(1 << 16):
        received += part
    return bytes(received)


def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stalled(value: Callable[[], int]) -> int:
    """A value that grows, once it has not for a while."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.6:
        time.sleep(0.05)
        if value() != last:
            last, since = value(), time.monotonic()
    return last


def http_chunks(content: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        part = content[start : start + size]
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


@pytest.mark.parametrize("coding", ["length", "chunks"])
def test_a_long_request_arrives(coding: str) -> None:
    with through(Peer()) as (peer, port), connect(port) as connection:
        if coding == "length":
            connection.sendall(
                head(port, f"Content-Length: {LARGE}", "Connection: close")
            )
            connection.sendall(CONTENT)
        else:
            connection.sendall(
                head(port, "Transfer-Encoding: chunked", "Connection: close")
            )
            for chunk in http_chunks(CONTENT, 100_000):
                connection.sendall(chunk)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\nanswer")
    assert peer.received == LARGE
    assert peer.digest == hashlib.sha256(CONTENT).hexdigest()
    # First a small request, so that keys and clock were right for the long one.
    assert [request.path for request in peer.requests] == [b"/v2/health/live", b"/v2/x"]


def test_what_the_server_does_not_read_is_not_read_from_the_client() -> None:
    with through(Peer()) as (peer, port), connect(port) as connection:
        connection.sendall(head(port, f"Content-Length: {LARGE}", "Connection: close"))
        connection.sendall(CONTENT[: 2 << 20])  # the small request is answered by now
        until(lambda: peer.received > 0)
        peer.pause()
        sent = 2 << 20
        connection.setblocking(False)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and sent < LARGE:
            try:
                sent += connection.send(CONTENT[sent : sent + 65536])
            except BlockingIOError:
                time.sleep(0.05)
        assert sent < LARGE - (4 << 20)
        assert sent - peer.received < HELD
        connection.settimeout(60)
        peer.resume()
        connection.sendall(CONTENT[sent:])
        assert everything(connection).startswith(b"HTTP/1.1 200")
    assert peer.digest == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("known", [True, False])
def test_what_the_client_does_not_read_is_not_read_from_the_server(known: bool) -> None:
    pieces = [CONTENT[start : start + 50_000] for start in range(0, LARGE, 50_000)]
    peer = Peer(lambda _: pieces, known=known)
    with through(peer) as (peer, port), connect(port) as connection:
        connection.sendall(head(port, "Content-Length: 0", "Connection: close"))
        until(lambda: peer.written > 0)
        assert stalled(lambda: peer.written) < HELD
        received = everything(connection)
    start, _, body = received.partition(b"\r\n\r\n")
    if known:
        assert f"content-length: {LARGE}".encode() in start
    else:
        assert b"transfer-encoding: chunked" in start.lower()
        body = unchunked(body)
    assert body == CONTENT


def unchunked(body: bytes) -> bytes:
    content = bytearray()
    position = 0
    while True:
        end = body.index(b"\r\n", position)
        size = int(body[position:end], 16)
        position = end + 2 + size
        assert body[position : position + 2] == b"\r\n"
        if not size:
            assert position + 2 == len(body)
            return bytes(content)
        content += body[end + 2 : position]
        position += 2


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_that_is_cut_short_is_not_taken_for_whole(
    known: bool, version: str
) -> None:
    """Even though the server ends its own message properly."""
    peer = Peer(lambda _: [bytes(100_000)] * 10, known=known, cut=300_000)
    with through(peer) as (_, port), connect(port) as connection:
        connection.sendall(head(port, "Content-Length: 0", version=version))
        with pytest.raises(ConnectionResetError):
            everything(connection)


def test_a_client_of_http_1_0() -> None:
    peer = Peer(lambda _: [b"a" * 40_000, b"b" * 40_000], known=False)
    with through(peer) as (_, port), connect(port) as connection:
        connection.sendall(head(port, "Content-Length: 0", version="1.0"))
        start, _, body = everything(connection).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in start.lower()
    assert b"connection: close" in start.lower()
    assert body == b"a" * 40_000 + b"b" * 40_000


@pytest.mark.parametrize("size", [100, 3 << 20])
def test_a_key_that_was_replaced(size: int) -> None:
    """A short request is sent again; before a long one a small one finds it out."""
    with through(Peer()) as (peer, port):
        url = f"http://127.0.0.1:{port}/v2/x"
        assert httpx.post(url, content=b"1", timeout=60).text == "answer"
        peer.rotate()
        if size > 1 << 20:  # what was asked a moment ago is not asked again
            response = httpx.post(url, content=CONTENT[:size], timeout=60)
            # On a machine so slow that the moment is over, it is.
            assert response.status_code in (200, 503)
            assert response.headers.get("retry-after", "1") == "1"
        response = httpx.post(url, content=CONTENT[:size], timeout=60)
        assert (response.status_code, response.text) == (200, "answer")
    assert peer.received == size


def test_a_request_that_is_cut_short_is_not_forwarded() -> None:
    with through(Peer()) as (peer, port):
        with connect(port) as connection:
            connection.sendall(head(port, f"Content-Length: {LARGE}"))
            connection.sendall(CONTENT[: 3 << 20])
        with connect(port) as connection:
            connection.sendall(head(port, "Transfer-Encoding: chunked"))
            connection.sendall(b"%x\r\n%b\r\n" % (2 << 20, CONTENT[: 2 << 20]))
            connection.sendall(b"bad\n")
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert httpx.get(f"http://127.0.0.1:{port}/v2").text == "answer"
    assert peer.digest == hashlib.sha256().hexdigest()


def test_a_body_is_bounded_while_it_comes() -> None:
    limits = ProxyLimits(max_body_bytes=3 << 20)
    with (
        serving(Peer()) as peer,
        proxy(peer.url, limits=limits) as port,
        connect(port) as connection,
    ):
        connection.sendall(head(port, "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for chunk in http_chunks(CONTENT[: 4 << 20], 1 << 20):
                connection.sendall(chunk)
        assert everything(connection).startswith(b"HTTP/1.1 413")
    assert [request.path for request in peer.requests][:1] == [b"/v2/health/live"]


def test_the_real_server(server, token) -> None:
    """Its JSON may have spaces around; one connection, several long requests."""
    document = json.dumps({"inputs": [INPUT]}).encode()
    content = document.rjust(12 << 20)

    def portions() -> Iterator[bytes]:
        for start in range(0, len(content), 1 << 18):
            yield content[start : start + (1 << 18)]

    with proxy(server.url, token=token) as port, httpx.Client(timeout=30) as client:
        url = f"http://127.0.0.1:{port}/v2/models/{NAME}/infer"
        for body in (content, portions(), document):
            response = client.post(url, content=body)
            assert response.status_code == 200, response.text
            assert response.json()["outputs"][1]["data"] == [1]
        too_large = client.post(url, content=b" " * (17 << 20))
        assert too_large.status_code in (413, 502)
        assert client.get(f"http://127.0.0.1:{port}/v2").status_code == 200


def test_a_client_that_reads_nothing_is_let_go() -> None:
    """Closing waits for what was written to be read: for ever, if nobody reads."""
    limits = ProxyLimits(body_timeout_s=0.5)
    peer = Peer(lambda _: [CONTENT])

    def ends(port: int) -> list[tuple[int, str]]:
        """The proxy's ends of its connections."""
        every = psutil.Process().net_connections("tcp")
        return [one.status for one in every if one.laddr.port == port and one.raddr]

    with serving(peer), proxy(peer.url, token="mine", limits=limits) as port:
        connections = [connect(port) for _ in range(3)]
        for connection in connections:
            connection.sendall(head(port, "Content-Length: 0"))
        until(lambda: len(ends(port)) == 3)
        until(lambda: not ends(port), timeout_s=15)
        for connection in connections:
            connection.close()
