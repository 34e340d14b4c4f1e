"""Connections of our own under servers, networks and programs that do as they like."""

from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
import sys
import threading
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import httpcore
import pytest

from sealgate import AsyncClient, Client, Options, TransportError, direct
from tests.sealgate.test_direct import ANSWERS, ENDED, WAYS, by_pool
from tests.support.certificates import certificate
from tests.support.talkers import LIMIT, step, talker

HI = ANSWERS["length"][0]
# What nobody asked for, behind an answer.
FORGED = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """A machine that stands still for seconds makes no idle connection too old."""
    monkeypatch.setattr(direct, "KEEPALIVE_S", 3600.0)


@pytest.fixture
def contexts(tmp_path):
    """A server's, with a certificate of 127.0.0.1, and the options to trust it."""
    certificate(tmp_path, "ca", authority=True)
    certificate(tmp_path, "server", issuer="ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    return context, Options(authorities=tmp_path / "ca.pem")


@pytest.mark.parametrize("name", [*ANSWERS, *ENDED])
def test_an_answer_is_the_same_wherever_it_is_cut(name):
    said = ENDED.get(name) or ANSWERS[name][0]
    pieces = [[said], [said[i : i + 1] for i in range(len(said))]]
    pieces += [[said[:i], said[i:]] for i in range(1, len(said))]
    found = []
    for parts in pieces:
        reader = direct._Reader(LIMIT)
        for part in parts:
            assert not reader.whole
            reader.feed(part)
        if not reader.whole:
            reader.feed(b"")
        found.append((reader.answer(), reader.reusable))
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("way", WAYS)
def test_space_around_a_value_is_none_of_it(way):
    said = b"HTTP/1.1 200 OK\r\ncontent-type: \t a b \t \r\nempty: \r\nnone:\r\n"
    said += b"content-length: 2 \r\n\r\nhi"
    with talker(said) as server, Client(server.url, token="t") as client:
        answer = WAYS[way](client, step(server.url))
        assert answer == by_pool(client, step(server.url))
        assert answer.media_type == "a b"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 104 Early\r\ncontent-length: 5\r\n\r\nEarly" + HI,
        b"HTTP/1.1 104 Early\r\ntransfer-encoding: chunked\r\n\r\n1\r\nE\r\n0\r\n\r\n"
        + HI,
        b"HTTP/1.1 101 Else\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + HI,
        b"HTTP/1.1 101 Else\r\n\r\n" + HI,
        b"HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n" + HI,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n"
        b"2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
        b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)
def test_what_no_request_asked_for_is_refused(said, way):
    with talker(said, close=True) as server, Client(server.url, token="t") as client:
        with pytest.raises(TransportError, match="RemoteProtocolError"):
            WAYS[way](client, step(server.url))
        with pytest.raises(httpcore.RemoteProtocolError):
            client._by_pool(step(server.url))


async def _several(url: str, options: Options = Options()) -> list[bytes]:
    async with AsyncClient(url, token="t", options=options) as client:
        return [(await client._fetch(step(url))).body[-6:] for _ in range(4)]


def test_what_a_full_read_leaves_over_is_no_answer():
    """Of 64 KB, which is what one read takes; the rest has arrived with it."""
    head = b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 65000\r\n"
    head += b"x: " + b"y" * (65536 - 65000 - len(head) - 7) + b"\r\n\r\n"
    said = head + bytes(65000)
    assert len(said) == 65536
    with talker(said + FORGED) as server:
        assert asyncio.run(_several(server.url)) == [bytes(6)] * 4


def test_a_record_of_tls_that_nobody_asked_for_is_no_answer(contexts):
    context, options = contexts
    # A record takes at most 16 KB: what is behind the answer is in one of its own.
    said = b"HTTP/1.1 200 OK\r\ncontent-length: 16342\r\n\r\n" + bytes(16342)
    assert len(said) == 16 << 10
    with talker(said + FORGED, context=context) as server:
        assert asyncio.run(_several(server.url, options)) == [bytes(6)] * 4
        with Client(server.url, token="t", options=options) as client:
            found = [client._fetch(step(server.url)).body[-6:] for _ in range(4)]
        assert found == [bytes(6)] * 4


# What a loop leaves open is collected, as Python says of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_outlives_a_loop(monkeypatch):
    """Connections of one that is over wait on nothing, nor does a turn."""
    monkeypatch.setattr(direct, "MAX_CONNECTIONS", 1)

    async def ask(client: AsyncClient) -> None:
        asked = [client._fetch(step(client.url)) for _ in range(3)]
        assert [a.body for a in await asyncio.gather(*asked)] == [b"hi"] * 3

    with talker(HI) as server:
        client = AsyncClient(server.url, token="t")
        for number in range(1, 4):
            asyncio.run(ask(client))
            assert server.connections == number
            assert len(server.requests) == 3 * number
        asyncio.run(client.close())
        del client
        gc.collect()


