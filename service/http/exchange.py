"""A request that came whole, answered on its connection without ASGI in between.

Most requests are small: all of their bytes are there when the parser has seen their
head. For those nothing has to be waited for, so that an event, a queue of messages and
two timers would only cost time. Any other request goes the ordinary way.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from httptools import HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sealgate.protocol.bhttp import Headers, Request, Response
from service.http.heads import Head

__all__ = [
    "Answer",
    "Answerer",
    "Connection",
    "Cycle",
    "Exchange",
    "Reply",
    "StreamedResponse",
    "last_message",
    "plain_method",
]

_log = logging.getLogger(__name__)

_METHODS = frozenset({b"GET", b"POST"})
# Any other target is uvicorn's to take apart.
_PATH = re.compile(rb"/[A-Za-z0-9/._~%-]*(?:\?[!-~]*)?")

# A body from here on is not copied to stand behind its head.
_JOINED_BYTES = 16 << 10
_FAILURE = (
    b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)


@dataclass(frozen=True)
class StreamedResponse:
    """An outer response whose content is made while it is sent."""

    status: int
    headers: Headers
    parts: Iterator[bytes]


Answer = Response | StreamedResponse


@dataclass(slots=True)
class Reply:
    """An answer, and all of its header fields.

    Attributes:
        answer: its status and content.
        headers: of the message; ``close`` is among them.
        close: no other request can follow.
        stranger: somebody was refused who did not prove who asks.
        vouched: somebody has proved it.
    """

    answer: Answer
    headers: list[tuple[bytes, bytes]]
    close: bool = False
    stranger: bool = False
    vouched: bool = False


class Answerer(Protocol):
    """Answers whole requests; `service.guard.Guard` does."""

    def answer(
        self, request: Request, certificate: str | None = None
    ) -> Coroutine[Any, Any, Reply]:
        """Answer one; it is cancelled when the client leaves.

        Args:
            request: from anyone.
            certificate: thumbprint of the client's, as `service.http.tls` knows it.
        """

    def take(self, connection: Connection, head: Head, body: bytes) -> Cycle | None:
        """Answer a request with a known head in this turn, beside others; or None."""


class Connection(Protocol):
    """What an exchange needs of its connection.

    Attributes:
        certificate: thumbprint of its client's.
        scheme: "http" or "https".
        default_headers: what uvicorn adds to each answer.
    """

    transport: asyncio.Transport
    flow: FlowControl
    certificate: str | None
    scheme: Any
    default_headers: list[tuple[bytes, bytes]]

    def begin_exchange(
        self,
        answer: Coroutine[Any, Any, Reply],
        *,
        keep_alive: bool,
        disconnected: bool = False,
    ) -> None:
        """Write this answer when it is there."""

    def end_exchange(self, task: asyncio.Task[None] | None) -> None:
        """The answer has been written, if it could be."""


class Cycle:
    """One request on its connection, in the place of uvicorn's cycle.

    Attributes:
        keep_alive: whether another request may follow.
        response_complete: whether the answer was written.
        disconnected: set by uvicorn when the connection is lost.
        stranger, vouched: as of the `Reply`.
        message_event: what uvicorn tells of that; here, this object.
    """

    __slots__ = (
        "_connection", "_default_headers", "disconnected", "keep_alive",
        "response_complete", "stranger", "vouched",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        *,
        keep_alive: bool,
        default_headers: list[tuple[bytes, bytes]],
    ) -> None:
        self._connection = connection
        self._default_headers = default_headers
        self.keep_alive = keep_alive
        self.response_complete = self.disconnected = False
        self.stranger = self.vouched = False

    @property
    def message_event(self) -> Cycle:
        """As the attribute says; one that held this object itself would keep it."""
        return self

    def set(self) -> None:
        """The connection is lost."""

    def write(self, reply: Reply) -> None:
        """Write an answer that is there whole."""
        answer, transport = reply.answer, self._connection.transport
        head = self._head(reply)
        if isinstance(answer, StreamedResponse):
            raise TypeError("a stream is written by an exchange")
        if len(answer.body) < _JOINED_BYTES:
            transport.write(head + answer.body)
        else:
            transport.writelines((head, answer.body))
        if not self.keep_alive:
            transport.close()

    def fail(self) -> None:
        """Tell the client that there is no answer, whatever the reason."""
        if not self.disconnected:
            self._connection.transport.write(_FAILURE)
            self._connection.transport.close()

    def _head(self, reply: Reply) -> bytes:
        fields = self._default_headers + reply.headers
        if isinstance(reply.answer, StreamedResponse):
            fields.append((b"transfer-encoding", b"chunked"))
        if reply.close:
            self.keep_alive = False
        elif not self.keep_alive:
            fields.append((b"connection", b"close"))
        return _head(reply.answer.status, fields)


class Exchange(Cycle):
    """A request that is answered by a task of its own."""

    __slots__ = ("_answer", "_begun", "task")

    def __init__(
        self,
        connection: Connection,
        answer: Coroutine[Any, Any, Reply],
        *,
        keep_alive: bool,
        default_headers: list[tuple[bytes, bytes]],
    ) -> None:
        super().__init__(
            connection, keep_alive=keep_alive, default_headers=default_headers
        )
        self._answer = answer
        self._begun = False
        self.task: asyncio.Task[None] | None = None

    def set(self) -> None:
        """The connection is lost: stop what is made for nobody."""
        if self.task is not None and self._begun and not self.response_complete:
            self.task.cancel()

    async def run(self) -> None:
        """Make the answer and write it."""
        self._begun = True
        try:
            reply = await self._answer
            self.stranger, self.vouched = reply.stranger, reply.vouched
            if isinstance(reply.answer, StreamedResponse):
                await self._stream(self._head(reply), reply.answer.parts)
            elif not self.disconnected:
                self.write(reply)
        except asyncio.CancelledError:
            # Nobody asks for this task; that it was stopped is all there is to say.
            self.fail()
        except Exception:  # noqa: BLE001  (whatever it was, the client is told)
            _log.exception("a request was not answered")
            self.fail()
        finally:
            self.response_complete = True
            self._connection.end_exchange(self.task)

    async def _stream(self, head: bytes, parts: Iterator[bytes]) -> None:
        connection = self._connection
        if self.disconnected:
            return
        connection.transport.write(head)
        for part in parts:
            if connection.flow.write_paused:
                await connection.flow.drain()
            if self.disconnected:
                return
            if part:  # an empty one would be the end
                connection.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        connection.transport.write(b"0\r\n\r\n")
        if not self.keep_alive:
            connection.transport.close()


def plain_method(
    parser: HttpRequestParser, target: bytes, version: str
) -> bytes | None:
    """The method of a request that needs no ASGI; None of any other."""
    method: bytes = parser.get_method()
    plain = (
        method in _METHODS
        and _PATH.fullmatch(target) is not None
        and not parser.should_upgrade()
        and version == "1.1"
    )
    return method if plain else None


def last_message(response: Response) -> bytes:
    """A response after which the connection is closed."""
    length = b"%d" % len(response.body)
    fields = [(b"content-length", length), (b"connection", b"close")]
    return _head(response.status, [*response.headers, *fields]) + response.body


def _head(status: int, fields: list[tuple[bytes, bytes]]) -> bytes:
    """A response's head.

    Raises:
        ValueError: a field holds the end of a line. None of ours does, and what a
            caller made up is in none of them; should that ever change, it ends here.
    """
    text = b"\r\n".join(map(b": ".join, fields))
    breaks = len(fields) - 1
    if text.count(b"\n") != breaks or text.count(b"\r") != breaks:
        raise ValueError("a line break in a header field")
    return b"%b%b\r\n\r\n" % (STATUS_LINE[status], text)
