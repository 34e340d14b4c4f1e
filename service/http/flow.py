"""How fast a connection reads and is read from."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl

__all__ = ["Flow", "Stall"]


class Flow(FlowControl):
    """Uvicorn reads on whenever a body is asked for; here not before its turn.

    Attributes:
        held: something was read, 256 KiB at most, that is not to be parsed yet.
    """

    held = False

    def resume_reading(self) -> None:
        """As uvicorn's."""
        if not self.held:
            super().resume_reading()

    def hold(self) -> None:
        """Read nothing more for now."""
        self.held = True
        self.pause_reading()

    def wait(self) -> None:
        """Read nothing more before a body is asked for."""
        self.held = False
        self.pause_reading()

    def read_on(self) -> None:
        """Read again."""
        self.held = False
        self.resume_reading()


class Stall:
    """Cuts off a client that takes nothing of its answer."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        *,
        timeout_s: float,
    ) -> None:
        self._transport, self._loop, self._timeout_s = transport, loop, timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """More is there to be taken than is taken at once."""
        self.end()
        left = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._timeout_s, self._look, left)

    def end(self) -> None:
        """All was taken, or the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, left: int) -> None:
        self._timer = None
        now = self._transport.get_write_buffer_size()
        if now < left:
            self.begin()
        elif now:
            self._transport.abort()
