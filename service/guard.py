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
from sealgate.protocol.bhttp import Headers, Request, Response
from sealgate.protocol.drafts import chunked
from security.sealing.publish import Document
from security.settings.service import ServiceSettings
from service.gateway import GATEWAY_PATH, Gateway
from service.http.bodies import (
    LARGE_BYTES,
    AnyBody,
    ArrivingBody,
    ClientGone,
    WholeBody,
)
from service.http.cors import Cors
from service.http.direct import DIRECT_BODY
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
        self._cors = Cors(settings.allowed_origins, gateway=GATEWAY_PATH)
        self._intake = Intake(settings, routes.metrics, tracer=tracer)
        self._turns = Turns(routes, self._intake, self, gateway)
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
            await _send(send, self._busy(busy, _head(scope)))
            return
        body = ArrivingBody(scope, receive, visit, self._settings, direct)
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
            return self._refuse(busy, request)
        return self._visit(request, visit)

    async def _visit(self, request: Request, visit: Visit) -> Reply:
        try:
            body = WholeBody(request, visit, self._settings)
            return await self._reply(request, body)
        finally:
            visit.leave()

    def go_on(
        self,
        work: Coroutine[Any, Any, Response],
        request: Request,
        certificate: str | None,
    ) -> Coroutine[Any, Any, Reply]:
        """What remains of a request that was begun in `service.turns`, as a task.

        Its place there has just been given back, and is taken again here.
        """
        visit = Visit(self._intake, certificate)
        visit.hold(len(request.body))
        return self._go_on(work, request, visit)

    async def _go_on(
        self, work: Coroutine[Any, Any, Response], request: Request, visit: Visit
    ) -> Reply:
        VISIT.set(visit)
        try:
            response = await work
        finally:
            visit.leave()
        reply = _reply(
            response, close=False, more=self._fields(request, request.scheme)
        )
        reply.stranger, reply.vouched = visit.stranger, visit.vouched
        return reply

    def reply_to(
        self, head: Head, scheme: bytes, response: Response, fields: Headers
    ) -> Reply:
        """An answer with more fields of its own, to a request without a trace."""
        more = self._fields(head, scheme)
        return _reply(response, close=False, own=fields, more=more)

    def _fields(self, head: Request | Head, scheme: bytes) -> Headers:
        """What an answer says because of who asks, and how."""
        more = self._cors.fields(head)
        return (_HSTS, *more) if _is_secure(scheme, head.headers) else more

    async def _refuse(self, problem: Problem, head: Request) -> Reply:
        return self._busy(problem, head)

    def _busy(self, problem: Problem, head: Request) -> Reply:
        self._routes.metrics.count("sealgate_refusals", problem.code)
        more = self._cors.fields(head)
        return _reply(problem_response(problem), close=True, more=more)

    async def _reply(self, head: Request, body: AnyBody) -> Reply:
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
        more = self._fields(head, head.scheme)
        if trace is not None:
            more = (trace.header, *more)
        reply = _reply(response, close=not body.complete, more=more)
        visit = body.visit
        reply.stranger, reply.vouched = visit.stranger, visit.vouched
        return reply

    async def _answer(self, head: Request, body: AnyBody) -> Answer:
        if head.method == b"OPTIONS":
            allowed = self._cors.preflight(head)
            if allowed is not None:
                await body.read()
                return allowed
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

    async def _answer_gateway(self, head: Request, body: AnyBody) -> Answer:
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

    async def _answer_sealed(self, body: AnyBody) -> Response:
        size = body.declared
        if size is None or size < LARGE_BYTES:
            return await self._gateway.answer(await body.read())
        request = self._gateway.begin(size)
        await body.read_straight_into(request.feed)
        return await self._gateway.answer_large(request)

    async def _answer_signed_keys(self, head: Request, body: AnyBody) -> Response:
        if head.method not in (b"GET", b"HEAD"):
            raise method_not_allowed(b"GET", b"HEAD")
        await body.read()
        if head.path == _SIGNED_KEYS_V2_PATH:
            document = await self._gateway.published_signed_v2()
        else:
            document = self._gateway.published_signed()
        return _keys(signedkeys.SIGNED_KEYS_MEDIA_TYPE, document)


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


def _is_secure(scheme: bytes, headers: Headers) -> bool:
    """Whether the client speaks TLS, with us or with what stands before us.

    What anyone may write into the field makes a difference to that one's answer only,
    and there a client ignores what did not come over TLS (RFC 6797, section 8.1).
    """
    return scheme == b"https" or (b"x-forwarded-proto", b"https") in headers


def _reply(
    response: Answer, *, close: bool, own: Headers = (), more: Headers = ()
) -> Reply:
    headers = [*response.headers, *own, *_HARDENING, *more]
    # RFC 9110, section 8.6: there is no length of what may have no content.
    if isinstance(response, Response) and response.status != 204:
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
