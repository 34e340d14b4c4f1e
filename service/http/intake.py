"""How many requests are read and worked on at once, and what their bodies may take.

A request that is being read holds no place among those in work, so slow clients do not
keep others out. Bodies are accounted for from their first byte to the answer, by the
length that they declare. Where there is no room left, the slowest reader makes it: the
one with the fewest bytes per second, and never one that has only just begun.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

from security.settings.service import ServiceSettings
from service.problems import Problem
from service.telemetry.metrics import Metrics
from service.telemetry.recorder import Decision
from service.telemetry.spans import Steps, Tracer

__all__ = ["VISIT", "Allowance", "Intake", "Visit", "step"]

_RETRY = ((b"retry-after", b"1"),)
# Nobody is called slow before.
_GRACE_S = 1.0
# Refusals of strangers on one connection, and the seconds that earn another one: each
# costs some 60 µs here, so that a connection costs no more than a hundredth of a core.
_REFUSALS = 100
_REFUSAL_S = 0.005


class Allowance:
    """What one connection may cost whose requests nobody stands for.

    It waits, and is not closed: behind a proxy the next request on it is another's.
    """

    def __init__(self) -> None:
        self._spent_until = 0.0

    def spend(self, now: float) -> float:
        """Count a refusal.

        Returns:
            Seconds until the next request may be looked at, never above 0.005.
        """
        begin = max(self._spent_until, now - _REFUSALS * _REFUSAL_S)
        self._spent_until = begin + _REFUSAL_S
        return self._spent_until - now


class Intake:
    """The places of one worker."""

    def __init__(
        self,
        settings: ServiceSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        tracer: Tracer | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.tracer = tracer
        self.in_work = 0
        self.held_bytes = 0
        self.readers: set[Visit] = set()
        self._work = metrics.cell("sealgate_requests_in_work")
        self._reading = metrics.cell("sealgate_bodies_being_read")
        self._bytes = metrics.cell("sealgate_body_bytes")

    def tell(self) -> None:
        """Tell the metrics: several times for each request, so straight away."""
        self._work[0] = self.in_work
        self._reading[0] = len(self.readers)
        self._bytes[0] = self.held_bytes

    def enter(self, size: int) -> bool:
        """Take a place in work for a request that is there whole, and room for it.

        False if there is none, or readers would have to make it: a `Visit` does that.
        Whoever got it gives it back by `leave`, and tells.
        """
        settings = self.settings
        if (
            self.in_work >= settings.max_concurrency
            or self.held_bytes + size > settings.max_body_memory_bytes
        ):
            return False
        self.in_work += 1
        self.held_bytes += size
        return True

    def leave(self, size: int) -> None:
        """Give back what `enter` took."""
        self.in_work -= 1
        self.held_bytes -= size

    def make_room(self, visit: Visit, size: int) -> None:
        """Let slow readers go until there is a place, and room for so many bytes.

        Raises:
            Problem: there is none.
        """
        settings, now = self.settings, self.clock()
        places = settings.max_readers - len(self.readers) + (visit in self.readers)
        room = settings.max_body_memory_bytes - self.held_bytes - size
        if places > 0 and room >= 0:
            return
        slow = [
            reader
            for reader in self.readers
            if reader is not visit and now - reader.began >= _GRACE_S
        ]
        # Nobody has to go for one who would find no room even then.
        if places + len(slow) <= 0 or room + sum(r.held for r in slow) < 0:
            raise Problem("overloaded", headers=_RETRY)
        slow.sort(key=lambda reader: reader.rate(now), reverse=True)
        while places <= 0 or room < 0:
            reader = slow.pop()
            places, room = places + 1, room + reader.held
            reader.expel()


class Visit:
    """One request, from its head to its answer.

    Attributes:
        began: when reading its body began.
        received: bytes of its body so far.
        stranger: somebody was refused who did not prove who asks.
        vouched: somebody has proved it.
        held: bytes that it is accounted for.
        certificate: thumbprint of its client's, as `service.http.tls` knows it.
        steps: what is noted for its span; None if there are no traces.
    """

    def __init__(self, intake: Intake, certificate: str | None = None) -> None:
        """Take a place among the requests in work.

        Raises:
            Problem: there is none.
        """
        self._intake = intake
        self.certificate = certificate
        self._working = False
        self.held = 0
        self._timeout: asyncio.Timeout | None = None
        self.began = 0.0
        self.received = 0
        self.stranger = self.vouched = False
        self.steps = None if intake.tracer is None else Steps()
        self._work()

    def decided(self, decision: Decision, *, status: int, reason: str | None) -> None:
        """A request has its answer; of a sealed one, the answer that will be sealed."""
        tracer = self._intake.tracer
        if tracer is not None and self.steps is not None:
            tracer.decide(self.steps, decision, status=status, reason=reason)

    def rate(self, now: float) -> float:
        """Bytes per second."""
        return self.received / max(now - self.began, 1e-3)

    @asynccontextmanager
    async def reading(self, size: int | None, timeout_s: float) -> AsyncIterator[None]:
        """Read a body, holding no place in work meanwhile.

        Args:
            size: its declared length. Without one, `take` accounts for what arrives.
            timeout_s: to read it.

        Raises:
            Problem: no room, too slow, or no place in work afterwards.
        """
        intake = self._intake
        self.began = intake.clock()
        self._hold(size or 0)
        self._rest()
        intake.readers.add(self)
        intake.tell()
        try:
            async with asyncio.timeout(timeout_s) as self._timeout:
                yield
        except TimeoutError:
            raise Problem("body-timeout") from None
        finally:
            intake.readers.discard(self)
        self._work()

    def take(self, size: int) -> None:
        """Account for bytes that have arrived.

        Raises:
            Problem: no room for them.
        """
        self.received += size
        if self.received > self.held:
            self._hold(self.received - self.held)

    def hold(self, size: int) -> None:
        """Account for a body that is there.

        Raises:
            Problem: no room for it.
        """
        intake = self._intake
        if intake.held_bytes + size > intake.settings.max_body_memory_bytes:
            intake.make_room(self, size)
        self.held += size
        intake.held_bytes += size

    def expel(self) -> None:
        """Stop reading: somebody else has the place, now."""
        self._intake.readers.discard(self)
        self._free()
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def leave(self) -> None:
        """Give everything back."""
        self._rest()
        self._free()
        self._intake.tell()
        if self.steps is not None and self._intake.tracer is not None:
            self._intake.tracer.end(self.steps)

    def _hold(self, size: int) -> None:
        self._intake.make_room(self, size)
        self.held += size
        self._intake.held_bytes += size

    def _free(self) -> None:
        self._intake.held_bytes -= self.held
        self.held = 0

    def _work(self) -> None:
        if self._intake.in_work >= self._intake.settings.max_concurrency:
            raise Problem("overloaded", headers=_RETRY)
        self._intake.in_work += 1
        self._working = True
        self._intake.tell()

    def _rest(self) -> None:
        self._intake.in_work -= self._working
        self._working = False


# Whose place a task works in.
VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)


def step(name: str, began: float) -> None:
    """A step of this task's request, which began then, has ended."""
    visit = VISIT.get()
    if visit is not None and visit.steps is not None:
        visit.steps.add(name, began)
