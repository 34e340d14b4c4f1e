"""A guard on a loop of its own, and clients whose heads it knows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from security.settings.service import ServiceSettings
from service.guard import Guard
from service.http.connections import bounded_protocol
from tests.support.rooms import Rooms

# What no two requests have in common.
OWN = {"time_us", "request_id", "latency_us", "seq", "prev", "hash"}
OWN_FIELDS = {"date", "x-request-id", "ratelimit", "sealgate-receipt"}


class Watched(Guard):
    """Knows how many requests went the ordinary way, or became tasks."""

    ordinary = tasks = 0

    def answer(self, *arguments: Any) -> Any:
        self.ordinary += 1
        return super().answer(*arguments)

    def go_on(self, *arguments: Any) -> Any:
        self.tasks += 1
        return super().go_on(*arguments)


class Client:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer

    async def take(self) -> tuple[int, dict[str, str], bytes]:
        status = int((await self.reader.readline()).split()[1])
        fields = {}
        while line := (await self.reader.readline()).decode().strip():
            name, _, value = line.partition(": ")
            fields[name] = value
        content = await self.reader.readexactly(int(fields["content-length"]))
        return status, fields, content

    async def ask(self, message: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(message)
        return await self.take()


class House:
    """A server, its guard, and connections to it."""

    def __init__(self, rooms: Rooms, **bounds: Any) -> None:
        settings = ServiceSettings(**bounds)

        async def inner(*_: object) -> None:
            raise AssertionError

        self.rooms = rooms
        self.guard = Watched(inner, rooms.routes, rooms.gateway, settings)
        self.protocol: Any = bounded_protocol(
            settings, rooms.routes.metrics, self.guard
        )
        self._stack = AsyncExitStack()
        self.address = ("127.0.0.1", 0)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[House]:
        config = Config(self.guard, log_level="error", lifespan="off")
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: self.protocol(config=config, server_state=state, app_state={}),
            "127.0.0.1",
            0,
        )
        self.address = server.sockets[0].getsockname()
        async with self._stack:
            yield self
            # Nothing is kept that was taken.
            intake = self.guard._intake
            assert (intake.in_work, intake.held_bytes) == (0, 0)
        server.close()

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection(*self.address))
        self._stack.callback(client.writer.close)
        return client

    async def known(self, message: bytes) -> Client:
        """A connection whose next such message has a known head."""
        client = await self.connect()
        await client.ask(message)
        return client

    async def side_by_side(
        self, client: Client, *messages: bytes
    ) -> list[tuple[int, dict[str, str], bytes]]:
        """Their answers, once none of them has taken the ordinary way.

        A budget that has to be reserved anew, as in each minute, takes that.
        """
        for _ in range(10):
            self.guard.ordinary = 0
            answers = [await client.ask(message) for message in messages]
            if not self.guard.ordinary:
                return answers
        raise AssertionError("all went the ordinary way")

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.rooms.records.splitlines()]


def play(
    rooms: Rooms, scene: Callable[[House], Awaitable[None]], **bounds: Any
) -> None:
    async def run() -> None:
        async with House(rooms, **bounds).open() as house:
            await scene(house)

    asyncio.run(run())
