"""The outermost ASGI layer: every request meets it first, BentoML's own included.

It reads bodies within bounds, answers what Sealgate answers, and closes everything that
BentoML opens by itself. No request reaches BentoML's middlewares, whose state strangers
could otherwise grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from sealgate.errors import SealgateError
from sealgate.protocol import keyconfig, ohttp, signedkeys
from sealgate.protocol.bhttp import Body, Headers, Request, Response
from sealgate.protocol.drafts import chunked
from security.sealing.publish import Document
from security.settings.service import ServiceSettings
from service.gateway import GATEWAY_PATH, Gateway
from service.http.direct import DIRECT_BODY, DirectBody, Gathered
from service.http.exchange import Answer, Reply, StreamedResponse
from service.http.heads import Head
from service.http.intake import VISIT, Intake, Visit
from service.offering import OFFERS_PREFIX, Offering
from service.problems import Problem, method_not_allowed, problem_response
from service.routes import Routes
from service.telemetry.metrics import METRICS_TYPE
from service.telemetry.spans import Tracer
from service.telemetry.tracing import OUTER_TRACE, read_trace
from service.turns import Turns

__all__ = ["Guard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SEALED_TYPE = ohttp.REQUEST_MEDIA_TYPE.encode()
_CHUNKED_TYPE = chunked.CHUNKED_REQUEST_MEDIA_TYPE.encode()
_HARDENING = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
_NO_STORE = (b"cache-control", b"no-store")
_HSTS = (b"strict-transport-security", b"max-age=63072000")
_SIGNED_KEYS_V2_PATH = signedkeys.SIGNED_KEYS_V2_PATH.encode()
_SIGNED_KEYS_PATHS = (signedkeys.SIGNED_KEYS_PATH.encode(), _SIGNED_KEYS_V2_PATH)
# Bodies from here on are not gathered first: each copy of one counts.
_LARGE_BYTES = 64 << 10
# An answer that takes longer is not made for a client that has left.
_WATCH_AFTER_S = 0.1


class ClientGone(Exception):  # noqa: N818  (not an error: there is nobody to answer)
    """The client left before its request was complete."""


class Guard:
    """Wraps BentoML's whole application."""

    def __init__(
        self,
        inner: App,
        routes: Routes,
        gateway: Gateway,
        settings: ServiceSettings,
        *,
        on_shutdown: Callable[[], None] = lambda: None,
        tracer: Tracer | None = None,
        offering: Offering | None = None,
    ) -> None:
        self._offering = offering
        self._on_shutdown = on_shutdown
        self._inner = inner
        self._routes = routes
        self._gateway = gateway
        self._settings = settings
        self._intake = Intake(settings, routes.metrics, tracer=tracer)
        self._turns = Turns(routes, self._intake, self)
        # Takes whole requests with heads that are known, as `Answerer` has it.
        self.take = self._turns.take

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._inner(scope, receive, self._closing(send))
        else:
            # No websocket is ever accepted: closing before accepting answers 403.
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    def _closing(self, send: Send) -> Send:
        """Close our part when BentoML's is closed, before the server hears of it."""

        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                self._on_shutdown()
            await send(message)

        return closing

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        direct = scope.get("extensions", {}).get(DIRECT_BODY, {}).get("rest")
        try:
            visit = Visit(self._intake, direct and direct.certificate)
        except Problem as busy:
            await _send(send, self._busy(busy))
            return
        body = _Body(scope, receive, visit, self._settings, direct)
        try:
            reply = await self._reply(_head(scope), body)
            body.tell(reply)
            await _send(send, reply)
        except ClientGone:
            return
        finally:
            visit.leave()

    def answer(
        self, request: Request, certificate: str | None = None
    ) -> Coroutine[Any, Any, Reply]:
        """Answer a request that is there whole, without ASGI in between.

        It is in work from now on: runs are gathered if others are there. Cancelling
        stops it: the client has left, or the server ends.
        """
        try:
            visit = Visit(self._intake, certificate)
        except Problem as busy:
            return self._refuse(busy)
        return self._visit(request, visit)

    async def _visit(self, request: Request, visit: Visit) -> Reply:
        try:
            body = _Whole(request, visit, self._settings)
            return await self._reply(request, body)
        finally:
            visit.leave()

    async def go_on(
        self,
        work: Coroutine[Any, Any, Response],
        visit: Visit,
        reply: Callable[[Response], Reply],
    ) -> Reply:
        """What remains of a request that was begun in `service.turns`."""
        VISIT.set(visit)
        try:
            return reply(await work)
        finally:
            visit.leave()

    def reply_to(self, head: Head, scheme: bytes, response: Response) -> Reply:
        """All header fields of an answer, as `_reply`; of a request without a trace."""
        secure = _is_secure(scheme, head.headers)
        return _reply(response, close=False, more=(_HSTS,) if secure else ())

    async def _refuse(self, problem: Problem) -> Reply:
        return self._busy(problem)

    def _busy(self, problem: Problem) -> Reply:
        self._routes.metrics.count("sealgate_refusals", problem.code)
        return _reply(problem_response(problem), close=True)

    async def _reply(self, head: Request, body: _AnyBody) -> Reply:
        trace = read_trace(head.headers)
        OUTER_TRACE.set(trace)
        VISIT.set(body.visit)
        try:
            if head.path == b"/metrics" and head.method in (b"GET", b"HEAD"):
                response: Answer = await self._answer_metrics(head)
            else:
                response = await self._answer(head, body)
        except SealgateError as error:
            response = await self._routes.refuse(error, sealed=False)
        except asyncio.CancelledError:
            body.check_gone()
            raise
        finally:
            body.release()
        more = () if trace is None else (trace.header,)
        if _is_secure(head.scheme, head.headers):
            more = (*more, _HSTS)
        reply = _reply(response, close=not body.complete, more=more)
        reply.stranger = body.visit.stranger
        return reply

    async def _answer(self, head: Request, body: _AnyBody) -> Answer:
        if head.path == GATEWAY_PATH:
            return await self._answer_gateway(head, body)
        if head.path in _SIGNED_KEYS_PATHS:
            return await self._answer_signed_keys(head, body)
        if self._offering is not None and head.path.startswith(OFFERS_PREFIX):
            await body.read()
            return await self._offering.answer(head)
        health = self._routes.is_open(head.path)
        principal = None if health else await self._routes.check_early(head)
        request = await body.read_request(head)
        return await self._routes.answer(request, sealed=False, principal=principal)

    async def _answer_metrics(self, head: Request) -> Response:
        await self._routes.authorize_metrics(head)
        text = await asyncio.to_thread(self._routes.metrics.text)
        return Response(200, ((b"content-type", METRICS_TYPE),), text)

    async def _answer_gateway(self, head: Request, body: _AnyBody) -> Answer:
        if head.method in (b"GET", b"HEAD"):
            await body.read()
            return _keys(keyconfig.KEYS_MEDIA_TYPE, self._gateway.published())
        if head.method != b"POST":
            raise method_not_allowed(b"GET", b"HEAD", b"POST")
        kinds = [value for name, value in head.headers if name == b"content-type"]
        types = [kind.partition(b";")[0].strip().lower() for kind in kinds]
        if types == [_SEALED_TYPE]:
            return await self._answer_sealed(body)
        if types == [_CHUNKED_TYPE]:
            request = self._gateway.begin_chunked()
            await body.read_into(request.feed)
            return await self._gateway.answer_chunked(request)
        raise Problem(
            "unsupported-media-type",
            f"expected {ohttp.REQUEST_MEDIA_TYPE}"
            f" or {chunked.CHUNKED_REQUEST_MEDIA_TYPE}",
        )

    async def _answer_sealed(self, body: _AnyBody) -> Response:
        size = body.declared
        if size is None or size < _LARGE_BYTES:
            return await self._gateway.answer(await body.read())
        request = self._gateway.begin(size)
        await body.read_straight_into(request.feed)
        return await self._gateway.answer_large(request)

    async def _answer_signed_keys(self, head: Request, body: _AnyBody) -> Response:
        if head.method not in (b"GET", b"HEAD"):
            raise method_not_allowed(b"GET", b"HEAD")
        await body.read()
        if head.path == _SIGNED_KEYS_V2_PATH:
            document = await self._gateway.published_signed_v2()
        else:
            document = self._gateway.published_signed()
        return _keys(signedkeys.SIGNED_KEYS_MEDIA_TYPE, document)


