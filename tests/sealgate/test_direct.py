"""Whole requests on connections of our own: as httpcore's pools would answer them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import httpcore
import pytest

from sealgate import AsyncClient, Client, TransportError, direct
from sealgate.exchange import Answer
from sealgate.steps import Fetch
from sealgate.transport import head_of
from tests.support.talkers import step, talker

CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345"
# What a server may say, whole, and whether the connection carries another request.
ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", True),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", True),
    "chunks and a trailer": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nlate: 1\r\n\r\n",
        True,
    ),
    "a field twice": (
        b"HTTP/1.1 422 No\r\nX: 1\r\nx: 2\r\nContent-Length: 1\r\n\r\n!",
        True,
    ),
    "informational first": (
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        True,
    ),
    "to be closed": (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        False,
    ),
}
# And what it may say before it closes the connection.
ENDED = {
    "until the end": b"HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\nall of it",
    "no version to keep": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
}
BROKEN = {
    "nothing": (b"", "disconnected without sending a response"),
    "half a head": (b"HTTP/1.1 200 OK\r\ncont", "disconnected without"),
    "half a body": (CUT, r"complete message body \(received 5 bytes, expected 10\)"),
    "half a chunk": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc",
        r"complete message body \(incomplete chunked read\)",
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n" * 2, "RemoteProtocolError"),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "RemoteProtocolError",
    ),
    "a head without end": (
        b"HTTP/1.1 200 OK\r\n" + b"x: 0123456789\r\n" * 20_000,
        "Receive buffer too long",
    ),
    "too long": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + bytes(2_000_000),
        "the answer is too long",
    ),
}


def by_pool(client: Client, asked: Fetch) -> Answer:
    try:
        return client._by_pool(asked)
    except httpcore.NetworkError as error:
        raise TransportError(str(error)) from None


def by_own(client: Client, asked: Fetch) -> Answer:
    return client._fetch(asked)


def in_async(client: Client, asked: Fetch) -> Answer:
    async def ask() -> Answer:
        async with AsyncClient(client.url, token="t") as other:
            return await other._fetch(asked)

    return asyncio.run(ask())


WAYS: dict[str, Callable[[Client, Fetch], Answer]] = {
    "own": by_own,
    "asynchronous": in_async,
}


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """A machine that stands still for seconds makes no idle connection too old."""
    monkeypatch.setattr(direct, "KEEPALIVE_S", 3600.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*ANSWERS, *ENDED])
def test_answers_are_those_of_httpcore(name, way):
    said, close = (ENDED[name], True) if name in ENDED else (ANSWERS[name][0], False)
    with talker(said, close=close) as server, Client(server.url, token="t") as client:
        for content in (b"sealed", b"", None):
            asked = step(server.url, content)
            assert WAYS[way](client, asked) == by_pool(client, asked)
        # As sent, field by field.
        pairs = zip(server.requests[::2], server.requests[1::2], strict=True)
        for own, pool in pairs:
            assert sorted(own.split(b"\r\n")) == sorted(pool.split(b"\r\n"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_answer_is_an_error(name, way):
    said, why = BROKEN[name]
    with talker(said, close=True) as server, Client(server.url, token="t") as client:
        with pytest.raises(TransportError, match=why):
            WAYS[way](client, step(server.url))
        with pytest.raises((TransportError, httpcore.RemoteProtocolError)):
            client._by_pool(step(server.url))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_connection_is_used_again_where_it_may(name):
    said, again = ANSWERS[name]
    with talker(said) as server:
        with Client(server.url, token="t") as client:
            for _ in range(3):
                client._fetch(step(server.url))
            assert server.connections == (1 if again else 3)
        assert server.ended.wait(10)


def test_both_clients_close_what_they_kept():
    async def ask(url: str) -> None:
        async with AsyncClient(url, token="t") as client:
            for _ in range(3):
                await client._fetch(step(url))

    with talker(ANSWERS["length"][0]) as server:
        asyncio.run(ask(server.url))
        assert server.ended.wait(10)
        assert server.connections == 1


def test_bytes_that_nobody_asked_for_end_the_connection():
    said = ANSWERS["length"][0] + b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
    with talker(said) as server, Client(server.url, token="t") as client:
        for _ in range(2):
            answer = client._fetch(step(server.url))
            assert (answer.status, answer.body) == (200, b"hi")
        assert server.connections == 2


def test_a_length_beside_chunks_is_refused():
    said = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
    said += b"3\r\nabc\r\n0\r\n\r\n"
    with (
        talker(said) as server,
        Client(server.url, token="t") as client,
        pytest.raises(TransportError, match="RemoteProtocolError"),
    ):
        client._fetch(step(server.url))


def test_a_connection_that_ended_meanwhile_is_not_used():
    with (
        talker(ANSWERS["length"][0], close=True) as server,
        Client(server.url, token="t") as client,
    ):
        for number in range(1, 4):
            client._fetch(step(server.url))
            assert server.connections == number
            kept = next(iter(client._direct.all()))._idle[0][1]
            kept.get_extra_info("socket").settimeout(10)
            # Until its end has arrived.
            peeked = kept.get_extra_info("socket").recv(1, socket.MSG_PEEK)
            assert peeked == b""


def test_idle_connections_are_bounded_in_number_and_time(monkeypatch):
    with (
        talker(ANSWERS["length"][0]) as server,
        Client(server.url, token="t") as client,
    ):
        client._fetch(step(server.url))
        (kept,) = client._direct.all()
        monkeypatch.setattr(direct, "MAX_IDLE", 0)
        client._fetch(step(server.url))
        assert not kept._idle
        monkeypatch.setattr(direct, "MAX_IDLE", 20)
        monkeypatch.setattr(direct, "KEEPALIVE_S", -1.0)
        for _ in range(3):
            client._fetch(step(server.url))
        assert len(kept._open) == 0
        assert server.connections == 4


def test_threads_share_a_client():
    with (
        talker(ANSWERS["length"][0]) as server,
        Client(server.url, token="t") as client,
    ):
        bodies: list[bytes] = []

        def work() -> None:
            bodies.extend(client._fetch(step(server.url)).body for _ in range(20))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert bodies == [b"hi"] * 160
        assert server.connections <= 8


def test_an_early_refusal_is_read_though_not_all_was_taken():
    """The server answers from the head alone, and closes with content unread."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    read = threading.Event()

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                said = b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno"
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                read.wait(10)
                read.clear()

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, Client(url, token="t", timeout_s=10) as client:
        # More than the buffers of both sides hold would wait for the reader.
        asked = step(url, bytes(100_000))
        for way in WAYS.values():
            answer = way(client, asked)
            assert (answer.status, answer.body) == (413, b"no")
            read.set()
        thread.join(10)


