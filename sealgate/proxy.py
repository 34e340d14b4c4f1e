"""`sealgate proxy`: a plain HTTP/1.1 server on this machine that seals what it gets.

Any Open Inference Protocol client talks to it as to the server itself. Requests are
sealed while they arrive, answers opened while they come, chunk by chunk, and of neither
more than a bounded part is held, however long they are: what one side does not read,
the proxy does not read from the other (back-pressure by the streams). A gateway that
takes no chunked requests gets them whole, within a bound.

What is short is kept while it is sent, so that it can be sent again when a key was
replaced or a clock put right. Content whose end is missing, in either direction, ends
with a broken connection, never as if it were whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import h11

from sealgate.answers import StreamedAnswer
from sealgate.async_client import AsyncClient
from sealgate.errors import ClientError
from sealgate.inbound import (
    BadRequestError,
    Head,
    bodiless,
    forwarded_headers,
    parse_chunk_size,
    parse_head,
    render,
    render_start,
    response_of,
)
from sealgate.peers import is_ours
from sealgate.protocol.bhttp import Response

__all__ = ["Proxy", "ProxyLimits"]

_LINGER_S = 1.0
_LINGER_READS = 64
_PORTION_BYTES = 64 << 10
# What keeping a portion costs beyond its bytes.
_PORTION_BYTES_MORE = 32
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class ProxyLimits:
    """Bounds on what the proxy takes.

    Attributes:
        max_head_bytes: of a request.
        max_body_bytes: of a request.
        kept_body_bytes: of a request, so that it can be sent again.
        max_connections: beyond them, new ones are answered 503.
        max_requests: in work at once; others wait for their turn. As many again of
            those for whom the client lends nothing, so that they hold up nobody else.
        head_timeout_s: for a head to arrive, and for an idle connection to stay.
        body_timeout_s: for the next part of a body to arrive, and for a part of an
            answer to be read.
        drain_s: for requests in work to finish when the proxy stops.
    """

    max_head_bytes: int = 32 << 10
    max_body_bytes: int = 1 << 30
    kept_body_bytes: int = 1 << 20
    max_connections: int = 256
    max_requests: int = 32
    head_timeout_s: float = 60.0
    body_timeout_s: float = 60.0
    drain_s: float = 5.0


class Proxy:
    """Serves connections, with one client for all of them."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        hosts: Set[bytes] | None,
        lend: Callable[[socket.socket], bool] = is_ours,
        limits: ProxyLimits = ProxyLimits(),
    ) -> None:
        """Nothing listens yet.

        Args:
            client: of the server to seal to.
            hosts: values of Host to answer; None answers any.
            lend: whether requests of a connection may use what the client has: its
                certificate, and its token where they have none.
            limits: bounds.
        """
        self._client = client
        self._hosts = hosts
        self._lend = lend
        self._limits = limits
        self._slots = {
            lends: asyncio.Semaphore(limits.max_requests) for lends in (True, False)
        }
        self._lent: WeakKeyDictionary[asyncio.StreamWriter, bool] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._stopping = False

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
            self._accept, sock=listening, limit=self._limits.max_head_bytes
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
            await asyncio.wait(self._busy, timeout=self._limits.drain_s)
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
        crowded = len(self._tasks) >= self._limits.max_connections
        self._tasks.add(task)
        try:
            if crowded:
                error = BadRequestError(503, "too many connections")
                await self._write_whole(writer, None, response_of(error), close=True)
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
            async with asyncio.timeout(self._limits.body_timeout_s):
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
            upload = _Upload(head, reader, self._limits)
            body = await upload.begin()
            async with self._slots[self._lends(writer)]:
                return await self._forward(head, upload, body, writer)
        except ClientError as error:
            await self._write_whole(writer, head, response_of(error), close=True)
            return False

    async def _read_head(self, reader: asyncio.StreamReader) -> Head:
        try:
            async with asyncio.timeout(self._limits.head_timeout_s):
                data = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise BadRequestError(431, "the head is too long") from None
        except asyncio.IncompleteReadError as error:
            if b"\n\n" in error.partial:
                raise BadRequestError(400, "malformed line end") from None
            raise
        return parse_head(data, hosts=self._hosts)

    async def _forward(
        self,
        head: Head,
        upload: _Upload,
        body: bytes | AsyncIterator[bytes],
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Exchange one request; whether another may follow.

        Raises:
            ClientError: before anything was written.
            ConnectionAbortedError: afterwards.
        """
        has_token = any(name == b"authorization" for name, _ in head.headers)
        lends = self._lends(writer)
        try:
            async with self._client.stream(
                head.method.decode("ascii"),
                head.target.decode("ascii"),
                headers=forwarded_headers(head),
                body=body,
                length=head.content_length,
                own_token=lends and not has_token,
                own_certificate=lends,
            ) as answer:
                close = not (head.keep_alive and upload.complete) or self._stopping
                await self._write(writer, head, answer, close=close)
        except ClientError as error:
            if head.connection.our_state is not h11.SEND_RESPONSE:
                # Too late for an answer: the client must see that it is cut short.
                _reset(writer)
                raise ConnectionAbortedError from None
            # A client that is still sending would take a second request for the rest.
            close = not (head.keep_alive and upload.complete) or self._stopping
            await self._write_whole(writer, head, response_of(error), close=close)
        return not close

    def _lends(self, writer: asyncio.StreamWriter) -> bool:
        """Whether a connection may use the client's token, asked once for each."""
        if writer not in self._lent:
            self._lent[writer] = self._lend(writer.get_extra_info("socket"))
        return self._lent[writer]

    async def _write(
        self,
        writer: asyncio.StreamWriter,
        head: Head,
        answer: StreamedAnswer,
        *,
        close: bool,
    ) -> None:
        length = answer.length
        response = Response(answer.status, answer.headers)
        start = render_start(head, response, length=length, close=close)
        await self._send(writer, start)
        if bodiless(head, answer.status):
            return
        chunks = length is None and head.takes_chunks
        async for piece in answer.pieces():
            if chunks:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)  # noqa: PLW2901
            await self._send(writer, piece)
        if chunks:
            await self._send(writer, b"0\r\n\r\n")

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
        async with asyncio.timeout(self._limits.body_timeout_s):
            await writer.drain()


class _Upload:
    """A request's content as it arrives.

    Attributes:
        complete: all of it has arrived.
    """

    def __init__(
        self, head: Head, reader: asyncio.StreamReader, limits: ProxyLimits
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


def _reset(writer: asyncio.StreamWriter) -> None:
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
