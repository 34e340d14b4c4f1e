"""Sealed bodies that are read past the parser, and of which the end never comes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealgate.protocol.ohttp_stream import RequestReceiver
from service.http.protocol import BoundedProtocol
from tests.support.rooms import Rooms, sealed, wire
from tests.support.side_by_side import Client, House, play

SIZE = 3 << 20
LAST = 1000
BOUNDS = {"max_body_bytes": SIZE, "body_timeout_s": 0.3}


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return wire(tmp_path, max_body_bytes=SIZE)


def parts(rooms: Rooms) -> tuple[bytes, bytes]:
    """A large sealed request of nothing, and its last bytes."""
    body, _ = sealed(rooms.gateway.keys, bytes(SIZE - 100))
    lines = (
        "POST /.well-known/ohttp-gateway HTTP/1.1",
        "host: x",
        "content-type: message/ohttp-req",
        f"content-length: {len(body)}",
    )
    head = "\r\n".join([*lines, "", ""]).encode()
    return head + body[:-LAST], body[-LAST:]


def receivers() -> int:
    # By type: torch has objects that warn whoever asks for their class.
    return sum(type(one) is RequestReceiver for one in gc.get_objects())


def is_closed() -> bool:
    """Whether the server has no connection any more."""
    found = [one for one in gc.get_objects() if issubclass(type(one), BoundedProtocol)]
    return all(one.parser is None for one in found)


async def leave(client: Client) -> None:
    client.writer.transport.abort()
    await until(is_closed)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110  (it asks the collector)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("leaves", [True, False])
def test_what_never_came_whole_is_not_kept(rooms: Rooms, leaves: bool) -> None:
    """Its memory is had again at once, whoever leaves and whoever is too slow.

    With the collector switched off, and the connection of the slow one still open.
    """
    first, _ = parts(rooms)

    async def scene(house: House) -> None:
        client = await house.connect()
        gc.collect()
        gc.disable()
        try:
            client.writer.write(first)
            await until(lambda: receivers() == 1)
            if leaves:
                await leave(client)
            else:
                assert (await client.take())[0] == 408
            await until(lambda: not receivers())
        finally:
            gc.enable()
        await leave(client)

    play(rooms, scene, **BOUNDS)


def test_nothing_is_kept_of_a_body_that_cannot_be_opened(rooms: Rooms) -> None:
    """Nor the request itself, without the collector: an error has a traceback."""
    request = rooms.gateway.begin(SIZE)
    data = bytearray(1000)
    request.feed(memoryview(data))
    data.clear()  # fails as long as anybody sees it
    kept = weakref.ref(request)
    gc.disable()
    try:
        del request
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("left", [LAST, SIZE // 2])
def test_nothing_is_kept_of_a_body_that_nobody_asked_for(
    rooms: Rooms, left: int
) -> None:
    """Its sender is refused, and has some time to close."""
    size = left + 200_000
    lines = ("POST /v2/models/toy/infer HTTP/1.1", "host: x", f"content-length: {size}")
    made: list[Any] = []

    async def scene(house: House) -> None:
        class Known(house.protocol):  # type: ignore[misc]
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                made.append(self)

        house.protocol = Known
        client = await house.connect()
        client.writer.write("\r\n".join([*lines, "", ""]).encode() + bytes(200_000))
        assert (await client.take())[0] in (401, 403)
        assert not made[0].transport.is_closing()
        assert not made[0]._rest.early
        assert not made[0].cycle.body
        await leave(client)

    play(rooms, scene, **BOUNDS)


def test_many_who_come_at_once_have_no_more_room(rooms: Rooms) -> None:
    """Each makes room by another one, though none is gone before the turn ends."""
    made: list[BoundedProtocol] = []

    async def scene(house: House) -> None:
        class Known(house.protocol):  # type: ignore[misc]
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                made.append(self)

        house.protocol = Known
        with contextlib.ExitStack() as stack:
            for _ in range(40):  # the loop accepts them when this is done
                stack.enter_context(socket.create_connection(house.address))
            await until(lambda: len(made) == 40)
            await until(lambda: len(made[0].connections) <= 8)
            # Those who came last have stayed.
            assert made[0].connections == set(made[-8:])
        await until(is_closed)

    play(rooms, scene, max_connections=8)


def test_nothing_is_gathered_behind_a_body_that_was_given_up(rooms: Rooms) -> None:
    """While its answer cannot be sent, since the client takes nothing."""
    first, rest = parts(rooms)
    made: list[Any] = []

    async def scene(house: House) -> None:
        class Stuck(house.protocol):  # type: ignore[misc]
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                made.append(self)
                self.pause_writing()

        house.protocol = Stuck
        client = await house.connect()
        client.writer.write(first)
        await until(lambda: bool(made) and made[0].left == len(rest))
        await until(lambda: not house.guard._intake.readers)
        client.writer.write(rest + bytes(32 << 20))
        await asyncio.sleep(0.5)
        assert len(made[0]._unread) <= 1 << 20
        made[0].resume_writing()
        assert (await client.take())[0] == 408
        await leave(client)

    play(rooms, scene, **BOUNDS)