class _Body:
    """A request body, counted while it is read.

    Attributes:
        visit: of the request.
        declared: its length, where the client said one; nothing longer will arrive.
        complete: all of it has been read, so that the connection can be used again.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        visit: Visit,
        settings: ServiceSettings,
        direct: DirectBody | None,
    ) -> None:
        self._receive = receive
        self.visit = visit
        self._max_bytes = settings.max_body_bytes
        self._timeout_s = settings.body_timeout_s
        self._direct = direct
        self.declared = _declared_length(scope)
        self.complete = self.declared == 0
        self._watch: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._gone = False

    def tell(self, reply: Reply) -> None:
        """Tell the connection what is to be known before the answer is sent."""
        if self._direct is not None:
            self._direct.stranger = reply.stranger

    def check_gone(self) -> None:
        """Of a task that was cancelled: say so if it was because the client left.

        Raises:
            ClientGone: it did.
        """
        task = asyncio.current_task()
        if self._gone and task is not None:
            task.uncancel()
            raise ClientGone

    def release(self) -> None:
        """There is an answer: the client may leave."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _watch_later(self) -> None:
        """Notice a client that leaves while its answer is being made, and stop that.

        Nothing but the end of the connection can come after a whole body, so waiting
        for it takes no part of another request. Short work is not worth the wait.
        """
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        async def wait() -> None:
            message = await self._receive()
            if message["type"] == "http.disconnect" and task is not None:
                self._gone = True
                task.cancel()

        def begin() -> None:
            self._watch = loop.create_task(wait())

        self._watch = loop.call_later(_WATCH_AFTER_S, begin)

    async def read(self) -> Body:
        """Read it whole.

        Raises:
            Problem: too large, or too slow.
            ClientGone: the client left.
        """
        if self.declared is None or self.declared < _LARGE_BYTES:
            # One buffer that grows: a list that is joined is a second copy.
            grown = bytearray()
            await self.read_into(grown.extend)
            return grown
        gathered = Gathered(self.declared)
        await self.read_into(gathered.take)
        return gathered.content

    async def read_request(self, head: Request) -> Request:
        """The request whose head is known, with this content."""
        content = await self.read()
        return Request(
            head.method, head.scheme, head.authority, head.path, head.headers, content
        )

    async def read_into(self, take: Callable[[bytes], None]) -> None:
        """Read it in the portions in which it arrives.

        Raises:
            SealgateError: as `read`, and what ``take`` raises.
            ClientGone: the client left.
        """
        if self.declared is not None and self.declared > self._max_bytes:
            raise _too_large(self._max_bytes)
        if self.complete:  # it has none
            await self._read(take)
            return
        async with self.visit.reading(self.declared, self._timeout_s):
            await self._read(take)

    async def read_straight_into(self, take: Callable[[bytes], None]) -> None:
        """As `read_into`, with nothing in between where the connection offers that.

        Args:
            take: must not raise; what HTTP lets through it bounds by ``declared``.
        """
        direct = self._direct
        if direct is None:
            await self.read_into(take)
            return

        def counted(data: bytes) -> None:
            # Its memory is accounted for; this tells who is slow.
            self.visit.received += len(data)
            take(data)

        def take_first(data: bytes) -> None:
            take(data)
            direct.take = counted

        try:
            await self.read_into(take_first)
        finally:
            direct.take = None

    async def _read(self, take: Callable[[bytes], None]) -> None:
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_bytes:
                raise _too_large(self._max_bytes)
            self.visit.take(len(chunk))
            take(chunk)
            if not message.get("more_body", False):
                self.complete = True
                self._watch_later()
                return


