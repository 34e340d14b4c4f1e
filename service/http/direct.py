"""How the rest of a request's body goes straight to who takes it.

An ASGI server gathers what it has read until the application asks for it. For a large
body that is two copies more than needed, so the connection offers this beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DIRECT_BODY", "DirectBody"]

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
    """

    take: Callable[[bytes], None] | None = None
    stranger: bool = False