def test_a_server_that_says_nothing_is_a_timeout():
    async def ask(url: str) -> None:
        async with AsyncClient(url, token="t", timeout_s=0.2) as client:
            await client._fetch(step(url))

    # Reading it is, unless the machine stands still for as long.
    late = "no (read|write|connection) in time"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            Client(url, token="t", timeout_s=0.2) as client,
            pytest.raises(TransportError, match=late),
        ):
            client._fetch(step(url))
        with pytest.raises(TransportError, match=late):
            asyncio.run(ask(url))


def test_more_requests_than_connections_wait_their_turn(monkeypatch):
    monkeypatch.setattr(direct, "MAX_CONNECTIONS", 1)

    async def several(url: str) -> None:
        async with AsyncClient(url, token="t") as client:
            asked = [client._fetch(step(url)) for _ in range(5)]
            assert [a.body for a in await asyncio.gather(*asked)] == [b"hi"] * 5

    with talker(ANSWERS["length"][0]) as server:
        asyncio.run(several(server.url))
        assert server.connections == 1


def test_a_turn_that_does_not_come_is_a_timeout(monkeypatch):
    monkeypatch.setattr(direct, "MAX_CONNECTIONS", 1)
    url = "http://127.0.0.1:9"  # nobody gets as far as connecting

    async def ask() -> None:
        async with AsyncClient(url, token="t", timeout_s=0.05) as client:
            kept = client._direct.to(step(url))
            slots = await kept._turn()
            assert slots.locked()
            with pytest.raises(TransportError, match="no pool in time"):
                await client._fetch(step(url))
            slots.release()

    asyncio.run(ask())
    with Client(url, token="t", timeout_s=0.05) as client:
        assert client._direct.to(step(url))._slots.acquire(blocking=False)
        with pytest.raises(TransportError, match="no pool in time"):
            client._fetch(step(url))


def test_who_is_cancelled_leaves_no_connection():
    async def ask(url: str) -> None:
        async with AsyncClient(url, token="t") as client:
            task = asyncio.create_task(client._fetch(step(url)))
            assert await asyncio.to_thread(server.asked.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            (kept,) = client._direct.all()
            assert not kept._open
            assert await asyncio.to_thread(server.ended.wait, 10)

    with talker(b"HTTP/1.1 200 OK\r\n") as server:
        asyncio.run(ask(server.url))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:8000/a", b"127.0.0.1:8000"),
        ("https://Models.Example:443/a", b"models.example"),
        ("https://models.example/a", b"models.example"),
        ("http://[::1]:3000/a", b"[::1]:3000"),
    ],
)
def test_the_host_that_is_named(url, host):
    head = head_of(Fetch("GET", url, 1))
    assert head.startswith(b"GET /a HTTP/1.1\r\nHost: " + host + b"\r\n")


@pytest.mark.parametrize("target", ["a b", "a\r\nx: 1", "a\tb", "é"])
def test_a_url_cannot_add_lines(target):
    with pytest.raises(httpcore.LocalProtocolError):
        direct.front("GET", "https://models.example/" + target, ())


@pytest.mark.parametrize("value", [b"x\r\ny: 1", b"x\n", b"", b"\0"])
def test_a_field_cannot_add_lines(value):
    with pytest.raises(httpcore.LocalProtocolError):
        direct.front("GET", "https://models.example/", [(b"content-type", value)])
