"""Attacks on the connection of a real server: floods, and requests read in two ways."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

from sealgate.client import Client
from tests.support.bundles import NAME
from tests.support.nginx import nginx
from tests.support.patience import in_time, once
from tests.support.servers import Server

READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v2/health/ready HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def ask(server: Server, *parts: bytes, pause_s: float = 0.05) -> bytes:
    """What comes back on one connection until the server closes it."""
    with connect(server.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
            time.sleep(pause_s)
        return rest(connection)


def worker(server: Server) -> psutil.Process:
    process = psutil.Process(server.pid)
    family = [process, *process.children(recursive=True)]
    return max(family, key=lambda process: process.memory_info().rss)


# Floods.


class Flood:
    """Connections that send one text again and again, and take what comes."""

    def __init__(self, url: str, text: bytes, *, connections: int, size: int) -> None:
        self._left = {connect(url): memoryview(text * (size // len(text)))}
        while len(self._left) < connections:
            self._left[connect(url)] = next(iter(self._left.values()))
        for connection in self._left:
            connection.setblocking(False)
        self.received = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while self._left and not self.stop.is_set():
            ready = select.select(list(self._left), list(self._left), [], 0.1)
            for connection in ready[0]:
                with contextlib.suppress(BlockingIOError):
                    self._take(connection)
            for connection in {*ready[1]} & self._left.keys():
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    sent = connection.send(self._left[connection][:65536])
                    self._left[connection] = self._left[connection][sent:]
            time.sleep(0.005)
        for connection in self._left:
            connection.close()

    def _take(self, connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = connection.recv(1 << 16)
        self.received += data.count(b"HTTP/1.1 ")
        if not data:
            del self._left[connection]
            connection.close()


@pytest.mark.parametrize(
    ("text", "most"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", (40, 0)),
        # 100 each at once, and 200 more in each second.
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", (40 * 100, 40 * 200)),
        (READY, None),
    ],
    ids=["no host", "refused", "answered"],
)
def test_pipelined_requests_of_strangers(
    open_server: Server, text: bytes, most: tuple[int, int] | None
) -> None:
    once(lambda: flooded(open_server, text, most))


def flooded(server: Server, text: bytes, most: tuple[int, int] | None) -> None:
    """A flood, and what it may do: answers at once, and more in each second."""
    process = worker(server)
    before, slowest = process.memory_info().rss, 0.0
    begun = time.monotonic()
    flood = Flood(server.url, text, connections=40, size=10 << 20)
    thread = threading.Thread(target=flood.run)
    thread.start()
    try:
        grown, until = 0, time.monotonic() + 2
        while time.monotonic() < until or (
            flood.received < 40 and time.monotonic() < until + 60
        ):
            began = time.monotonic()
            alive = httpx.get(f"{server.url}/livez", timeout=60)
            slowest = max(slowest, time.monotonic() - began)
            assert alive.status_code == 200
            grown = max(grown, process.memory_info().rss - before)
            time.sleep(0.1)
    finally:
        flood.stop.set()
        thread.join()
    assert flood.received >= 40
    if most is not None:
        seconds = time.monotonic() - begun + 1.0
        assert flood.received <= most[0] + most[1] * seconds
    assert grown <= 20 << 20
    in_time(0.0, 1.0, now=slowest)


def test_a_refused_connection_has_to_wait(open_server: Server) -> None:
    request = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    began = time.monotonic()
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = ask(open_server, request * 219 + last)
    assert received.count(b"HTTP/1.1 401 ") == 220
    assert time.monotonic() - began > (220 - 100) * 0.005 * 0.9


def test_it_goes_on_after_each_wait(open_server: Server) -> None:
    request = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(open_server.url) as connection:
        for _ in range(130):  # the next one is there while its connection waits
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        for text in (request + READY, READY):
            connection.sendall(text)
            received = b""
            while received.count(b"HTTP/1.1 ") < text.count(b"GET "):
                received += connection.recv(65536)
            assert b"connection: close" not in received


def chunked(size: int, count: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b"a" * size) * count + b"0\r\n\r\n"


@pytest.mark.parametrize("path", [b"/v2", b"/.well-known/ohttp-gateway"])
def test_a_body_in_tiny_chunks_is_refused(open_server: Server, path: bytes) -> None:
    """Forty such connections kept others waiting for seconds."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % path
    head += b"Content-Type: message/ohttp-req\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"chunks are too small" in ask(open_server, head + chunked(1, 40_000))
    for size, count in ((1, 4096), (20, 6000)):  # few, or not too small
        received = ask(open_server, head + chunked(size, count))
        assert received.startswith(b"HTTP/1.1 4")
        assert b"too small" not in received


