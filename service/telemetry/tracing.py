"""W3C Trace Context: a caller's trace, continued in our logs and told back.

Specification: https://www.w3.org/TR/trace-context/ (sections 3.2 and 4). What is not
exactly a trace is ignored, as section 3.2.2.5 asks: it never fails a request. Nothing
of ``tracestate`` is looked at, since nothing is called from here.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass

from sealgate.protocol.bhttp import Headers

__all__ = ["OUTER_TRACE", "Trace", "read_trace"]

TRACEPARENT = b"traceparent"
# Told back under the name that Trace Context's second level gives it.
TRACERESPONSE = b"traceresponse"

_VERSION_0 = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
# Section 4.3: of later versions the same fields are read, whatever follows them.
_LATER = re.compile(
    rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-[^,\s]{0,256})?"
)


@dataclass(frozen=True)
class Trace:
    """One request's place in a caller's trace.

    Attributes:
        trace_id: 32 hexadecimal digits, the caller's.
        parent_id: 16 of them, the caller's span.
        span_id: 16 of them, ours.
        sampled: whether the caller records this trace.
    """

    trace_id: str
    parent_id: str
    span_id: str
    sampled: bool

    @property
    def header(self) -> tuple[bytes, bytes]:
        """What tells the caller our span."""
        flags = "01" if self.sampled else "00"
        return (
            TRACERESPONSE,
            f"00-{self.trace_id}-{self.span_id}-{flags}".encode(),
        )


# Of the HTTP request that is being answered, which may hold a sealed one.
OUTER_TRACE: ContextVar[Trace | None] = ContextVar("outer_trace", default=None)


def read_trace(headers: Headers) -> Trace | None:
    """The trace that a request belongs to, with a span of our own in it.

    >>> value = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    >>> read_trace(((b"traceparent", value),)).trace_id
    '0af7651916cd43dd8448eb211c80319c'
    """
    values = [value for name, value in headers if name == TRACEPARENT]
    if len(values) != 1:
        return None
    pattern = _VERSION_0 if values[0].startswith(b"00-") else _LATER
    match = pattern.fullmatch(values[0])
    if match is None:
        return None
    trace_id, parent_id, flags = (part.decode() for part in match.groups())
    if not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return Trace(trace_id, parent_id, secrets.token_hex(8), bool(int(flags, 16) & 1))
