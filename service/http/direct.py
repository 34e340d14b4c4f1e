"""How the rest of a request's body goes straight to who takes it.

An ASGI server gathers what it has read until the application asks for it. For a large
body that is two copies more than needed, so the connection offers this beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.problems import Problem

__all__ = ["DIRECT_BODY", "DirectBody", "Gathered"]

# In the scope's ``extensions``, a dictionary whose "rest" is a `DirectBody`.
DIRECT_BODY = "sealgate.direct_body"


@dataclass
class DirectBody:
    """One request's body.

    Attributes:
        take: given each portion as it is read, once this is set; it must not raise.
            What arrived before, and that all has arrived, is told the usual way. To be
            set between two messages of ``receive``, before which nothing can arrive.
        stranger: nobody has proved who asks; said before the answer is sent.
        certificate: thumbprint of the client's, as `service.http.tls` knows it.
    """

    take: Callable[[bytes], None] | None = None
    stranger: bool = False
    certificate: str | None = None


class Gathered:
    """Takes a body of a known length. Its memory is had when the first bytes are."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._end = 0
        self._buffer = memoryview(b"")

    @property
    def content(self) -> memoryview:
        """What has been taken."""
        return self._buffer[: self._end]

    def take(self, data: bytes) -> None:
        """Take the next bytes, which HTTP keeps within the declared length."""
        if not self._end:
            # Not zeroed: only what has been written is ever read.
            self._buffer = np.empty(self._size, np.uint8).data
        begin, self._end = self._end, self._end + len(data)
        if self._end > self._size:
            raise Problem("body-too-large", "longer than its length")
        self._buffer[begin : self._end] = data
