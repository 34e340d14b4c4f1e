"""Whole requests on connections of our own: most that a client sends.

A request whose content is there at once, and that goes through no proxy, needs little
of an HTTP library: one write, and a parser for the answer. Here httpcore connects and
speaks TLS, and its errors say what failed; httptools (llhttp) parses answers. What
comes in pieces, and what goes through a proxy, takes httpcore's whole way
(`sealgate.transport`), with the same bounds and the same errors; tests compare the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar, cast
from urllib.parse import urlsplit

import anyio
import httpcore
import httptools

from sealgate.errors import TransportError
from sealgate.exchange import Answer

__all__ = [
    "KEEPALIVE_S",
    "MAX_CONNECTIONS",
    "MAX_IDLE",
    "AsyncConnections",
    "Connections",
    "Origin",
    "fields_of",
    "front",
    "origin_of",
]

KEEPALIVE_S = 5.0
MAX_IDLE = 20
MAX_CONNECTIONS = 100

_READ_BYTES = 64 << 10
# Of content that goes out in one write with the head: a copy costs less than a write.
_TOGETHER_BYTES = 64 << 10
# What may arrive without any content: a head, a trailer, extensions of chunks.
_MAX_BARREN_BYTES = 100 << 10
_PORTS = {"http": 80, "https": 443}
# A request's line and its fields, whoever made up the URL (RFC 9112, sections 3 and 5).
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_FIELD = re.compile(rb"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")

Fields = Iterable[tuple[bytes, bytes]]
S = TypeVar("S", httpcore.NetworkStream, httpcore.AsyncNetworkStream)


@dataclass(frozen=True)
class Origin:
    """Who is connected to: scheme, host name or address, and port."""

    scheme: str
    host: str
    port: int


@lru_cache(maxsize=256)
def origin_of(url: str) -> Origin:
    """The origin of an http or https URL that `check_url` let pass, or one below it."""
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    return Origin(parts.scheme, parts.hostname or "", port)


def front(method: str, url: str, fields: Fields) -> bytes:
    """A request's line and fields, all but the length of its content.

    Raises:
        httpcore.LocalProtocolError: they cannot stand in a request.
    """
    parts, origin = urlsplit(url), origin_of(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if origin.port != _PORTS[origin.scheme]:
        host += f":{origin.port}"
    lines = [b"Host: " + host.encode("ascii")]
    lines += [b"%b: %b" % field for field in fields]
    # The whole URL, since urlsplit leaves out what it does not like.
    if not _VISIBLE.fullmatch(url) or not all(map(_FIELD.fullmatch, lines)):
        raise httpcore.LocalProtocolError("Illegal request line or header")
    return b"\r\n".join((f"{method} {target} HTTP/1.1".encode(), *lines, b""))


def fields_of(fields: Fields) -> dict[str, str]:
    """An answer's fields by lower-case name; of a repeated one, all values."""
    found: dict[str, str] = {}
    for raw, value in fields:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _written(head: bytes, content: bytes | None) -> list[bytes]:
    """What goes out, a write each."""
    if content is None:
        return [head + b"\r\n"]
    head += b"Content-Length: %d\r\n\r\n" % len(content)
    if len(content) <= _TOGETHER_BYTES:
        return [head + content]
    # A view: what a write leaves over is not copied for the next one.
    rest = cast("bytes", memoryview(content)[_TOGETHER_BYTES:])
    return [head + content[:_TOGETHER_BYTES], rest]


