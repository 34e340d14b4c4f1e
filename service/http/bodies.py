"""The bodies of requests, within bounds, however they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sealgate.protocol.bhttp import Body, Request
from security.settings.service import ServiceSettings
from service.http.direct import DirectBody, Gathered
from service.http.exchange import Reply
from service.http.intake import Visit
from service.problems import Problem

__all__ = ["LARGE_BYTES", "AnyBody", "ArrivingBody", "ClientGone", "WholeBody"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# Bodies from here on are not gathered first: each copy of one counts.
LARGE_BYTES = 64 << 10
# An answer that takes longer is not made for a client that has left.
_WATCH_AFTER_S = 0.1


class ClientGone(Exception):  # noqa: N818  (not an error: there is nobody to answer)
    """The client left before its request was complete."""


class ArrivingBody:
    """A request body, counted while it is read.

    Attributes:
        visit: of the request.
        declared: its length, where the client said one; nothing longer will arrive.
        complete: all of it has been read, so that the connection can be used again.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        visit: Visit,
        settings: ServiceSettings,
        direct: DirectBody | None,
    ) -> None:
        self._receive = receive
        self.visit = visit
        self._max_bytes = settings.max_body_bytes
        self._timeout_s = settings.body_timeout_s
        self._direct = direct
        self.declared = _declared_length(scope)
        self.complete = self.declared == 0
        self._watch: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._gone = False

    def tell(self, reply: Reply) -> None:
        """Tell the connection what is to be known before the answer is sent."""
        if self._direct is not None:
            self._direct.stranger = reply.stranger

    def check_gone(self) -> None:
        """Of a task that was cancelled: say so if it was because the client left.

        Raises:
            ClientGone: it did.
        """
        task = asyncio.current_task()
        if self._gone and task is not None:
            task.uncancel()
            raise ClientGone

    def release(self) -> None:
        """There is an answer: the client may leave."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _watch_later(self) -> None:
        """Notice a client that leaves while its answer is being made, and stop that.

        Nothing but the end of the connection can come after a whole body, so waiting
        for it takes no part of another request. Short work is not worth the wait.
        """
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        async def wait() -> None:
            message = await self._receive()
            if message["type"] == "http.disconnect" and task is not None:
                self._gone = True
                task.cancel()

        def begin() -> None:
            self._watch = loop.create_task(wait())

        self._watch = loop.call_later(_WATCH_AFTER_S, begin)

    async def read(self) -> Body:
        """Read it whole.

        Raises:
            Problem: too large, or too slow.
            ClientGone: the client left.
        """
        if self.declared is None or self.declared < LARGE_BYTES:
            # One buffer that grows: a list that is joined is a second copy.
            grown = bytearray()
            await self.read_into(grown.extend)
            return grown
        gathered = Gathered(self.declared)
        await self.read_into(gathered.take)
        return gathered.content

    async def read_request(self, head: Request) -> Request:
        """The request whose head is known, with this content."""
        content = await self.read()
        return Request(
            head.method, head.scheme, head.authority, head.path, head.headers, content
        )

    async def read_into(self, take: Callable[[Body], None]) -> None:
        """Read it in the portions in which it arrives.

        Raises:
            SealgateError: as `read`, and what ``take`` raises.
            ClientGone: the client left.
        """
        if self.declared is not None and self.declared > self._max_bytes:
            raise _too_large(self._max_bytes)
        if self.complete:  # it has none
            await self._read(take)
            return
        async with self.visit.reading(self.declared, self._timeout_s):
            await self._read(take)

    async def read_straight_into(self, take: Callable[[Body], None]) -> None:
        """As `read_into`, with nothing in between where the connection offers that.

        Args:
            take: must not raise, nor keep what it is given; what HTTP lets through it
                bounds by ``declared``.
        """
        direct = self._direct
        if direct is None:
            await self.read_into(take)
            return

        def counted(data: Body) -> None:
            # Its memory is accounted for; this tells who is slow.
            self.visit.received += len(data)
            take(data)

        def take_first(data: Body) -> None:
            take(data)
            # What ``receive`` has by now it gives at once: nothing overtakes it.
            direct.take = counted

        try:
            await self.read_into(take_first)
        finally:
            direct.take = None

    async def _read(self, take: Callable[[Body], None]) -> None:
        early = b"" if self._direct is None else self._direct.take_early()
        size = self._count(0, early)
        take(early)
        del early  # all that was read with it would stay
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size = self._count(size, chunk)
            take(chunk)
            if not message.get("more_body", False):
                self.complete = True
                self._watch_later()
                return
            del message, chunk

    def _count(self, size: int, chunk: Body) -> int:
        size += len(chunk)
        if size > self._max_bytes:
            raise _too_large(self._max_bytes)
        self.visit.take(len(chunk))
        return size


class WholeBody:
    """A request body that was there with its head: nothing of it is waited for.

    Attributes:
        visit: of the request.
        declared: its length.
        complete: all of it has been read.
    """

    complete = True

    def __init__(
        self, request: Request, visit: Visit, settings: ServiceSettings
    ) -> None:
        self._request = request
        self.visit = visit
        self._max_bytes = settings.max_body_bytes
        self.declared = len(request.body)

    def check_gone(self) -> None:
        """Whoever cancels knows why: nobody has to be told."""

    def release(self) -> None:
        """Nothing waits for the client to leave."""

    async def read(self) -> Body:
        """As `ArrivingBody.read`."""
        return (await self.read_request(self._request)).body

    async def read_request(self, head: Request) -> Request:
        """As `ArrivingBody.read_request`: the head has its content already."""
        if self.declared > self._max_bytes:
            raise _too_large(self._max_bytes)
        self.visit.hold(self.declared)
        return head

    async def read_into(self, take: Callable[[Body], None]) -> None:
        """As `ArrivingBody.read_into`."""
        take(bytes(await self.read()))

    read_straight_into = read_into


AnyBody = ArrivingBody | WholeBody


def _declared_length(scope: Scope) -> int | None:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    if len(values) == 1 and values[0].isdigit() and len(values[0]) < 20:
        return int(values[0])
    return None if chunked or values else 0


def _too_large(max_bytes: int) -> Problem:
    return Problem("body-too-large", f"at most {max_bytes} bytes allowed")
