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
import socket
from collections.abc import AsyncIterator, Callable, Set
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import h11

from sealgate.answers import StreamedAnswer
from sealgate.async_client import AsyncClient
from sealgate.errors import ClientError
from sealgate.inbound import (
    Head,
    bodiless,
    forwarded_headers,
    render_start,
    response_of,
)
from sealgate.listener import Listener, ListenerLimits, Upload, reset
from sealgate.peers import is_ours
from sealgate.protocol.bhttp import Response

__all__ = ["Proxy", "ProxyLimits"]


@dataclass(frozen=True)
class ProxyLimits(ListenerLimits):
    """Bounds on what the proxy takes: a listener's, and one more.

    Attributes:
        max_requests: in work at once; others wait for their turn. As many again of
            those for whom the client lends nothing, so that they hold up nobody else;
            and likewise of connections.
    """

    max_requests: int = 32


class Proxy(Listener):
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
        super().__init__(hosts=hosts, limits=limits)
        self._client = client
        self._lend = lend
        self._slots = {
            lends: asyncio.Semaphore(limits.max_requests) for lends in (True, False)
        }
        self._lent: WeakKeyDictionary[asyncio.StreamWriter, bool] = WeakKeyDictionary()

    def _has_room(self, writer: asyncio.StreamWriter) -> bool:
        lends = self._lends(writer)
        alike = [
            known
            for known, lent in self._lent.items()
            if lent == lends and not known.is_closing()
        ]
        return len(alike) <= self._bounds.max_connections

    async def _answer(
        self, head: Head, upload: Upload, writer: asyncio.StreamWriter
    ) -> bool:
        body = await upload.begin()
        async with self._slots[self._lends(writer)]:
            return await self._forward(head, upload, body, writer)

    async def _forward(
        self,
        head: Head,
        upload: Upload,
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
                reset(writer)
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
