"""The HTTP/1.1 connection: bounds on what is open, sent and taken; no upgrades.

A request that has come whole when its head has been read is answered right here
(`service.http.exchange`); any other goes through ASGI.

uvicorn reads a head of any length at any pace before anything of ours sees it. Here a
head that grows beyond its bound is answered 431, one that does not end in time is cut
off, and an upgrade is an ordinary request. Bodies are the guard's, which may have the
rest of one handed over as it is read: uvicorn would copy it twice on the way.

Connections are counted. For one too many, the one that has waited longest for a request
is closed. A client that takes nothing of its answer is cut off: uvicorn would keep what
it does not take. All else that BentoML leaves open, TLS included, is set here too.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import re
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from httptools import HttpParserError
from uvicorn.config import Config
from uvicorn.protocols.http import auto as http_auto
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets import auto as websockets_auto
from uvicorn.server import Server

from sealgate.protocol.bhttp import Request
from security.settings.loading import Settings
from security.settings.service import ServiceSettings
from service.http.direct import DIRECT_BODY, DirectBody
from service.http.exchange import Answerer, Exchange
from service.http.tls import harden, server_context
from service.telemetry.metrics import Metrics

__all__ = ["bounded_protocol", "install"]

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
_Sockets = list[socket.socket] | None
_Shutdown = Callable[[Server, _Sockets], Coroutine[Any, Any, None]]
_TURNS = itertools.count()
_METHODS = frozenset({b"GET", b"POST"})
# Any other target is uvicorn's to take apart.
_PATH = re.compile(rb"/[A-Za-z0-9/._~%-]*(?:\?[!-~]*)?")
# A client that has its answer closes by itself.
_LINGER_S = 1.0
_GOODBYE_S = 0.2
# To clients for whom there is no room, or whom a server that ends will not serve.
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


def install(settings: Settings, metrics: Metrics, answerer: Answerer) -> None:
    """Make uvicorn's next server in this process use the bounded protocol, and TLS.

    BentoML's worker makes its uvicorn configuration by itself, with protocols by the
    name "auto"; these are the two names that stands for. The rest is set when that
    configuration is loaded.

    Raises:
        SealgateError: a file of TLS cannot be used.
    """
    http_auto.AutoHTTPProtocol = bounded_protocol(settings.service, metrics, answerer)
    websockets_auto.AutoWebSocketsProtocol = None
    context = server_context(settings.tls) if settings.tls.enabled else None
    bound_s = settings.service.shutdown_timeout_s
    load = Config.load

    def load_bounded(config: Config) -> None:
        config.server_header = False
        # Whose address the client has makes no difference to any answer.
        config.proxy_headers = False
        given_s = config.timeout_graceful_shutdown
        config.timeout_graceful_shutdown = math.ceil(min(given_s or bound_s, bound_s))
        load(config)
        if context is not None:
            config.ssl = context
        elif config.ssl is not None:  # by BentoML's own options
            harden(config.ssl)

    # BentoML offers no other way.
    Config.load = load_bounded  # type: ignore[method-assign, assignment]
    Server.shutdown = _refusing(Server.shutdown)  # type: ignore[method-assign, assignment]


def _refusing(shutdown: _Shutdown) -> _Shutdown:
    """Uvicorn's shutdown, during which whoever connects is told to go elsewhere.

    The listening socket is open until the last worker has ended, since the parent holds
    it: a connection that nobody accepts would hang until then, and then be reset.
    """

    async def shut_down(server: Server, sockets: _Sockets = None) -> None:
        config, waiting = server.config, set[asyncio.Transport]()
        refusing = [
            await asyncio.get_running_loop().create_server(
                functools.partial(_Refusal, waiting),
                sock=sock.dup(),
                ssl=config.ssl,
                backlog=config.backlog,
            )
            for sock in sockets or ()
        ]
        try:
            await shutdown(server, sockets)
        finally:
            for each in refusing:
                each.close()
            if waiting:  # who has just been accepted is answered, too
                await asyncio.sleep(_GOODBYE_S)

    return shut_down


class _Refusal(asyncio.Protocol):
    """Answers the first bytes of a connection with 503, whatever they are."""

    def __init__(self, waiting: set[asyncio.Transport]) -> None:
        self._waiting = waiting

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._waiting.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport in self._waiting:
            self._waiting.discard(transport)
            transport.write(_FULL)
            # Closing while more arrives would reset it before the answer is read.
            asyncio.get_running_loop().call_later(_LINGER_S, transport.close)


def bounded_protocol(
    settings: ServiceSettings, metrics: Metrics, guard: Answerer
) -> type[HttpToolsProtocol]:
    """Uvicorn's protocol with the settings' bounds."""

    class Bounded(_BoundedProtocol):
        bounds = settings
        max_head_bytes = settings.max_head_bytes
        told = metrics
        answerer = guard
        sweep_s = max(0.05, min(settings.head_timeout_s, settings.idle_timeout_s) / 8)
        sweeper = None

    return Bounded


class _BoundedProtocol(HttpToolsProtocol):
    bounds: ServiceSettings
    max_head_bytes: int
    told: Metrics
    answerer: Answerer
    # One timer looks at all connections, since two for each request cost more.
    sweep_s: float
    sweeper: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Until when a head must end or begin; 0 while a request is read or answered.
        self.until = self.loop.time() + self.bounds.head_timeout_s
        self._in_head = True
        self._head_bytes = 0
        self._stall: asyncio.TimerHandle | None = None
        self._rest = DirectBody()
        # What of a body came with its head; None where ASGI has the request.
        self._early: list[bytes] | None = None
        self._waits_since = next(_TURNS)
        kind = type(self)
        if kind.sweeper is None:
            kind.sweeper = self.loop.call_later(self.sweep_s, self._sweep)
        self.told.set("sealgate_connections", value=len(self.connections))
        if len(self.connections) > self.bounds.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self.until = 0.0
        self._end_stall()
        super().connection_lost(exc)
        self.told.set("sealgate_connections", value=len(self.connections))

    def _make_room(self) -> None:
        """Close the connection that has waited longest, or this one."""
        waiting = [
            other
            for other in self.connections
            if isinstance(other, _BoundedProtocol) and other is not self and other.waits
        ]
        if waiting:
            min(waiting, key=lambda other: other.waiting_since).transport.abort()
            return
        self.until = 0.0
        self.transport.write(_FULL)
        self.transport.close()

    @property
    def waits(self) -> bool:
        """Whether no request is being answered on it, or read beyond its head."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    @property
    def waiting_since(self) -> int:
        """Since which turn; lower is longer. Clocks tell too little of a crowd."""
        return self._waits_since

    def on_response_complete(self) -> None:
        """As uvicorn's, but for the timer of the pause that follows."""
        self.server_state.total_requests += 1
        self._waits_since = next(_TURNS)
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._in_head:
            self.until = self.loop.time() + self.bounds.idle_timeout_s

    def _sweep(self) -> None:
        """Close connections whose time is over; the timer ends with the last one."""
        now = self.loop.time()
        for other in list(self.connections):
            if isinstance(other, _BoundedProtocol) and 0 < other.until < now:
                other.expire()
        type(self).sweeper = (
            self.loop.call_later(self.sweep_s, self._sweep)
            if self.connections
            else None
        )

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            # Closing would wait for a client that takes nothing.
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin_stall(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_stall()

    def _begin_stall(self, left: int) -> None:
        self._end_stall()
        self._stall = self.loop.call_later(
            self.bounds.send_timeout_s, self._look_at_stall, left
        )

    def _look_at_stall(self, left: int) -> None:
        self._stall = None
        now = self.transport.get_write_buffer_size()
        if now < left:
            self._begin_stall(now)
        elif now:
            self.transport.abort()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._early is not None:
            try:
                self._pass_on()
            except (HttpParserError, ValueError):  # no target that can be taken apart
                self.send_400_response("Invalid HTTP request received.")
        # One read may hold a whole head and much of its body, so the bound is looked
        # at when the head has still not ended. A read is at most 256 KiB.
        if self._in_head:
            if not self.until:
                self.until = self.loop.time() + self.bounds.head_timeout_s
            if self._head_bytes > self.max_head_bytes:
                self.until = 0.0
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """What a scope has beyond this is made where ASGI gets the request."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        if not self._in_head:
            self._in_head, self.until, self._head_bytes = True, 0.0, 0

    def on_headers_complete(self) -> None:
        """Wait until all that was read with the head is known."""
        self._in_head, self.until = False, 0.0
        self._early = []

    def on_body(self, body: bytes) -> None:
        if self._early is not None:
            self._early.append(body)
        elif self._rest.take is None:
            super().on_body(body)
        else:
            self._rest.take(body)

    def on_message_complete(self) -> None:
        if self._early is not None:
            method = self._method_of_whole()
            if method is not None:
                self._answer_whole(method, self._early)
                return
            self._pass_on()
        super().on_message_complete()

    def _pass_on(self) -> None:
        """Let uvicorn have the request, as far as it is there."""
        early, self._early = self._early, None
        if self.transport.is_closing():  # it was malformed after all
            return
        head = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = head
        self._rest = DirectBody()
        self.scope["headers"] = self.headers
        self.scope["extensions"] = {DIRECT_BODY: {"rest": self._rest}}
        super().on_headers_complete()
        for part in early or ():
            super().on_body(part)

    def _method_of_whole(self) -> bytes | None:
        """The method of a request that can be answered here; None of any other."""
        parser = self.parser
        cycle: RequestResponseCycle | None = self.cycle
        method: bytes = parser.get_method()
        whole = (
            method in _METHODS
            and _PATH.fullmatch(self.url) is not None
            and (cycle is None or cycle.response_complete)
            and not self.flow.write_paused
            and not self.expect_100_continue
            and not parser.should_upgrade()
            and parser.get_http_version() == "1.1"
            and self.limit_concurrency is None
        )
        return method if whole else None

    def _answer_whole(self, method: bytes, body: list[bytes]) -> None:
        self._early = None
        headers = tuple(self.headers)
        authority = next((value for name, value in headers if name == b"host"), b"")
        scheme = b"http" if self.scheme == "http" else b"https"
        path = self.url.partition(b"?")[0]
        exchange = Exchange(
            self,
            self.answerer.answer(
                Request(
                    method,
                    scheme,
                    authority,
                    path,
                    headers,
                    body[0] if len(body) == 1 else b"".join(body),
                )
            ),
            keep_alive=self.parser.should_keep_alive(),
            default_headers=self.server_state.default_headers,
        )
        # In the cycle's place: uvicorn asks the same of both.
        self.cycle = exchange  # type: ignore[assignment]
        exchange.task = self.loop.create_task(exchange.run())
        self.tasks.add(exchange.task)

    def end_exchange(self, task: asyncio.Task[None] | None) -> None:
        """The answer has been written, if it could be."""
        if task is not None:
            self.tasks.discard(task)
        self.on_response_complete()

    def expire(self) -> None:
        """Close: no head came, or none that ended, in its time."""
        self.until = 0.0
        if self._in_head:
            self.transport.close()
        else:
            self.timeout_keep_alive_handler()

    def _unsupported_upgrade_warning(self) -> None:
        """Strangers could fill the log with it."""
