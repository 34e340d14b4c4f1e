"""Bodies that go past ASGI and the parser: what was sent is what is read."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from security.settings.service import ServiceSettings
from service.http.bodies import LARGE_BYTES, ArrivingBody
from service.http.connections import bounded_protocol
from service.http.direct import DIRECT_BODY, DIRECT_BYTES, DirectBody
from service.http.intake import Intake, Visit
from service.http.protocol import BoundedProtocol
from service.telemetry.metrics import Metrics
from tests.support.side_by_side import Client

SIZE = 700_000
SETTINGS = ServiceSettings(max_body_bytes=SIZE)
END = b"\r\n\r\n"


class Echo:
    """Answers with the hash of a body, which it asks for after some time."""

    def __init__(self, *, straight: bool, after_s: float = 0.0) -> None:
        self._straight, self._after_s = straight, after_s
        self._intake = Intake(SETTINGS, Metrics())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(self._after_s)
        visit = Visit(self._intake)
        direct = scope["extensions"][DIRECT_BODY]["rest"]
        body = ArrivingBody(scope, receive, visit, SETTINGS, direct)
        if self._straight:
            taken = bytearray()
            await body.read_straight_into(taken.extend)
        else:
            taken = bytearray(await body.read())
        body.release()
        visit.leave()
        text = hashlib.sha256(taken).hexdigest().encode()
        length = (b"content-length", b"%d" % len(text))
        start = {"type": "http.response.start", "status": 200, "headers": [length]}
        await send(start)
        await send({"type": "http.response.body", "body": text})


Made = list[BoundedProtocol]


def play(app: Echo, scene: Callable[[Client, Made], Awaitable[None]]) -> None:
    """One connection to it, without what would answer whole requests."""
    made: Made = []

    class Kept(bounded_protocol(SETTINGS, Metrics(), None)):  # type: ignore[misc, arg-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            made.append(self)

        def arrived(self, data: memoryview) -> None:
            super().arrived(data)
            data[:] = bytes(len(data))  # as if another connection had been read

        def _may_be_whole(self) -> bool:
            return False

    async def run() -> None:
        config = Config(app, log_level="error", lifespan="off")
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: Kept(config=config, server_state=state, app_state={}),
            "127.0.0.1",
            0,
        )
        port = server.sockets[0].getsockname()[1]
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        try:
            async with asyncio.timeout(30):
                await scene(client, made)
        finally:
            client.writer.close()
            server.close()

    asyncio.run(run())


def head(size: int) -> bytes:
    return f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {size}".encode() + END


def chunks(body: bytes) -> bytes:
    fields = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked" + END
    parts = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
    text = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return fields + text + b"0\r\n\r\n"


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("after_s", [0.0, 0.03])
@pytest.mark.parametrize("portion", [20_000, 90_000, 1 << 20])
def test_what_was_sent_is_read(straight: bool, after_s: float, portion: int) -> None:
    """In its order, and nothing of the next message, whichever way that is framed."""
    sizes = (1, portion - 5_000, DIRECT_BYTES + portion, SIZE, 0, 50_000)
    bodies = 2 * [os.urandom(min(size, SIZE)) for size in sizes]
    # Behind chunks no other message is taken.
    sent = [*(head(len(body)) + body for body in bodies), chunks(bodies[3])]

    async def scene(client: Client, _: Made) -> None:
        data = b"".join(sent)
        for at in range(0, len(data), portion):
            client.writer.write(data[at : at + portion])
            await asyncio.sleep(0.001)
        for body in (*bodies, bodies[3]):
            status, _fields, text = await client.take()
            assert status == 200
            assert text.decode() == hashlib.sha256(body).hexdigest()

    play(Echo(straight=straight, after_s=after_s), scene)


def test_a_large_body_is_not_read_before_it_is_asked_for() -> None:
    body = os.urandom(SIZE)

    async def scene(client: Client, made: Made) -> None:
        client.writer.write(head(SIZE) + body[:1000])
        while not (made and made[0].left):  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.001)
        left = made[0].left
        client.writer.write(body[1000:])
        await asyncio.sleep(0.1)
        assert made[0].left == left
        assert not made[0].cycle.body
        assert (await client.take())[2].decode() == hashlib.sha256(body).hexdigest()

    play(Echo(straight=True, after_s=0.5), scene)


def test_nor_is_one_behind_another_request() -> None:
    """What waited for its turn is parsed then; what follows waits as ever."""
    body = os.urandom(SIZE)

    async def scene(client: Client, made: Made) -> None:
        client.writer.write(head(1) + b"a" + head(SIZE) + body[:1000])
        await client.take()
        while not made[0].left:  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.001)
        assert made[0].flow.read_paused
        client.writer.write(body[1000:])
        assert (await client.take())[2].decode() == hashlib.sha256(body).hexdigest()

    play(Echo(straight=True, after_s=0.3), scene)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("size", [0, 5])
def test_a_target_without_a_path_is_refused(
    size: int, apart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """uvicorn fails on it, which is no reason to log where."""
    fields = head(size).replace(b"POST /", b"POST http://x")

    async def scene(client: Client, _: Made) -> None:
        client.writer.write(fields)
        await asyncio.sleep(0.02 * apart)
        client.writer.write(bytes(size))
        assert (await client.take())[0] == 400

    play(Echo(straight=True), scene)
    assert not caplog.records


@pytest.mark.parametrize("size", [3000, LARGE_BYTES + 3000])
def test_nothing_of_what_was_taken_is_kept_meanwhile(size: int) -> None:
    """A slow client's body takes what it declares, and not its first reads besides."""
    portions = [bytearray(b"a" * 1000), bytearray(b"b" * 1000), bytearray(size - 2000)]
    given = 0

    async def receive() -> dict[str, Any]:
        nonlocal given
        portions[given].clear()  # fails as long as anybody sees it
        given += 1
        data, more = memoryview(portions[given]), given < 2
        return {"type": "http.request", "body": data, "more_body": more}

    async def read() -> None:
        visit = Visit(Intake(SETTINGS, Metrics()))
        scope = {"headers": [(b"content-length", b"%d" % size)]}
        direct = DirectBody(early=memoryview(portions[0]))
        body = ArrivingBody(scope, receive, visit, SETTINGS, direct)
        content = bytes(await body.read())
        body.release()
        assert content == b"a" * 1000 + b"b" * 1000 + bytes(size - 2000)

    asyncio.run(read())


def test_a_body_that_looks_like_heads() -> None:
    """Its bytes are nobody's head, and the next head is parsed by a fresh parser."""
    body = b"GET /x HTTP/1.1\r\nhost: y\r\n\r\n" * 10

    async def scene(client: Client, _: Made) -> None:
        for _ in range(3):
            client.writer.write(head(len(body)) + body)
            answer = await client.take()
            assert answer[2].decode() == hashlib.sha256(body).hexdigest()

    play(Echo(straight=False), scene)
