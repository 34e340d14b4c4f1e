"""The end of a server, and of an answer.

Whoever connects while a server ends is told to go elsewhere; whoever is answered before
it has sent all gets to read that.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn.server import Server

from service.http.exchange import last_message
from service.problems import Problem, problem_response

__all__ = ["Ending", "refusing"]

_Sockets = list[socket.socket] | None
_Shutdown = Callable[[Server, _Sockets], Coroutine[Any, Any, None]]
# A client that has its answer closes by itself.
_LINGER_S = 1.0
_GOODBYE_S = 0.2
# To clients whom a server that ends will not serve.
_FULL = last_message(
    problem_response(Problem("overloaded", headers=((b"retry-after", b"1"),)))
)


class Ending:
    """What uvicorn writes an answer to; closing it lets the client read that answer."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def refusing(shutdown: _Shutdown) -> _Shutdown:
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
