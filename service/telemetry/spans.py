"""Requests as spans: which are traced, what is told of them, the steps of their work.

A caller's decision counts where a token was verified. Anyone else could have every
request traced: strangers get a few spans a second. Of a sealed request the trace is the
one inside the seal; the outer one, which a relay may know, is told to nobody.

No span holds a payload, a subject, a token or a path: a route is made from the action,
and a model is named only if it is served here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

from service.telemetry.export_settings import Sampling
from service.telemetry.otlp import Span, Step
from service.telemetry.recorder import Decision
from service.telemetry.tracing import Trace

__all__ = ["Bounded", "Steps", "Tracer"]

_STRANGERS_PER_S = 10
_METHODS = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH")
)
_MODEL = "/v2/models/{model}"
_SERVER_ROUTES = {
    "index": "/v2/repository/index",
    "interface": "/openapi.yaml",
    "list": "/v2/models",
    "metadata": "/v2",
    "stats": "/v2/models/stats",
}


class Bounded:
    """Lets so many pass in each second."""

    def __init__(
        self, per_second: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._second = 0
        self._passed = 0

    def __call__(self) -> bool:
        """Whether one more may."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._passed = second, 0
        self._passed += 1
        return self._passed <= self._per_second


class Steps:
    """A request's work, noted while it is done.

    Attributes:
        began: ``time.perf_counter()`` when its head was there.
        done: names of steps, with when they began and ended.
        span: what will be told, once the request is decided and if it is traced.
    """

    __slots__ = ("began", "done", "span")

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.done: list[tuple[str, float, float]] = []
        self.span: tuple[Trace, Decision, int, str | None] | None = None

    def add(self, name: str, began: float) -> None:
        """A step that began then has ended."""
        self.done.append((name, began, time.perf_counter()))


class Tracer:
    """Decides which requests are traced, and makes spans of them."""

    def __init__(
        self,
        sampling: Sampling,
        put: Callable[[Span], None],
        *,
        strangers: Callable[[], bool] | None = None,
    ) -> None:
        """Wire it.

        Args:
            sampling: which.
            put: takes each span.
            strangers: whether one more of those may be traced.
        """
        self._sampling = sampling
        self._put = put
        self._strangers = strangers or Bounded(_STRANGERS_PER_S)

    def decide(
        self, steps: Steps, decision: Decision, *, status: int, reason: str | None
    ) -> None:
        """A request is answered: note what will be told of it, if it is traced.

        A trace that begins here becomes the decision's, so that its log line names it.
        """
        trace = self._sampled(decision.trace)
        if trace is None or (decision.principal is None and not self._strangers()):
            return
        decision.trace = trace
        steps.span = trace, decision, status, reason

    def end(self, steps: Steps) -> None:
        """The answer is there, sealed if it has to be."""
        if steps.span is None:
            return
        trace, decision, status, reason = steps.span
        now = time.perf_counter()
        offset_ns = time.time_ns() - int(now * 1e9)
        done = tuple(
            Step(name, _id(64), offset_ns + int(a * 1e9), offset_ns + int(b * 1e9))
            for name, a, b in steps.done
        )
        method, route = _method(decision), _route(decision)
        span = Span(
            trace.trace_id,
            trace.span_id,
            trace.parent_id,
            name=f"{method} {route}" if route else method,
            start_ns=offset_ns + int(steps.began * 1e9),
            end_ns=offset_ns + int(now * 1e9),
            failed=status >= 500,
            attributes=_told(decision, method, route, status, reason),
            steps=done,
        )
        self._put(span)

    def _sampled(self, trace: Trace | None) -> Trace | None:
        if trace is not None and self._sampling.by_parent:
            return trace if trace.sampled else None
        share = self._sampling.share
        if trace is not None:
            # As every sampler by share decides: by the trace's last 64 bits.
            kept = int(trace.trace_id[16:], 16) < share * 2**64
            return replace(trace, sampled=True) if kept else None
        if random.random() >= share:
            return None
        return Trace(_id(128), "", _id(64), sampled=True)


def _id(bits: int) -> str:
    """An identifier that is not zero. Nothing is secret about it."""
    return f"{random.getrandbits(bits) or 1:0{bits // 4}x}"


def _method(decision: Decision) -> str:
    method = decision.method
    return method.decode() if method in _METHODS else "_OTHER"


def _route(decision: Decision) -> str | None:
    action = decision.action or ""
    if decision.model is None:
        return _SERVER_ROUTES.get(action)
    return _MODEL if action == "metadata" else f"{_MODEL}/{action}"


def _told(
    decision: Decision, method: str, route: str | None, status: int, reason: str | None
) -> dict[str, str | int | bool]:
    """Attributes, by OpenTelemetry's names for HTTP and by ours."""
    attributes: dict[str, str | int | bool] = {
        "http.request.method": method,
        "http.response.status_code": status,
        "url.scheme": "https" if decision.scheme == b"https" else "http",
        "sealgate.sealed": decision.sealed,
        "sealgate.request_id": decision.request_id,
    }
    if route:
        attributes["http.route"] = route
    if reason is not None:
        attributes["error.type"] = reason
    if decision.version is not None:
        attributes["sealgate.model"] = decision.model or ""
        attributes["sealgate.model_version"] = decision.version
    if decision.rows is not None:
        attributes["sealgate.rows"] = decision.rows
    return attributes