class _Reader:
    """Takes an answer's bytes as they come, up to a bound.

    Attributes:
        whole: all of it has come.
        reusable: the connection may carry another request.
    """

    def __init__(self, max_bytes: int) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._max_bytes = max_bytes
        self._fields: list[tuple[bytes, bytes]] = []
        self._found: dict[str, str] = {}
        self._body: list[bytes] = []
        self._status = self._size = self._barren = 0
        self._headed = False
        self.whole = self.reusable = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes; none says that the connection has ended.

        Raises:
            httpcore.RemoteProtocolError: they are not HTTP.
            TransportError: the answer is too long.
        """
        if not data:
            self._end()
            return
        before = self._headed, self._size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.whole:
                # Of what a callback raised, the parser's own words say nothing.
                why = str(error.__context__ or error)
                raise httpcore.RemoteProtocolError(why) from None
            self.reusable = False  # more came than was asked for
        if self._size > self._max_bytes:
            raise TransportError("the answer is too long")
        same = before == (self._headed, self._size)
        self._barren = self._barren + len(data) if same else 0
        if self._barren > _MAX_BARREN_BYTES:
            raise httpcore.RemoteProtocolError("Receive buffer too long")

    def answer(self) -> Answer:
        """The answer, once it is whole."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Answer(self._status, self._found, body)

    def _end(self) -> None:
        if not self._headed:
            raise httpcore.RemoteProtocolError(
                "Server disconnected without sending a response."
            )
        short = "peer closed connection without sending complete message body "
        if "transfer-encoding" in self._found:
            raise httpcore.RemoteProtocolError(short + "(incomplete chunked read)")
        if (length := self._found.get("content-length")) is not None:
            how = f"(received {self._size} bytes, expected {length})"
            raise httpcore.RemoteProtocolError(short + how)
        self.whole = True  # its length was the connection's (RFC 9112, section 6.3)

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.whole:  # and more comes than was asked for
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:  # a trailer says nothing to us
            # The parser leaves what is behind a value (RFC 9112, section 5.1).
            self._fields.append((name, value.rstrip(b"\t ")))

    def on_headers_complete(self) -> None:
        if self._headed:
            return
        self._status = self._parser.get_status_code()
        if self._status < 100 or self._status == 101:
            raise httpcore.RemoteProtocolError(f"unasked for: status {self._status}")
        if self._status < 200:
            self._fields.clear()  # informational: the answer comes behind it
            return
        self._headed, self._found = True, fields_of(self._fields)
        # The parser undoes no other coding, nor says that it left one.
        if self._found.get("transfer-encoding", "chunked").lower() != "chunked":
            raise httpcore.RemoteProtocolError(
                "Only Transfer-Encoding: chunked is supported"
            )

    def on_body(self, data: bytes) -> None:
        if not self._headed:
            raise httpcore.RemoteProtocolError("an informational answer has content")
        if not self.whole:
            self._size += len(data)
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self._headed and not self.whole:
            self.whole = True
            self.reusable = self._parser.should_keep_alive()


class _Kept(Generic[S]):
    """The connections to one origin: those that wait for a request, those in use.

    A connection is of who made it: a process, or an event loop. What a fork inherits
    carries the answers of two, and what waits on a loop that is over has none.
    """

    def __init__(
        self, origin: Origin, context: ssl.SSLContext, timeout_s: float
    ) -> None:
        self._origin = origin
        self._context = context
        self._timeout_s = timeout_s
        self._idle: deque[tuple[float, S]] = deque()
        self._open: dict[S, object] = {}  # and whose they are

    def _owner(self) -> object:
        """Who may use a connection that is made now."""
        raise NotImplementedError

    def _take(self) -> tuple[S | None, list[S]]:
        """The connection that was used last, if one is good, and those to close."""
        over: list[S] = []
        now, owner = time.monotonic(), self._owner()
        while True:
            try:
                until, stream = self._idle.pop()
            except IndexError:
                return None, over
            # Readable while nothing was asked: it has ended.
            if (
                now < until
                and self._open.get(stream) == owner
                and not stream.get_extra_info("is_readable")
            ):
                return stream, over
            over.append(stream)

    def _keep(self, stream: S) -> list[S]:
        """Let one wait for the next request; those to close."""
        now = time.monotonic()
        self._idle.append((now + KEEPALIVE_S, stream))
        over: list[S] = []
        try:
            while len(self._idle) > MAX_IDLE or self._idle[0][0] < now:
                over.append(self._idle.popleft()[1])
        except IndexError:  # threads share it: others took the rest
            pass
        return over

    def _tls(self) -> ssl.SSLContext | None:
        if self._origin.scheme != "https":
            return None
        self._context.set_alpn_protocols(["http/1.1"])
        return self._context


