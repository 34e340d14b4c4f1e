"""What a client sends, and asks of who does its I/O: operations are generators."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sealgate.exchange import Content
from sealgate.protocol.bhttp import Body, Headers

__all__ = ["AskToken", "Fetch", "Message", "Steps", "Wait"]


@dataclass(frozen=True)
class Message:
    """What is inside each attempt of a request.

    Attributes:
        method, path, headers, body: of the inner request; path with query.
        token: to send; None where the headers have one.
        certified: show the client's certificate, if it has one.
    """

    method: str
    path: str
    token: str | None = field(repr=False)
    headers: Headers = field(default=(), repr=False)
    body: Body = field(default=b"", repr=False)
    certified: bool = True


@dataclass(frozen=True)
class Fetch:
    """Send an HTTP request, and read its answer up to a bound.

    Attributes:
        method: GET or POST.
        url: where to.
        headers: of the request.
        content: body, whole or in pieces that can be had once; None sends none.
        max_bytes: refuse a longer answer while reading.
        certified: show the client's certificate, if it has one.
    """

    method: str
    url: str
    max_bytes: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Content | None = None
    certified: bool = True


@dataclass(frozen=True)
class Wait:
    """Do nothing for this long."""

    seconds: float


@dataclass(frozen=True)
class AskToken:
    """Get an access token from where the caller keeps it."""


T = TypeVar("T")
Steps = Generator[Fetch | Wait | AskToken, Any, T]
