"""A small HTTP/1.1 server: connections, heads and bodies, all bounded, in asyncio.

The sealing proxy listens with it, and a witness of transparency logs. Both answer
strangers: heads and bodies have sizes and times, connections a number, and a client
that does not read its answer is cut off. What a head may be is `sealgate.inbound`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from dataclasses import dataclass

from sealgate.errors import ClientError
from sealgate.inbound import (
    BadRequestError,
    Head,
    parse_chunk_size,
    parse_head,
    render,
    response_of,
)
from sealgate.protocol.bhttp import Response

__all__ = ["Listener", "ListenerLimits", "Upload", "reset"]

_LINGER_S = 1.0
_LINGER_READS = 64
_PORTION_BYTES = 64 << 10
# What keeping a portion costs beyond its bytes.
_PORTION_BYTES_MORE = 32
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class ListenerLimits:
    """Bounds on what a listener takes.

    Attributes:
        max_head_bytes: of a request.
        max_body_bytes: of a request.
        kept_body_bytes: of a request, which the listener may hold as a whole.
        max_connections: beyond them, new ones are answered 503.
        head_timeout_s: for a head to arrive, and for an idle connection to stay.
        body_timeout_s: for the next part of a body to arrive, and for a part of an
            answer to be read.
        drain_s: for requests in work to finish when the listener stops.
    """

    max_head_bytes: int = 32 << 10
    max_body_bytes: int = 1 << 30
    kept_body_bytes: int = 1 << 20
    max_connections: int = 256
    head_timeout_s: float = 60.0
    body_timeout_s: float = 60.0
    drain_s: float = 5.0


class Listener(ABC):
    """Serves connections; a subclass answers their requests."""

    def __init__(self, *, hosts: Set[bytes] | None, limits: ListenerLimits) -> None:
        """Nothing listens yet.

        Args:
            hosts: values of Host to answer; None answers any.
            limits: bounds.
        """
        self._hosts = hosts
        self._bounds = limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._stopping = False

    @abstractmethod
    async def _answer(
        self,
        head: Head,
        upload: Upload,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Read a request's content, write an answer; whether another may follow.

        Raises:
            ClientError: before anything was written: it becomes the answer.
        """

    def _refusal(self, error: ClientError) -> Response:
        """The answer that an error becomes."""
        return response_of(error)

    def _has_room(self, writer: asyncio.StreamWriter) -> bool:
        """Whether a new connection may stay."""
        return len(self._tasks) < self._bounds.max_connections

    async def serve(
        self,
        listening: socket.socket,
        *,
        stop: asyncio.Event,
        started: Callable[[], None],
    ) -> None:
        """Listen until ``stop``, then finish what is in work.

        Args:
            listening: bound, of TCP or a Unix socket; closed at the end.
            stop: ends it.
            started: called when it listens.
        """
        unix = listening.family == socket.AF_UNIX
        start = asyncio.start_unix_server if unix else asyncio.start_server
        server = await start(
            self._accept, sock=listening, limit=self._bounds.max_head_bytes
        )
        async with server:
            started()
            await stop.wait()
            self._stopping = True
            server.close()
            await self._drain()

    async def _drain(self) -> None:
        for task in self._tasks - self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy, timeout=self._bounds.drain_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        if task is None:  # never, inside a coroutine
            return
        crowded = not self._has_room(writer)
        self._tasks.add(task)
        try:
            if crowded:
                error = BadRequestError(503, "too many connections")
                await self._write_whole(writer, None, self._refusal(error), close=True)
            else:
                while await self._one(reader, writer, task):
                    self._busy.discard(task)
            await _linger(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client left, or takes too long: there is nobody to tell
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self._busy.discard(task)
            await self._close(writer)
            self._tasks.discard(task)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        """Close, and wait no longer for what was written to be read than before."""
        writer.close()
        with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(self._bounds.body_timeout_s):
                await writer.wait_closed()
        writer.transport.abort()

    async def _one(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        task: asyncio.Task[None],
    ) -> bool:
        """Serve one request; whether another may follow."""
        head: Head | None = None
        try:
            head = await self._read_head(reader)
            self._busy.add(task)
            if head.expects_continue and head.content_length != 0:
                writer.write(_CONTINUE)
            upload = Upload(head, reader, self._bounds)
            return await self._answer(head, upload, writer)
        except ClientError as error:
            await self._write_whole(writer, head, self._refusal(error), close=True)
            return False

    async def _read_head(self, reader: asyncio.StreamReader) -> Head:
        try:
            async with asyncio.timeout(self._bounds.head_timeout_s):
                data = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise BadRequestError(431, "the head is too long") from None
        except asyncio.IncompleteReadError as error:
            if b"\n\n" in error.partial:
                raise BadRequestError(400, "malformed line end") from None
            raise
        return parse_head(data, hosts=self._hosts)

    async def _write_whole(
        self,
        writer: asyncio.StreamWriter,
        head: Head | None,
        response: Response,
        *,
        close: bool,
    ) -> None:
        for piece in render(head, response, close=close):
            await self._send(writer, piece)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Write, and wait until the client has read most of what was written."""
        writer.write(data)
        async with asyncio.timeout(self._bounds.body_timeout_s):
            await writer.drain()


class Upload:
    """A request's content as it arrives.

    Attributes:
        complete: all of it has arrived.
    """

    def __init__(
        self, head: Head, reader: asyncio.StreamReader, limits: ListenerLimits
    ) -> None:
        self._head = head
        self._reader = reader
        self._limits = limits
        self.complete = head.content_length == 0

    async def begin(self) -> bytes | AsyncIterator[bytes]:
        """The content if it is short; otherwise its portions, the first ones read.

        Raises:
            BadRequestError: it is too large, or not what the head says.
        """
        size = self._head.content_length
        if size is not None and size > self._limits.max_body_bytes:
            raise BadRequestError(413, "the body is too large")
        portions = self._portions()
        kept: list[bytes] = []
        left = self._limits.kept_body_bytes
        async for portion in portions:
            kept.append(portion)
            left -= len(portion) + _PORTION_BYTES_MORE
            if left < 0:
                return _chained(kept, portions)
        return b"".join(kept)

    async def _portions(self) -> AsyncIterator[bytes]:
        size = self._head.content_length
        if size is None:
            async for portion in self._chunks():
                yield portion
        else:
            async for portion in self._exactly(size):
                yield portion
        self.complete = True

    async def _chunks(self) -> AsyncIterator[bytes]:
        """A chunked body (RFC 9112, section 7.1), without extensions and trailers."""
        left = self._limits.max_body_bytes
        while size := parse_chunk_size(await self._timed(_read_line(self._reader))):
            left -= size
            if left < 0:
                raise BadRequestError(413, "the body is too large")
            async for portion in self._exactly(size):
                yield portion
            if await self._timed(self._reader.readexactly(2)) != b"\r\n":
                raise BadRequestError(400, "malformed chunk")
        if await self._timed(self._reader.readexactly(2)) != b"\r\n":
            raise BadRequestError(400, "trailers are not forwarded")

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size:
            portion = await self._timed(self._reader.read(min(size, _PORTION_BYTES)))
            if not portion:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(portion)
            yield portion

    async def _timed(self, read: Awaitable[bytes]) -> bytes:
        async with asyncio.timeout(self._limits.body_timeout_s):
            return await read


async def _chained(
    kept: list[bytes], rest: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    while kept:
        yield kept.pop(0)
    async for portion in rest:
        yield portion


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that nobody takes it for the proper end of an answer."""
    endpoint = writer.get_extra_info("socket")
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the client read its answer: closing on unread bytes would take it away."""
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            for _ in range(_LINGER_READS):
                if not await reader.read(1 << 16):
                    return


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise BadRequestError(400, "malformed chunk") from None