class Connections(_Kept[httpcore.NetworkStream]):
    """Those of a synchronous client. Threads may share them."""

    def __init__(
        self, origin: Origin, context: ssl.SSLContext, timeout_s: float
    ) -> None:
        """Nothing is connected yet.

        Args:
            origin: of all requests.
            context: for https.
            timeout_s: for a free connection, connecting, and each read and write.
        """
        super().__init__(origin, context, timeout_s)
        self._slots = threading.Semaphore(MAX_CONNECTIONS)

    def _owner(self) -> object:
        return os.getpid()

    def fetch(self, head: bytes, content: bytes | None, max_bytes: int) -> Answer:
        """Send a request, and read its answer.

        Args:
            head: what `front` made.
            content: of the request; None for none.
            max_bytes: refuse a longer answer while reading.

        Raises:
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError:
                as httpcore's own pools.
            TransportError: the answer is too long.
        """
        if not self._slots.acquire(timeout=self._timeout_s):
            raise httpcore.PoolTimeout
        try:
            stream, over = self._take()
            self._drop(over)
            return self._exchange(stream or self._connect(), head, content, max_bytes)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close all of them, also those in use."""
        self._idle.clear()
        self._drop(list(self._open))

    def _exchange(
        self,
        stream: httpcore.NetworkStream,
        head: bytes,
        content: bytes | None,
        max_bytes: int,
    ) -> Answer:
        reader = _Reader(max_bytes)
        connection: socket.socket = stream.get_extra_info("socket")
        try:
            sent = all(_send(connection, part) for part in _written(head, content))
            while not reader.whole:
                reader.feed(_receive(connection))
        except BaseException:
            self._drop([stream])
            raise
        self._drop(self._keep(stream) if sent and reader.reusable else [stream])
        return reader.answer()

    def _connect(self) -> httpcore.NetworkStream:
        origin, timeout = self._origin, self._timeout_s
        stream = httpcore.SyncBackend().connect_tcp(origin.host, origin.port, timeout)
        if (context := self._tls()) is not None:
            stream = stream.start_tls(context, origin.host, timeout)
        self._open[stream] = self._owner()
        return stream

    def _drop(self, streams: list[httpcore.NetworkStream]) -> None:
        for stream in streams:
            self._open.pop(stream, None)
            stream.close()


# httpcore's stream would set the timeout anew for each step; it was when connecting.


def _send(connection: socket.socket, data: bytes) -> bool:
    """Whether the other side took all of it.

    Who refuses a request early, and closes, has answered all the same: that is read.
    """
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[connection.send(rest) :]
    except TimeoutError as error:
        raise httpcore.WriteTimeout(error) from error
    except OSError:
        return False
    return True


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_READ_BYTES)
    except TimeoutError as error:
        raise httpcore.ReadTimeout(error) from error
    except OSError as error:
        raise httpcore.ReadError(error) from error


class AsyncConnections(_Kept[httpcore.AsyncNetworkStream]):
    """Those of an asynchronous client."""

    def __init__(
        self, origin: Origin, context: ssl.SSLContext, timeout_s: float
    ) -> None:
        """Nothing is connected yet; as `Connections`."""
        super().__init__(origin, context, timeout_s)
        # One for each loop: waiting binds it.
        self._slots: MutableMapping[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    def _owner(self) -> object:
        return asyncio.get_running_loop()

    async def fetch(self, head: bytes, content: bytes | None, max_bytes: int) -> Answer:
        """Send a request, and read its answer; as `Connections`."""
        slots = await self._turn()
        try:
            stream, over = self._take()
            try:
                stream = stream or await self._connect()
                return await self._exchange(stream, head, content, max_bytes)
            finally:
                # Not before: who is cancelled here would leave the one that was taken.
                await self._drop(over)
        finally:
            slots.release()

    async def aclose(self) -> None:
        """Close all of them, also those in use."""
        self._idle.clear()
        await self._drop(list(self._open))

    async def _turn(self) -> asyncio.Semaphore:
        """Wait for a free connection; what to release when it is free again."""
        loop = asyncio.get_running_loop()
        if (slots := self._slots.get(loop)) is None:
            slots = self._slots.setdefault(loop, asyncio.Semaphore(MAX_CONNECTIONS))
        try:
            async with asyncio.timeout(self._timeout_s if slots.locked() else None):
                await slots.acquire()
        except TimeoutError:
            raise httpcore.PoolTimeout from None
        return slots

    async def _exchange(
        self,
        stream: httpcore.AsyncNetworkStream,
        head: bytes,
        content: bytes | None,
        max_bytes: int,
    ) -> Answer:
        reader, sent, data = _Reader(max_bytes), False, b""
        try:
            with contextlib.suppress(httpcore.WriteError):
                for part in _written(head, content):
                    await stream.write(part, self._timeout_s)
                sent = True
            while not reader.whole:
                data = await stream.read(_READ_BYTES, self._timeout_s)
                reader.feed(data)
        except BaseException:
            await self._drop([stream])
            raise
        # The rest of a read that was full would wait where `_take` does not see it.
        good = sent and reader.reusable and len(data) < _READ_BYTES
        if good and self._origin.scheme == "https":
            good = _drained(stream)
        await self._drop(self._keep(stream) if good else [stream])
        return reader.answer()

    async def _connect(self) -> httpcore.AsyncNetworkStream:
        origin, timeout = self._origin, self._timeout_s
        backend = httpcore.AnyIOBackend()
        stream = await backend.connect_tcp(origin.host, origin.port, timeout)
        self._open[stream] = self._owner()
        if (context := self._tls()) is None:
            return stream
        try:
            secured = await stream.start_tls(context, origin.host, timeout)
        except BaseException:
            await self._drop([stream])
            raise
        del self._open[stream]
        self._open[secured] = self._owner()
        return secured

    async def _drop(self, streams: list[httpcore.AsyncNetworkStream]) -> None:
        if not streams:
            return
        stream, *rest = streams
        try:
            # Another loop's can only be forgotten: it may be over.
            if self._open.pop(stream, None) is self._owner():
                # Who is cancelled leaves no connection open either.
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
        finally:
            await self._drop(rest)


def _drained(stream: httpcore.AsyncNetworkStream) -> bool:
    """Whether TLS holds nothing more that has arrived."""
    try:
        stream.get_extra_info("ssl_object").read(1)
    except ssl.SSLWantReadError:
        return True
    except ssl.SSLError:
        return False
    return False