class _Whole:
    """A request body that was there with its head: nothing of it is waited for.

    Attributes:
        visit: of the request.
        declared: its length.
        complete: all of it has been read.
    """

    complete = True

    def __init__(
        self, request: Request, visit: Visit, settings: ServiceSettings
    ) -> None:
        self._request = request
        self.visit = visit
        self._max_bytes = settings.max_body_bytes
        self.declared = len(request.body)

    def check_gone(self) -> None:
        """Whoever cancels knows why: nobody has to be told."""

    def release(self) -> None:
        """Nothing waits for the client to leave."""

    async def read(self) -> Body:
        """As `_Body.read`."""
        return (await self.read_request(self._request)).body

    async def read_request(self, head: Request) -> Request:
        """As `_Body.read_request`: the head has its content already."""
        if self.declared > self._max_bytes:
            raise _too_large(self._max_bytes)
        self.visit.hold(self.declared)
        return head

    async def read_into(self, take: Callable[[bytes], None]) -> None:
        """As `_Body.read_into`."""
        take(bytes(await self.read()))

    read_straight_into = read_into


_AnyBody = _Body | _Whole


def _keys(media_type: str, document: Document) -> Response:
    headers = (
        (b"content-type", media_type.encode()),
        (b"cache-control", b"max-age=%d" % document.max_age_s),
    )
    return Response(200, headers, document.content)


def _head(scope: Scope) -> Request:
    headers = tuple(scope["headers"])
    authority = next((value for name, value in headers if name == b"host"), b"")
    # The undecoded path: "%2e" and the like must not spell a route.
    path = scope.get("raw_path") or scope["path"].encode()
    method = scope["method"].encode()
    return Request(method, scope["scheme"].encode(), authority, path, headers)


def _declared_length(scope: Scope) -> int | None:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    if len(values) == 1 and values[0].isdigit() and len(values[0]) < 20:
        return int(values[0])
    return None if chunked or values else 0


def _too_large(max_bytes: int) -> Problem:
    return Problem("body-too-large", f"at most {max_bytes} bytes allowed")


def _is_secure(scheme: bytes, headers: Headers) -> bool:
    """Whether the client speaks TLS, with us or with what stands before us.

    What anyone may write into the field makes a difference to that one's answer only,
    and there a client ignores what did not come over TLS (RFC 6797, section 8.1).
    """
    return scheme == b"https" or (b"x-forwarded-proto", b"https") in headers


def _reply(response: Answer, *, close: bool, more: Headers = ()) -> Reply:
    headers = [*response.headers, *_HARDENING, *more]
    if isinstance(response, Response):
        headers.append((b"content-length", b"%d" % len(response.body)))
    for name, _ in response.headers:
        if name == b"cache-control":
            break
    else:
        headers.append(_NO_STORE)
    if close:
        # The rest of the body was not read: no other request can follow it.
        headers.append((b"connection", b"close"))
    return Reply(response, headers, close)


async def _send(send: Send, reply: Reply) -> None:
    answer = reply.answer
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": reply.headers,
        }
    )
    if isinstance(answer, StreamedResponse):
        for part in answer.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    body = answer.body if isinstance(answer, Response) else b""
    await send({"type": "http.response.body", "body": body})
