"""How a request's body goes straight to who takes it.

An ASGI server gathers what it has read until the application asks for it. For a large
body that is two copies more than needed, so the connection offers this beside it: what
came with the head is kept for whoever reads the body, and each portion that follows is
handed on where it lies. All connections are read into one buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from sealgate.protocol.bhttp import Body
from service.problems import Problem

__all__ = [
    "DIRECT_BODY",
    "DIRECT_BYTES",
    "Connection",
    "DirectBody",
    "Gathered",
    "Reader",
]

# In the scope's ``extensions``, a dictionary whose "rest" is a `DirectBody`.
DIRECT_BODY = "sealgate.direct_body"
# A body of which so much is still to come is not read before somebody asks for it:
# ASGI would gather it meanwhile. Pausing and reading on are two system calls.
DIRECT_BYTES = 64 << 10
# What is read at once: as much as stays in a core's cache until it is taken.
_READ_BYTES = 256 << 10


class Connection(Protocol):
    """What a `Reader` reads for."""

    def arrived(self, data: memoryview) -> None:
        """So much was read; it is gone when this returns."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As of `asyncio.BaseProtocol`."""

    def eof_received(self) -> bool | None:
        """As of `asyncio.Protocol`."""

    def pause_writing(self) -> None:
        """As of `asyncio.BaseProtocol`."""

    def resume_writing(self) -> None:
        """As of `asyncio.BaseProtocol`."""


@dataclass(slots=True)
class DirectBody:
    """One request's body, beside ASGI.

    Attributes:
        early: what came with its head, which ASGI's ``receive`` does not give.
        stranger: nobody has proved who asks; said before the answer is sent.
        certificate: thumbprint of the client's, as `service.http.tls` knows it.
        take: given each portion that follows, as long as it is set. It must not raise,
            nor keep what it is given. That all has arrived ``receive`` tells.
    """

    early: Body = b""
    stranger: bool = False
    certificate: str | None = None
    take: Callable[[Body], None] | None = None

    def take_early(self) -> Body:
        """What came with the head, once."""
        early, self.early = self.early, b""
        return early


class Reader(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol: what is read is not copied first."""

    def __init__(self, connection: Connection) -> None:
        """Read for a connection."""
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go; who asks writes there before anybody else asks."""
        return _buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """So many are there."""
        self._connection.arrived(_buffer()[:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        """As for the protocol."""
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


@cache
def _buffer() -> memoryview:
    """One for all connections: what is in it is gone at the next read of any of them.

    As in the event loop's own, nobody sees of it more than was just read.
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

    def take(self, data: Body) -> None:
        """Take the next bytes, which HTTP keeps within the declared length."""
        if not self._end:
            # Not zeroed: only what has been written is ever read.
            self._buffer = np.empty(self._size, np.uint8).data
        begin, self._end = self._end, self._end + len(data)
        if self._end > self._size:
            raise Problem("body-too-large", "longer than its length")
        self._buffer[begin : self._end] = data
