"""The HTTP/1.1 connection: bounds on a request's head, and no upgrades.

uvicorn reads a head of any length at any pace before anything of ours sees it. Here a
head that grows beyond its bound is answered 431, one that does not end in time is cut
off, and an upgrade is an ordinary request. Bodies are the guard's, which may have the
rest of one handed over as it is read: uvicorn would copy it twice on the way.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http import auto as http_auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets import auto as websockets_auto

from security.settings import ServiceSettings
from service.direct import DIRECT_BODY, DirectBody

__all__ = ["bounded_protocol", "install"]

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


def install(settings: ServiceSettings) -> None:
    """Make uvicorn's next server in this process use the bounded protocol.

    BentoML's worker makes its uvicorn configuration by itself, with protocols by the
    name "auto"; these are the two names that stands for.
    """
    http_auto.AutoHTTPProtocol = bounded_protocol(settings)
    websockets_auto.AutoWebSocketsProtocol = None


def bounded_protocol(settings: ServiceSettings) -> type[HttpToolsProtocol]:
    """Uvicorn's protocol with the settings' bounds."""

    class Bounded(_BoundedProtocol):
        max_head_bytes = settings.max_head_bytes
        head_timeout_s = settings.head_timeout_s

    return Bounded


class _BoundedProtocol(HttpToolsProtocol):
    max_head_bytes: int
    head_timeout_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        # One read may hold a whole head and much of its body, so the bound is looked
        # at when the head has still not ended. A read is at most 256 KiB.
        if self._timer is not None and self._head_bytes > self.max_head_bytes:
            self._end_head()
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        self._rest = DirectBody()
        self.scope["extensions"] = {DIRECT_BODY: {"rest": self._rest}}
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._rest.take is None:
            super().on_body(body)
        else:
            self._rest.take(body)

    def _begin_head(self) -> None:
        if self._timer is None:
            self._head_bytes = 0
            self._timer = self.loop.call_later(self.head_timeout_s, self._expire)

    def _end_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Strangers could fill the log with it."""
