"""How the rest of a request's body goes straight to who takes it.

An ASGI server gathers what it has read until the application asks for it. For a large
body that is two copies more than needed, so the connection offers this beside it: each
portion is handed on as the parser cuts it. Of a very large one what remains is not even
parsed, since it is so many bytes: it is read into one buffer, again and again, and
taken from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from uvicorn.protocols.http.flow_control import FlowControl

from sealgate.protocol.bhttp import Body
from service.problems import Problem

__all__ = [
    "DIRECT_BODY",
    "STRAIGHT_BYTES",
    "Connection",
    "DirectBody",
    "Gathered",
    "Straight",
]

# In the scope's ``extensions``, a dictionary whose "rest" is a `DirectBody`.
DIRECT_BODY = "sealgate.direct_body"
# What is read at once: as much as stays in a core's cache until it is taken.
_READ_BYTES = 256 << 10
# Changing how a connection reads, and back, takes as long as parsing so many.
STRAIGHT_BYTES = 1 << 20


class Connection(Protocol):
    """Whose parser can be gone past.

    Attributes:
        flow: pauses its reading.
        left: so many bytes of a body are still to come; 0 where nobody knows.
    """

    transport: asyncio.Transport
    flow: FlowControl
    left: int

    def end_straight(self) -> None:
        """Its protocol reads again; if ``left`` says that more is to come, in vain."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As of `asyncio.BaseProtocol`."""

    def eof_received(self) -> bool | None:
        """As of `asyncio.Protocol`."""

    def pause_writing(self) -> None:
        """As of `asyncio.BaseProtocol`."""

    def resume_writing(self) -> None:
        """As of `asyncio.BaseProtocol`."""


@dataclass
class DirectBody:
    """One request's body.

    Attributes:
        connection: that it comes on.
        take: given each portion as it is parsed, between `begin` and `end`.
        stranger: nobody has proved who asks; said before the answer is sent.
        certificate: thumbprint of the client's, as `service.http.tls` knows it.
    """

    connection: Connection | None = None
    stranger: bool = False
    certificate: str | None = None
    take: Callable[[Body], None] | None = None
    _straight: Straight | None = None

    def begin(self, take: Callable[[Body], None]) -> None:
        """Give each portion of what remains to this, until `end`.

        That all has arrived is told the usual way. To be called between two messages of
        ``receive``, before which nothing can arrive.

        Args:
            take: must not raise, nor keep what it is given.
        """
        self.take = take
        connection = self.connection
        if (
            self._straight is None
            and connection is not None
            and connection.left >= STRAIGHT_BYTES
            and not connection.transport.is_closing()
        ):
            self._straight = Straight(connection, take)

    def end(self) -> None:
        """Nobody takes it any more, and nothing of it is kept for the next request."""
        self.take = None
        straight, self._straight = self._straight, None
        if straight is not None:
            straight.stop()


class Straight(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol while the rest of a body is read."""

    def __init__(self, connection: Connection, take: Callable[[Body], None]) -> None:
        """Read from now on, and nothing of the next message."""
        self._connection = connection
        # Whoever takes it holds the whole message: no longer than it is read.
        self._take: Callable[[Body], None] | None = take
        self._set(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go; who asks writes there before anybody else asks."""
        return _buffer()[: self._connection.left or None]

    def buffer_updated(self, nbytes: int) -> None:
        """So many are there."""
        if self._take is None:  # of a connection that is being closed
            return
        self._connection.left -= nbytes
        self._take(_buffer()[:nbytes])
        if not self._connection.left:
            self.stop()

    def stop(self) -> None:
        """Give the connection back, once."""
        take, self._take = self._take, None
        if take is not None and not self._connection.transport.is_closing():
            self._set(self._connection)  # type: ignore[arg-type]
            self._connection.end_straight()

    def connection_lost(self, exc: Exception | None) -> None:
        """As for the protocol."""
        self._take = None
        self._connection.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """As for the protocol."""
        return self._connection.eof_received()

    def pause_writing(self) -> None:
        """As for the protocol."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """As for the protocol."""
        self._connection.resume_writing()

    def _set(self, protocol: asyncio.BaseProtocol) -> None:
        flow = self._connection.flow
        # How a transport reads is decided when it begins to.
        paused = flow.read_paused
        flow.pause_reading()
        self._connection.transport.set_protocol(protocol)
        if not paused:
            flow.resume_reading()


@cache
def _buffer() -> memoryview:
    """One for all connections: it holds bytes for no longer than a call takes.

    Only sealed bodies come this way, so what it holds is ciphertext.
    """
    return memoryview(bytearray(_READ_BYTES))


class Gathered:
    """Takes a body of a known length. Its memory is had when the first bytes are."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._end = 0
        self._buffer = memoryview(b"")

    @property
    def content(self) -> memoryview:
        """What has been taken."""
        return self._buffer[: self._end]

    def take(self, data: bytes) -> None:
        """Take the next bytes, which HTTP keeps within the declared length."""
        if not self._end:
            # Not zeroed: only what has been written is ever read.
            self._buffer = np.empty(self._size, np.uint8).data
        begin, self._end = self._end, self._end + len(data)
        if self._end > self._size:
            raise Problem("body-too-large", "longer than its length")
        self._buffer[begin : self._end] = data
