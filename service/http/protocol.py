"""The HTTP/1.1 connection: bounds on what is open, sent and taken; no upgrades.

A request that has come whole when its head has been read is answered right here
(`service.http.exchange`); any other goes through ASGI.

uvicorn parses all that was read at once, and a head of any length at any pace. Here
the parser gets one message at a time: what follows it waits, unread, for its answer. A
head that grows beyond its bound is answered 431, one that does not end in time is cut
off, one that two servers could read in two ways is refused (`service.http.framing`).
Bodies are the guard's, which may have one handed over as it is read: uvicorn would copy
it twice on the way. The parser sees none whose length is known: it is so many bytes.

Connections are counted. For one too many, the one that has waited longest for a request
is closed. One that is refused again and again has to wait for its next turn. A client
that takes nothing of its answer is cut off: uvicorn would keep what it does not take.
One that is answered before it has sent all gets the time to: whoever closes on what was
not read resets the connection, and the answer is lost with it (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)

from sealgate.protocol.bhttp import Body, Request
from security.settings.service import ServiceSettings
from service.http.direct import DIRECT_BODY, DIRECT_BYTES, DirectBody, Reader
from service.http.ending import Ending
from service.http.exchange import (
    Answerer,
    Cycle,
    Exchange,
    Reply,
    last_message,
    plain_method,
)
from service.http.flow import Flow, Stall
from service.http.framing import FIELDS, HEAD_END, Framing
from service.http.heads import Head, Heads
from service.http.intake import Allowance
from service.http.tls import client_thumbprint
from service.problems import Problem, problem_response
from service.telemetry.metrics import Metrics

__all__ = ["BoundedProtocol"]

_TURNS = itertools.count()
# To clients for whom there is no room.
_BUSY = Problem("overloaded", headers=((b"retry-after", b"1"),))


class BoundedProtocol(HttpToolsProtocol):
    """One connection; `service.http.connections.bounded_protocol` sets its bounds."""

    flow: Flow
    bounds: ServiceSettings
    max_head_bytes: int
    told: Metrics
    answerer: Answerer
    heads: Heads
    # One timer looks at all connections, since two for each request cost more.
    sweep_s: float
    sweeper: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's; and take a place, or make room for it."""
        super().connection_made(transport)
        # Before it begins to read: changing that later takes four system calls.
        transport.set_protocol(Reader(self))
        self.flow = Flow(transport)
        self.certificate = client_thumbprint(transport)
        # Until when a head must end or begin; 0 while a request is read or answered.
        self.until = self.loop.time() + self.bounds.head_timeout_s
        self._in_head = True
        # Since the last byte of a body, or the end of a message.
        self._head_bytes = 0
        self._framing = Framing()
        # What has been read and not parsed, from a position on.
        self._unread, self._position = b"", 0
        # Of a body whose length is known, bytes that were not read; and whether the
        # parser still waits for one that it was not given.
        self._in_body, self.left, self._past = False, 0, False
        # A message has come whole, and is being answered.
        self._whole = False
        # What was read with the first byte of a message; of one that was answered
        # here, its head alone, to be remembered if somebody stands for it.
        self._first = self._raw = b""
        # Whether somebody stood for the last request. If nobody did, the next one's
        # head is not looked up: it is most likely another stranger's.
        self._vouched = True
        # No other message can follow.
        self._last = False
        # All has been answered; what still comes is dropped.
        self._ended = False
        self._allowance = Allowance()
        send_s = self.bounds.send_timeout_s
        self._stall = Stall(transport, self.loop, timeout_s=send_s)
        self._rest = DirectBody()
        # What of a body came with its head; None where ASGI has the request.
        self._early: list[Body] | None = None
        # Since which turn; lower is longer. Clocks tell too little of a crowd.
        self.waiting_since = next(_TURNS)
        kind = type(self)
        if kind.sweeper is None:
            kind.sweeper = self.loop.call_later(self.sweep_s, self._sweep)
        self.told.set("sealgate_connections", value=len(self.connections))
        if len(self.connections) > self.bounds.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's; nobody is waited for any more."""
        self.until = 0.0
        self._stall.end()
        super().connection_lost(exc)
        self.told.set("sealgate_connections", value=len(self.connections))

    def _make_room(self) -> None:
        """Close what has waited longest and is not being closed yet, or this one."""
        staying = [
            other
            for other in self.connections
            if isinstance(other, BoundedProtocol) and not other.transport.is_closing()
        ]
        if len(staying) <= self.bounds.max_connections:
            return
        waiting = [other for other in staying if other is not self and other.waits]
        if waiting:
            min(waiting, key=lambda other: other.waiting_since).transport.abort()
            return
        self._refuse(_BUSY)

    @property
    def waits(self) -> bool:
        """Whether no request is being answered on it, or read beyond its head."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def on_response_complete(self) -> None:
        """As uvicorn's, but for the pause that follows, and for what was not parsed."""
        self.server_state.total_requests += 1
        self.waiting_since = next(_TURNS)
        wait_s = 0.0
        if self._rest.stranger:
            wait_s = self._allowance.spend(self.loop.time())
        if wait_s > 0:
            self.loop.call_later(wait_s, self._next_message)
        else:
            self._next_message()

    def _next_message(self) -> None:
        if self._ended or self.transport.is_closing():
            return
        self._whole, self._head_bytes = False, 0
        self.until = self.loop.time() + self.bounds.idle_timeout_s
        if self._unread:  # after other connections have had their turn
            self.loop.call_soon(self._parse)
        else:
            self.flow.read_on()

    def _sweep(self) -> None:
        """Close connections whose time is over; the timer ends with the last one."""
        now = self.loop.time()
        for other in list(self.connections):
            if isinstance(other, BoundedProtocol) and 0 < other.until < now:
                other.expire()
        type(self).sweeper = (
            self.loop.call_later(self.sweep_s, self._sweep)
            if self.connections
            else None
        )

    def timeout_keep_alive_handler(self) -> None:
        """As uvicorn's; but a client that takes nothing is cut off."""
        if self.transport.get_write_buffer_size():
            # Closing would wait for a client that takes nothing.
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        """As uvicorn's; the client has some time to take more."""
        super().pause_writing()
        self._stall.begin()

    def resume_writing(self) -> None:
        """As uvicorn's."""
        super().resume_writing()
        self._stall.end()

    def arrived(self, data: memoryview) -> None:
        """Take what was read: more of a body where it lies, all else as bytes."""
        if self.left and not (self._unread or self._last or self._ended):
            body, data = data[: self.left], data[self.left :]
            self._go_past(body)
        if data:
            self.data_received(bytes(data))

    def data_received(self, data: bytes) -> None:
        """Take what was read: a request whose head is known, or a piece of one."""
        if self._ended:
            return
        begins = not (self._unread or self._head_bytes or self._in_body or self._whole)
        if begins and self._vouched and self._may_be_whole():
            head = self.heads.find(data)
            if head is not None and not self.transport.is_closing():
                self._take(head, data[len(head.raw) :])
                return
        self._first = data if begins else b""
        if self._unread:
            data = self._unread[self._position :] + data
        self._unread, self._position = data, 0
        if self._whole or self._last:
            self.flow.hold()
        else:
            self._parse()

    def _parse(self) -> None:
        """Parse what was read, to the end of one message at most."""
        try:
            closed = self._last or self.transport.is_closing()
            while not (self._whole or closed) and (piece := self._piece()):
                take = self._go_past if self.left else self._feed
                take(piece)
            if self._early is not None:
                self._pass_on()
        except HttpParserUpgrade:
            self._end_after_this()
        except HttpParserError as error:
            self._stumble(error.__context__)
        except Problem as problem:
            self._refuse(problem)
        if self._unread and self._whole:
            self.flow.hold()
        elif self.flow.held and not self._whole:
            self.flow.read_on()
        if self._in_head and not self.until:
            self.until = self.loop.time() + self.bounds.head_timeout_s

    def _go_past(self, body: memoryview) -> None:
        """Take a part of a body past the parser."""
        self.left -= len(body)
        self.on_body(body)
        if not self.left:
            self._past = True
            self.on_message_complete()

    def _feed(self, piece: memoryview) -> None:
        if self._past:  # that one waits for a body
            self._past = False
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(piece)

    def _piece(self) -> memoryview:
        """What is taken next: of nothing more than one message.

        Behind chunks it may get more, since only it knows where they end. It is stopped
        there, and no other request is taken on that connection.

        Raises:
            Problem: there is no body in too many bytes.
        """
        data, begin = self._unread, self._position
        size = len(data)
        if not self._in_body:
            if not self._in_head and begin < size and data[begin] in HEAD_END:
                begin = size - len(data[begin:].lstrip(HEAD_END))
            end = data.find(HEAD_END, begin) + len(HEAD_END)
            if end < len(HEAD_END):  # what may be its beginning is kept
                end = max(begin, size - len(HEAD_END) + 1)
            self._count(end - begin)
        elif self._framing.chunked:
            self._count(0)
            end = size
            self._head_bytes += end - begin
        else:
            end = min(size, begin + self.left)
        if end == size:
            self._unread, self._position = b"", 0
        else:
            self._position = end
        return memoryview(data)[begin:end]

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.max_head_bytes:
            raise Problem("head-too-large")

    def _stumble(self, cause: BaseException | None) -> None:
        """The parser has stopped: the message is malformed, or another one follows."""
        if isinstance(cause, Problem):
            self._refuse(cause)
        elif self._whole:
            self._end_after_this()
        else:
            self._refuse(Problem("malformed-http"))

    def _end_after_this(self) -> None:
        """Take no other message than this one."""
        self._last = True
        self.cycle.keep_alive = False

    def _refuse(self, problem: Problem) -> None:
        self.until, self._last, self._early = 0.0, True, None
        self.told.count("sealgate_refusals", problem.code)
        self.transport.write(last_message(problem_response(problem)))
        self.end()

    def end(self) -> None:
        """Close, once the client has closed or had its time to send the rest."""
        if self._whole and not self._unread:
            self.transport.close()
        elif not (self._ended or self.transport.is_closing()):
            self._ended, self._unread, self._early = True, b"", None
            self._rest.early = b""
            if isinstance(self.cycle, RequestResponseCycle):  # nobody will ask for it
                self.cycle.body = bytearray()
            self.until = self.loop.time() + self.bounds.head_timeout_s
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.flow.read_on()

    def on_message_begin(self) -> None:
        """What a scope has beyond this is made where ASGI gets the request."""
        if self._whole:
            raise HttpParserError("another message")
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._framing = Framing()
        self._in_head, self.until = True, 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Fields behind a body are nobody's: a proxy does not look at them."""
        if not self._in_head:
            return
        name = name.lower()
        if name in FIELDS:
            self._framing.note(name, value)
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Wait until all that was read with the head is known."""
        self._in_head, self.until, self._head_bytes = False, 0.0, 0
        self._version = self.parser.get_http_version()
        self._framing.check(self._version, upgrade=self.parser.should_upgrade())
        self._in_body, self.left = True, self._framing.length
        self._early = []

    def on_body(self, body: Body) -> None:
        """Keep what came with the head; hand on what comes later."""
        self._head_bytes = 0
        if self._framing.chunked:
            self._framing.count_chunk(len(body))
        if self._early is not None:
            self._early.append(body)
        elif self._rest.take is None:
            super().on_body(body)  # type: ignore[arg-type]  # it is copied
        else:
            self._rest.take(body)

    def on_message_complete(self) -> None:
        """Answer here what came whole; hand on the rest."""
        self._whole, self._in_body = True, False
        if self._early is not None:
            method = self._method_of_whole()
            if method is not None:
                self._answer_whole(method, self._early)
                return
            self._pass_on()
        super().on_message_complete()

    def _pass_on(self) -> None:
        """Let uvicorn have the request, as far as it is there.

        Raises:
            Problem: its target cannot be taken apart.
        """
        early, self._early, self._first = self._early or (), None, b""
        head = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = head
        body = early[0] if len(early) == 1 else b"".join(early)
        self._rest = DirectBody(body, certificate=self.certificate)
        self.scope["headers"] = self.headers
        self.scope["extensions"] = {DIRECT_BODY: {"rest": self._rest}}
        try:
            super().on_headers_complete()
        except (HttpParserError, ValueError, AttributeError):  # it has no path
            raise Problem("malformed-http", "the target is not one") from None
        self.cycle.transport = Ending(self.transport, self.end)  # type: ignore[assignment]
        if self.left >= DIRECT_BYTES:
            self.flow.wait()

    def _may_be_whole(self) -> bool:
        """Whether a request that is there whole could be answered here."""
        return (
            self.waits
            and not (self._last or self.flow.write_paused)
            and self.limit_concurrency is None
        )

    def _method_of_whole(self) -> bytes | None:
        """The method of a request that can be answered here; None of any other."""
        if self.expect_100_continue or not self._may_be_whole():
            return None
        return plain_method(self.parser, self.url, self._version)

    def _answer_whole(self, method: bytes, early: list[Body]) -> None:
        self._early = None
        body = b"".join(early)
        scheme = b"http" if self.scheme == "http" else b"https"
        path = self.url.partition(b"?")[0]
        request = Request(
            method, scheme, self._framing.authority, path, tuple(self.headers), body
        )
        if self._first and not self._framing.chunked:
            self._raw = self._first[: len(self._first) - len(body)]
        self._first = b""
        answer = self.answerer.answer(request, self.certificate)
        self.begin_exchange(answer, keep_alive=self.parser.should_keep_alive())

    def _remember(self, raw: bytes) -> None:
        """Remember the head of the message that was answered: no other has begun."""
        head = Head(
            raw,
            method=self.parser.get_method(),
            path=self.url.partition(b"?")[0],
            authority=self._framing.authority,
            headers=tuple(self.headers),
            length=self._framing.length,
        )
        self.heads.remember(head)

    def _take(self, head: Head, body: bytes) -> None:
        """Answer a request whose head is known."""
        self._in_head, self.until, self._whole = False, 0.0, True
        cycle = self.answerer.take(self, head, body)  # type: ignore[arg-type]
        if cycle is None:
            scheme = b"http" if self.scheme == "http" else b"https"
            answer = self.answerer.answer(head.request(scheme, body), self.certificate)
            self.begin_exchange(answer, keep_alive=True)
        else:
            self.cycle = cycle  # type: ignore[assignment]

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """What uvicorn adds to each answer."""
        return self.server_state.default_headers

    def begin_exchange(
        self,
        answer: Coroutine[Any, Any, Reply],
        *,
        keep_alive: bool,
        disconnected: bool = False,
    ) -> None:
        """Write this answer when it is there."""
        exchange = Exchange(
            self,  # type: ignore[arg-type]
            answer,
            keep_alive=keep_alive,
            default_headers=self.server_state.default_headers,
        )
        exchange.disconnected = disconnected
        # In the cycle's place: uvicorn asks the same of both.
        self.cycle = exchange  # type: ignore[assignment]
        exchange.task = self.loop.create_task(exchange.run())
        self.tasks.add(exchange.task)

    def end_exchange(self, task: asyncio.Task[None] | None) -> None:
        """The answer has been written, if it could be."""
        if task is not None:
            self.tasks.discard(task)
        cycle: Cycle = self.cycle  # type: ignore[assignment]
        # Nothing of it is kept while the next one is waited for.
        self.cycle = None  # type: ignore[assignment]
        self._rest.stranger, self._vouched = cycle.stranger, cycle.vouched
        raw, self._raw = self._raw, b""
        if raw and cycle.vouched and cycle.keep_alive and self.parser is not None:
            self._remember(raw)
        self.on_response_complete()

    def expire(self) -> None:
        """Close: no head came, or none that ended, in its time."""
        self.until = 0.0
        if self._in_head:
            self.transport.close()
        else:
            self.timeout_keep_alive_handler()
