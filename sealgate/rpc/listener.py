"""A gRPC server on this machine that seals what it gets, beside `sealgate.proxy`.

Protocol v2 (``inference.GRPCInferenceService``), its stream as Triton has it, and
``grpc.health.v1``. A message is held whole, and so is its answer, both bounded. What a
call may borrow of the client, token and certificate, depends on whose connection it
came by, as over HTTP; gRPC tells its ends only, so the kernel is asked for each call.
Deadlines and cancellations end the request behind a call, too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message

from sealgate.async_client import AsyncClient
from sealgate.endpoints import listening
from sealgate.errors import (
    NotFoundError,
    OverloadedError,
    ProfileError,
    SealgateError,
)
from sealgate.exchange import json_of, refusal_of
from sealgate.peers import End
from sealgate.protocol.bhttp import Headers, Response
from sealgate.rpc import inference_pb2 as pb
from sealgate.rpc.messages import (
    infer_answer,
    infer_request,
    metadata_of,
    parsed,
    path_of,
    server_of,
)
from sealgate.rpc.refusals import refusal_for

__all__ = ["Lend", "Listener", "RpcLimits"]

_INFERENCE = "inference.GRPCInferenceService"
_HEALTH = "grpc.health.v1.Health"
# What a caller's metadata may add to a request; a DPoP proof is one for HTTP.
_FORWARDED = ("authorization", "traceparent", "tracestate")

# Whether a call by the connection with these ends, theirs and ours, may use what the
# client has.
Lend = Callable[[int, End, End], bool]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class RpcLimits:
    """Bounds on what the listener takes.

    Attributes:
        max_message_bytes: of a request, also when it came compressed.
        max_metadata_bytes: of a call.
        max_calls: at once, streams included; further ones are refused.
        max_requests: in work at once; others wait. As many again of those for whom the
            client lends nothing.
        stream_ahead: requests of one stream in work before its first is answered.
        idle_s: for a connection without calls to stay.
        drain_s: for calls in work to finish when the listener stops.
    """

    max_message_bytes: int = 64 << 20
    max_metadata_bytes: int = 32 << 10
    max_calls: int = 128
    max_requests: int = 32
    stream_ahead: int = 8
    idle_s: float = 300.0
    drain_s: float = 5.0


@dataclass(frozen=True)
class _Call:
    """What a call brings.

    Attributes:
        headers: to send along.
        lends: it may use what the client has.
    """

    headers: Headers
    lends: bool

    @property
    def own_token(self) -> bool:
        return self.lends and all(name != b"authorization" for name, _ in self.headers)


class Listener:
    """Serves gRPC, with one client for all calls."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        lend: Lend,
        limits: RpcLimits = RpcLimits(),
    ) -> None:
        """Nothing listens yet.

        Args:
            client: of the server to seal to.
            lend: whose calls may use what the client has.
            limits: bounds.
        """
        self._client = client
        self._lend = lend
        self._limits = limits
        self._ours: End = ("", 0)
        self._slots = {
            lends: asyncio.Semaphore(limits.max_requests) for lends in (True, False)
        }

    async def serve(
        self,
        host: str,
        port: int,
        *,
        stop: asyncio.Event,
        started: Callable[[str], None],
    ) -> None:
        """Listen until ``stop``, then finish what is in work.

        Args:
            host: address, or name of one.
            port: 0 takes a free one.
            stop: ends it.
            started: called with what to call the endpoint when it listens.

        Raises:
            ProfileError: it cannot be bound.
        """
        server = self._server()
        where = self._bind(server, host, port)
        await server.start()
        started(where)
        await stop.wait()
        await server.stop(self._limits.drain_s)

    def _server(self) -> grpc.aio.Server:
        limits = self._limits
        options = (
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
            ("grpc.max_concurrent_streams", limits.max_calls),
            ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
            # Nobody else's process may share the port.
            ("grpc.so_reuseport", 0),
        )
        server = grpc.aio.server(
            options=options, maximum_concurrent_rpcs=limits.max_calls
        )
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(_INFERENCE, self._methods()),
                grpc.method_handlers_generic_handler(
                    _HEALTH, {"Check": self._unary(pb.HealthRequest, self._check)}
                ),
            )
        )
        return server

    def _methods(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        stream = grpc.stream_stream_rpc_method_handler(
            self._stream_infer, response_serializer=_bytes
        )
        return {
            "ServerLive": self._unary(pb.Nothing, self._server_live),
            "ServerReady": self._unary(pb.Nothing, self._server_ready),
            "ModelReady": self._unary(pb.ModelName, self._model_ready),
            "ServerMetadata": self._unary(pb.Nothing, self._server_metadata),
            "ModelMetadata": self._unary(pb.ModelName, self._model_metadata),
            "ModelInfer": self._unary(pb.InferRequest, self._infer),
            "ModelStreamInfer": stream,
        }

    def _bind(self, server: grpc.aio.Server, host: str, port: int) -> str:
        # gRPC says why it cannot bind on standard error only, and not in one line.
        with listening(host, port, None) as probe:
            self._ours = probe.getsockname()[:2]
        address = f"[{self._ours[0]}]" if ":" in self._ours[0] else self._ours[0]
        where = f"{address}:{self._ours[1]}"
        try:
            server.add_insecure_port(where)
        except RuntimeError:
            raise ProfileError(f"{where}: cannot be bound") from None
        return f"grpc://{where}"

    def _unary(
        self, kind: type[M], work: Callable[[M, _Call], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def answer(data: bytes, context: Context) -> Message:
            try:
                call = self._call(context)
                request = parsed(kind, data)
                async with self._slots[call.lends]:
                    return await work(request, call)
            except SealgateError as error:
                refusal = refusal_for(error)
            return await context.abort(refusal.code, refusal.message, refusal.trailing)

        # The bytes are parsed inside: what is no message has an answer like any other.
        return grpc.unary_unary_rpc_method_handler(answer, response_serializer=_bytes)

    def _call(self, context: Context) -> _Call:
        headers = tuple(
            (name.encode("ascii"), value.encode())
            for name, value in context.invocation_metadata() or ()
            if name in _FORWARDED and isinstance(value, str)
        )
        theirs = _end(context.peer())
        if theirs is None:
            return _Call(headers, lends=False)
        family = socket.AF_INET6 if ":" in theirs[0] else socket.AF_INET
        return _Call(headers, self._lend(family, theirs, self._ours))

    async def _ask(
        self,
        method: str,
        path: str,
        call: _Call,
        headers: Headers = (),
        body: bytes = b"",
    ) -> Response:
        """A successful answer.

        Raises:
            ClientError: what else there was.
        """
        response = await self._client.forward(
            method,
            path,
            headers=(*headers, *call.headers),
            body=body,
            own_token=call.own_token,
            own_certificate=call.lends,
        )
        error = refusal_of(response)
        if error is not None:
            raise error
        return response

    async def _is(self, path: str, call: _Call) -> bool:
        try:
            await self._ask("GET", path, call)
        except (NotFoundError, OverloadedError):
            return False
        return True

    async def _server_live(self, _: Message, call: _Call) -> pb.Live:
        return pb.Live(live=await self._is("/v2/health/live", call))

    async def _server_ready(self, _: Message, call: _Call) -> pb.Ready:
        return pb.Ready(ready=await self._is("/v2/health/ready", call))

    async def _check(self, request: pb.HealthRequest, call: _Call) -> pb.HealthResponse:
        if request.service not in ("", _INFERENCE):
            raise NotFoundError(404, {"title": "no such service"})
        ready = await self._is("/v2/health/ready", call)
        status = pb.HealthResponse.SERVING if ready else pb.HealthResponse.NOT_SERVING
        return pb.HealthResponse(status=status)

    async def _model_ready(self, request: pb.ModelName, call: _Call) -> pb.Ready:
        path = path_of(request.name, request.version, "/ready")
        return pb.Ready(ready=await self._is(path, call))

    async def _server_metadata(self, _: Message, call: _Call) -> pb.Server:
        document = json_of((await self._ask("GET", "/v2", call)).body)
        return server_of(document)

    async def _model_metadata(self, request: pb.ModelName, call: _Call) -> pb.Model:
        path = path_of(request.name, request.version)
        return metadata_of(json_of((await self._ask("GET", path, call)).body))

    async def _infer(self, request: pb.InferRequest, call: _Call) -> pb.InferResponse:
        path = path_of(request.model_name, request.model_version, "/infer")
        headers, body = infer_request(request)
        return infer_answer(await self._ask("POST", path, call, headers, body))

    async def _stream_infer(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[pb.StreamInferResponse]:
        """Answers in the order of the requests, a bounded number of them in work."""
        call = self._call(context)
        ahead: asyncio.Queue[asyncio.Task[pb.StreamInferResponse] | None]
        ahead = asyncio.Queue(self._limits.stream_ahead)
        tasks: set[asyncio.Task[Any]] = set()
        slots = self._slots[call.lends]

        async def read() -> None:
            async for data in requests:
                # Before the next one is read: what waits is held, so little may wait.
                await slots.acquire()
                task = asyncio.create_task(self._streamed(data, call))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(lambda _: slots.release())
                await ahead.put(task)
            await ahead.put(None)

        tasks.add(asyncio.create_task(read()))
        try:
            while (task := await ahead.get()) is not None:
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    async def _streamed(self, data: bytes, call: _Call) -> pb.StreamInferResponse:
        """One answer of a stream: an error is one, too, and the stream goes on."""
        named = ""
        try:
            request = parsed(pb.InferRequest, data)
            named = request.id
            answer = await self._infer(request, call)
            return pb.StreamInferResponse(infer_response=answer)
        except SealgateError as error:
            message = refusal_for(error).message
            about = pb.InferResponse(id=named)
            return pb.StreamInferResponse(error_message=message, infer_response=about)


def _bytes(message: Message) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _end(peer: str) -> End | None:
    """The address and port that gRPC calls a peer by.

    >>> _end("ipv6:%5B::1%5D:4711")
    ('::1', 4711)
    """
    _, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if not port.isdecimal():
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)