@pytest.mark.parametrize(
    "filler",
    [b"1;" + b"a" * 65534, b"0\r\nx: " + b"a" * 65530, b"0\r\n" + b"a: b\r\n" * 10000],
    ids=["extension", "trailer", "trailers"],
)
def test_bytes_of_a_body_that_are_none(open_server: Server, filler: bytes) -> None:
    process = worker(open_server)
    before = process.memory_info().rss
    head = b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    more = filler[-65536:] if filler[:1] == b"1" else filler[-60000:]
    received = ask(
        open_server,
        head + b"Connection: close\r\n\r\n",
        filler,
        *[more] * 64,
        pause_s=0,
    )
    # Refused for its head, or for what followed it: never read for ever.
    assert received[:12] in (b"", b"HTTP/1.1 401", b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert process.memory_info().rss - before < 20 << 20


# Requests that two servers may read in two ways. Each is sent with another one behind
# it, which must never be answered: to somebody else it is a body, or nothing.

BEHIND = b"GET /v2 HTTP/1.1\r\nHost: y\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
END = b"\r\n0\r\n\r\n"
REFUSED = [
    (b"GET /v2/health/ready HTTP/1.1\r\n\r\n", b"400"),
    (b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", b"400"),
    (b"GET /v2/health/ready HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", b"400"),
    (b"GET /v2/health/ready HTTP/1.1\r\nHost: x/y\r\n\r\n", b"400"),
    (b"GET /v2/health/ready HTTP/2.0\r\nHost: x\r\n\r\n", b"400"),
    (b"GET /v2/health/ready\r\n\r\n", b"400"),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n" + END, b"501"),
    (CHUNKED.replace(b"Tr", b"Transfer-Encoding: x\r\nTr") + END, b"501"),
    (POST + b"Transfer-Encoding: identity\r\n\r\n", b"501"),
    (POST + b"Transfer-Encoding: xchunked\r\n" + END, b"501"),
    (POST + b"Transfer-Encoding: chunked, chunked\r\n" + END, b"400"),
    (POST + b"Transfer-Encoding: \x0bchunked\r\n" + END, b"400"),
    (POST + b"Transfer-Encoding : chunked\r\n" + END, b"400"),
    (POST + b"Transfer-Encoding:\r\n chunked\r\n" + END, b"400"),
    (CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n", b"501"),
    (CHUNKED + b"Content-Length: 5\r\n" + END, b"400"),
    (CHUNKED.replace(b"Tr", b"Content-Length: 5\r\nTr") + END, b"400"),
    (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b"400"),
    (POST + b"Content-Length: 5, 5\r\n\r\nhello", b"400"),
    (POST + b"Content-Length: +5\r\n\r\nhello", b"400"),
    (POST + b"Content-Length:\r\n 5\r\n\r\nhello", b"400"),
    (POST + b"X: a\r\n b: c\r\n\r\n", b"400"),
    (POST + b"X: a\nTransfer-Encoding: chunked\r\n" + END, b"400"),
    (POST + b"X: a\rTransfer-Encoding: chunked\r\n" + END, b"400"),
    (b"GET /v2/health/ready HTTP/1.1\nHost: x\n\n", b"400"),
    (CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n", b"400"),
    (CHUNKED + b"\r\n3;a\nb\r\nabc\r\n0\r\n\r\n", b"400"),
    (CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n", b"400"),
    (CHUNKED + b"\r\n3 \r\nabc\r\n0\r\n\r\n", b"400"),
    (CHUNKED + b"\r\n10000000000000003\r\nabc\r\n0\r\n\r\n", b"400"),
    (CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n", b"400"),
    (POST + UPGRADE + b"Content-Length: 5\r\n\r\nhello", b"400"),
    (CHUNKED + UPGRADE + END, b"400"),
    (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", b"400"),
]  # fmt: skip


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "head first"])
def test_what_can_be_read_in_two_ways_is_refused(
    open_server: Server, apart: bool
) -> None:
    wrong = []
    for request, status in REFUSED:
        head, blank, body = request.partition(b"\r\n\r\n")
        parts = (head + blank, body + BEHIND) if apart else (request + BEHIND,)
        received = ask(open_server, *parts, pause_s=0.02 * apart)
        answers = received.count(b"HTTP/1.1 ")
        expected = received.startswith(b"HTTP/1.1 " + status)
        if answers != 1 or not expected or b"connection: close" not in received:
            wrong.append((request, received))
    assert not wrong


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        CHUNKED + b"\r\n0\r\n\r\n",
    ],
    ids=["upgrade", "connect", "chunked"],
)
def test_nothing_is_answered_behind_it(open_server: Server, head: bytes) -> None:
    received = ask(open_server, head + BEHIND)
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"connection: close\r\n" in received


def test_a_request_behind_one_with_chunks(open_server: Server) -> None:
    with connect(open_server.url) as connection:
        for part in (CHUNKED + b"\r\n0\r\n\r\n", b"\r\n" + READY):
            connection.sendall(part)
            received = connection.recv(65536)
            assert received.count(b"HTTP/1.1 ") == 1
            assert b"connection: close" not in received


def test_trailers_are_no_headers(open_server: Server, token: str) -> None:
    request = b"GET /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    trailer = b"Authorization: Bearer %b\r\n" % token.encode()
    end = b"Connection: close\r\n\r\n"
    assert b" 401 " in ask(open_server, request + end + b"0\r\n" + trailer + b"\r\n")
    assert b" 200 " in ask(open_server, request + trailer + end + b"0\r\n\r\n")


def test_a_head_in_any_portions(open_server: Server) -> None:
    last = READY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    text = b"\r\n" + READY + last
    for cut in range(len(READY) - 6, len(READY) + 4):
        received = ask(open_server, text[:cut], text[cut:], pause_s=0.01)
        assert received.count(b"HTTP/1.1 200 ") == 2


# Behind a proxy, as many set it up.

UPSTREAM = """
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream sealgate {{ server {address}; keepalive 4; }}
"""
LOCATION = """
    location / {
      proxy_pass http://sealgate;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_request_buffering off;
    }
"""


@pytest.fixture(scope="module")
def proxied(
    open_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    upstream = UPSTREAM.format(address=urlsplit(open_server.url).netloc)
    folder: Path = tmp_path_factory.mktemp("nginx")
    with nginx(folder, server=LOCATION, http=upstream) as url:
        yield url


@pytest.mark.parametrize("sealed", [False, True], ids=["plaintext", "sealed"])
def test_no_victim_gets_an_attackers_answer(
    proxied: str, token: str, sealed: bool
) -> None:
    smuggled = b"GET /v2/health/live HTTP/1.1\r\nHost: y\r\nX: "
    head = (
        b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    )
    for _ in range(4):
        with connect(proxied) as attacker:
            attacker.sendall(head)
            time.sleep(0.05)
            attacker.sendall(smuggled)
            assert attacker.recv(65536).startswith(b"HTTP/1.1 400 ")
        VICTIMS[sealed](proxied, token)


def _ask_sealed(url: str, token: str) -> None:
    with Client(url, token=token) as client:
        rows = np.ones((1, 3), np.float32)
        assert client.infer(NAME, {"features": rows})["label"].shape == (1,)


def _ask_in_the_open(url: str, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    for _ in range(2):
        answer = httpx.get(f"{url}/v2/models/toy", headers=headers)
        assert answer.json()["name"] == "toy"


VICTIMS: dict[bool, Callable[[str, str], None]] = {
    False: _ask_in_the_open,
    True: _ask_sealed,
}
