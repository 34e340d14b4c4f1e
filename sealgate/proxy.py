"""`sealgate proxy`: a plain HTTP/1.1 server on this machine that seals what it gets.

Any Open Inference Protocol client talks to it as to the server itself. Each request is
read within bounds, sealed, sent on, and its answer opened and given back; what the
client does not read, the proxy does not read either (back-pressure by the streams).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Set
from dataclasses import dataclass

from sealgate.async_client import AsyncClient
from sealgate.errors import ClientError
from sealgate.inbound import (
    BadRequestError,
    Head,
    forwarded_headers,
    parse_chunk_size,
    parse_head,
    render,
    response_of,
)
from sealgate.protocol.bhttp import Response

__all__ = ["Proxy", "ProxyLimits"]

_LINGER_S = 1.0
_LINGER_READS = 64
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class ProxyLimits:
    """Bounds on what the proxy takes.

    Attributes:
        max_head_bytes: of a request.
        max_body_bytes: of a request.
        max_connections: beyond them, new ones are answered 503.
        max_requests: in work at once; others wait for their turn.
        head_timeout_s: for a head to arrive, and for an idle connection to stay.
        body_timeout_s: for a body to arrive, and for an answer to be read.
        drain_s: for requests in work to finish when the proxy stops.
    """

    max_head_bytes: int = 32 << 10
    max_body_bytes: int = 64 << 20
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
        lend_token: bool = True,
        limits: ProxyLimits = ProxyLimits(),
    ) -> None:
        """Nothing listens yet.

        Args:
            client: of the server to seal to.
            hosts: values of Host to answer; None answers any.
            lend_token: use the client's token for requests without one.
            limits: bounds.
        """
        self._client = client
        self._hosts = hosts
        self._lend_token = lend_token
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.max_requests)
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def serve(
        self,
        host: str,
        port: int,
        *,
        stop: asyncio.Event,
        started: Callable[[int], None],
    ) -> None:
        """Listen until ``stop``, then finish what is in work.

        Args:
            host: address to bind to.
            port: 0 takes a free one.
            stop: ends it.
            started: told the port when it listens.

        Raises:
            OSError: the address cannot be bound.
        """
        server = await asyncio.start_server(
            self._accept, host, port, limit=self._limits.max_head_bytes
        )
        async with server:
            started(server.sockets[0].getsockname()[1])
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
                await self._write(writer, None, response_of(error), close=True)
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
            self._tasks.discard(task)
            self._busy.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        task: asyncio.Task[None],
    ) -> bool:
        """Serve one request; whether another may follow."""
        head: Head | None = None
        close = True
        try:
            head = await self._read_head(reader)
            self._busy.add(task)
            body = await self._read_body(head, reader, writer)
            close = not head.keep_alive or self._stopping
            async with self._slots:
                response = await self._forward(head, body)
        except ClientError as error:
            response = response_of(error)
        await self._write(writer, head, response, close=close)
        return not close

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

    async def _read_body(
        self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        size = head.content_length
        if size is not None and size > self._limits.max_body_bytes:
            raise BadRequestError(413, "the body is too large")
        if size == 0:
            return b""
        if head.expects_continue:
            writer.write(_CONTINUE)
        async with asyncio.timeout(self._limits.body_timeout_s):
            if size is not None:
                return await reader.readexactly(size)
            return await self._read_chunks(reader)

    async def _read_chunks(self, reader: asyncio.StreamReader) -> bytes:
        """A chunked body (RFC 9112, section 7.1), without extensions and trailers."""
        chunks: list[bytes] = []
        left = self._limits.max_body_bytes
        while size := parse_chunk_size(await _read_line(reader)):
            left -= size + 32  # what keeping a chunk costs beyond its bytes
            if left < 0:
                raise BadRequestError(413, "the body is too large")
            chunks.append(await reader.readexactly(size))
            if await reader.readexactly(2) != b"\r\n":
                raise BadRequestError(400, "malformed chunk")
        if await reader.readexactly(2) != b"\r\n":
            raise BadRequestError(400, "trailers are not forwarded")
        return b"".join(chunks)

    async def _forward(self, head: Head, body: bytes) -> Response:
        has_token = any(name == b"authorization" for name, _ in head.headers)
        return await self._client.forward(
            head.method.decode("ascii"),
            head.target.decode("ascii"),
            headers=forwarded_headers(head),
            body=body,
            own_token=self._lend_token and not has_token,
        )

    async def _write(
        self,
        writer: asyncio.StreamWriter,
        head: Head | None,
        response: Response,
        *,
        close: bool,
    ) -> None:
        async with asyncio.timeout(self._limits.body_timeout_s):
            for piece in render(head, response, close=close):
                writer.write(piece)
                await writer.drain()


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