FORK = """
import os, sys
from sealgate import Client, direct
from tests.support.talkers import step
direct.KEEPALIVE_S = 3600.0
with Client(sys.argv[1], token="t") as client:
    client._fetch(step(client.url))
    if os.fork() == 0:
        client._fetch(step(client.url))
    else:
        os.wait()
        client._fetch(step(client.url))
"""


def test_a_fork_shares_no_connection():
    root = Path(direct.__file__).parents[1]
    with talker(HI) as server:
        command = [sys.executable, "-c", FORK, server.url]
        subprocess.run(command, check=True, cwd=root, timeout=300)
        assert (len(server.requests), server.connections) == (3, 2)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_certificate_of_another_host_is_refused(contexts, kind):
    context, options = contexts
    with talker(HI, context=context) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises(TransportError, match=r"TLS: .*'localhost'"):
            if kind is Client:
                with Client(url, token="t", options=options) as client:
                    client._fetch(step(url))
            else:
                asyncio.run(_several(url, options))
        assert not server.requests


def test_large_content_by_tls_arrives_whole(contexts):
    context, options = contexts
    content = bytes(range(256)) * 4000

    async def ask(url: str) -> None:
        async with AsyncClient(url, token="t", options=options) as client:
            for _ in range(2):
                await client._fetch(step(url, content))

    with talker(HI, context=context) as server:
        with Client(server.url, token="t", options=options) as client:
            for _ in range(2):
                client._fetch(step(server.url, content))
        asyncio.run(ask(server.url))
        assert server.connections == 2
        assert all(request.endswith(content) for request in server.requests)
        assert len(server.requests) == 4


class Cancelled:
    """A task of its own for a coroutine, cancelled where it waits so often."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], after: int) -> None:
        self._coroutine, self._after = coroutine, after

    async def run(self) -> None:
        """Until its end."""
        await self

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        waits = 0
        try:
            waited = next(steps)
            while True:
                if waits == self._after:
                    asyncio.current_task().cancel()
                waits += 1
                try:
                    yield waited
                except asyncio.CancelledError as error:
                    waited = steps.throw(error)
                else:
                    waited = next(steps)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("secured", [False, True])
def test_who_is_cancelled_anywhere_leaves_nothing_open(contexts, secured):
    """At each await of a request that connects, of one on a connection that was kept,
    and of one that finds others to be closed."""
    context, options = contexts

    async def ask(url: str) -> None:
        async with AsyncClient(url, token="t", options=options) as client:
            kept = client._direct.to(step(url))
            for idle in range(3):
                number, ended = 0, False
                while not ended:
                    # One that is good, below those that have to be closed.
                    asked = [client._fetch(step(url)) for _ in range(idle)]
                    await asyncio.gather(*asked)
                    for _, stream in list(kept._idle)[1:]:
                        kept._idle.remove((_, stream))
                        kept._idle.append((0.0, stream))
                    cancelled = Cancelled(client._fetch(step(url)), number)
                    try:
                        await asyncio.create_task(cancelled.run())
                    except asyncio.CancelledError:
                        number += 1
                    else:
                        ended = True
                    idling = {stream for _, stream in kept._idle}
                    assert kept._open.keys() == idling
                    await kept.aclose()
                assert number > 1

    with talker(HI, context=context if secured else None) as server:
        asyncio.run(ask(server.url))


def test_who_is_cancelled_in_the_handshake_leaves_no_connection(contexts):
    _, options = contexts
    held = threading.Event()

    class Held:
        def wrap_socket(self, connection, server_side):
            held.set()
            # Until the client is gone; it has said hello.
            while connection.recv(4096):
                pass
            raise OSError

    async def ask(url: str) -> None:
        async with AsyncClient(url, token="t", options=options) as client:
            task = asyncio.create_task(client._fetch(step(url)))
            assert await asyncio.to_thread(held.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not client._direct.to(step(url))._open
            assert await asyncio.to_thread(server.ended.wait, 60)

    with talker(HI, context=Held()) as server:
        asyncio.run(ask(server.url))


def test_closing_fails_what_is_in_flight():
    async def ask(url: str) -> None:
        client = AsyncClient(url, token="t", timeout_s=300)
        task = asyncio.create_task(client._fetch(step(url)))
        assert await asyncio.to_thread(server.asked.wait, 60)
        await client.close()
        with pytest.raises(TransportError, match="does not answer"):
            await task
        assert not client._direct.to(step(url))._open

    with talker(b"HTTP/1.1 200 OK\r\n") as server:
        asyncio.run(ask(server.url))
